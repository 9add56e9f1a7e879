// Nearest-neighbour field on the device, the same bits as csrc/cpu/patch_match.cpp.
#include <cuda_runtime.h>

#include "../common/patch_match.h"

namespace sinfusion {
namespace {

constexpr int THREADS = 128;
constexpr int MIN_BLOCKS = 6;  // on a multiprocessor: with more, registers spill

// A thread for each query patch, in both kernels.
__global__ void __launch_bounds__(THREADS) start_kernel(PatchMatch a, SearchSpace space, int64_t count) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index < count) initialize_patch(a, space, index);
}

__global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    step_kernel(PatchMatch a, SearchSpace space, int64_t count, const Offset* field_in, Offset* field_out,
                uint64_t step, int32_t stride) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index < count) step_patch(a, space, field_in, field_out, step, stride, index);
}

}  // namespace

// Returns the error of a launch, 0 for none.
int patch_match(const PatchMatch& a, void* cuda_stream) {
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  const SearchSpace space = search_space(a, 0);
  const int64_t count = int64_t(space.query.t) * space.query.y * space.query.x;  // below 2^31
  const unsigned blocks = unsigned((count + THREADS - 1) / THREADS);
  start_kernel<<<blocks, THREADS, 0, stream>>>(a, space, count);
  Offset *field_in = a.field, *field_out = a.scratch_field;
  for (int64_t step = 0; step < a.steps; ++step) {
    const uint64_t index = uint64_t(step + 1);
    step_kernel<<<blocks, THREADS, 0, stream>>>(a, search_space(a, index), count, field_in, field_out, index,
                                                a.strides[step]);
    Offset* swapped = field_in;
    field_in = field_out, field_out = swapped;
  }
  if (field_in != a.field) cudaMemcpyAsync(a.field, field_in, count * sizeof(Offset), cudaMemcpyDeviceToDevice, stream);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
