// Nearest-neighbour field on the device: the field of csrc/cpu/patch_match.cpp, bit for bit.
#include <cuda_runtime.h>

#include "../common/patch_match.h"

namespace sinfusion {
namespace {

constexpr int THREADS = 128;
constexpr int BLOCKS = 6;  // at least, on a multiprocessor: with more, registers spill

// One thread a patch of the query, in both.
__global__ void __launch_bounds__(THREADS) start_kernel(PatchMatch a, PatchMatchGrids grids, int64_t count) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index < count) start_patch(a, grids, index);
}

__global__ void __launch_bounds__(THREADS, BLOCKS)
    step_kernel(PatchMatch a, PatchMatchGrids grids, int64_t count, const Offset* before, Offset* after, uint64_t step,
                int32_t stride) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index < count) step_patch(a, grids, before, after, step, stride, index);
}

}  // namespace

// Returns the error of a launch, 0 for none.
int patch_match(const PatchMatch& a, void* cuda_stream) {
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  const PatchMatchGrids grids = grids_of(a, 0);
  const int64_t count = int64_t(grids.query.t) * grids.query.y * grids.query.x;  // below 2^31
  const unsigned blocks = unsigned((count + THREADS - 1) / THREADS);
  start_kernel<<<blocks, THREADS, 0, stream>>>(a, grids, count);
  Offset *before = a.field, *after = a.other;
  for (int64_t step = 0; step < a.steps; ++step) {
    const uint64_t index = uint64_t(step + 1);
    step_kernel<<<blocks, THREADS, 0, stream>>>(a, grids_of(a, index), count, before, after, index, a.strides[step]);
    Offset* swapped = before;
    before = after, after = swapped;
  }
  if (before != a.field) cudaMemcpyAsync(a.field, before, count * sizeof(Offset), cudaMemcpyDeviceToDevice, stream);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
