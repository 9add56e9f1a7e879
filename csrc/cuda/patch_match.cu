// Nearest-neighbour field on the device, the same bits as csrc/cpu/patch_match.cpp.
#include <cuda_runtime.h>

#include "../common/patch_match.h"
#include "patch_match_by_warps.h"

namespace sinfusion {
namespace {

// A thread for each query patch.
constexpr int THREADS = 128;
constexpr int MIN_BLOCKS = 6;  // on a multiprocessor: with more, registers spill

__global__ void __launch_bounds__(THREADS) start_large_kernel(PatchMatch a, SearchSpace space, int64_t count) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index < count) initialize_patch(a, space, index);
}

__global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    step_large_kernel(PatchMatch a, SearchSpace space, int64_t count, SearchStep step) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index < count) step_patch(a, space, step, index);
}

template <int SHARE>  // pixels of a patch for each thread, at most
const Offset* search_by_warps(const PatchMatch& a, const SearchSpace& space, int64_t count, int32_t pixels,
                              cudaStream_t stream) {
  const unsigned blocks = unsigned((count + WARPS - 1) / WARPS);
  start_kernel<SHARE><<<blocks, WARPS * 32, 0, stream>>>(a, space, count, pixels);
  return run_steps(a, count, [&](const SearchStep& step) {
    step_kernel<SHARE><<<blocks, WARPS * 32, 0, stream>>>(a, search_space(a, step.number), count, pixels, step);
  });
}

const Offset* search_by_threads(const PatchMatch& a, const SearchSpace& space, int64_t count, cudaStream_t stream) {
  const unsigned blocks = unsigned((count + THREADS - 1) / THREADS);
  start_large_kernel<<<blocks, THREADS, 0, stream>>>(a, space, count);
  return run_steps(a, count, [&](const SearchStep& step) {
    step_large_kernel<<<blocks, THREADS, 0, stream>>>(a, search_space(a, step.number), count, step);
  });
}

}  // namespace

// Returns the error of a launch, 0 for none.
int patch_match(const PatchMatch& a, void* cuda_stream) {
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  const SearchSpace space = search_space(a, 0);
  const int64_t count = int64_t(space.query.t) * space.query.y * space.query.x;  // below 2^31
  const int64_t pixels = int64_t(a.patch.t) * a.patch.y * a.patch.x;
  const auto fits = [&](const Volume& video) {  // places of pixels are 32 bits
    return reinterpret_cast<uintptr_t>(video.data) % sizeof(int2) == 0 &&
           video.frames * video.height * video.width < INT32_MAX;
  };
  const Offset* field = nullptr;
  if (a.channels != CHANNELS || pixels > MOST_PIXELS || !fits(a.query) || !fits(a.key))
    field = search_by_threads(a, space, count, stream);
  else if (pixels <= 2 * 32)
    field = search_by_warps<2>(a, space, count, int32_t(pixels), stream);
  else if (pixels <= 5 * 32)  // 3x7x7
    field = search_by_warps<5>(a, space, count, int32_t(pixels), stream);
  else
    field = search_by_warps<MOST_PIXELS / 32>(a, space, count, int32_t(pixels), stream);
  if (field != a.field) cudaMemcpyAsync(a.field, field, count * sizeof(Offset), cudaMemcpyDeviceToDevice, stream);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
