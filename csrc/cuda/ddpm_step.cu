// One step of a reverse process on the device. The same bits as csrc/cpu/ddpm_step.cpp: compiled with --fmad=false.
#include <cuda_runtime.h>

#include "../common/ddpm_step.h"

namespace sinfusion {
namespace {

// A block of threads for each tile of pixels.
__global__ void __launch_bounds__(TILE_PIXELS) ddpm_step_kernel(DdpmStep a) {
  __shared__ float normals[DDPM_NORMALS];
  const Tile tile = tile_of(blockIdx.x, a.pixels);
  const int thread = int(threadIdx.x);
  if (adds_noise(a)) {
    draw_normals(noise_random(a, tile), tile, a.pixels, 3, thread, normals);
    __syncthreads();
  }
  for (int index = thread; index < 3 * tile.count; index += TILE_PIXELS) step_value(a, tile, normals, index);
}

}  // namespace

// Returns the error of the launch, 0 for none.
int ddpm_step(const DdpmStep& a, void* cuda_stream) {
  const int64_t blocks = a.batch * tile_count(a.pixels);
  if (blocks == 0) return 0;
  if (blocks > INT32_MAX) return int(cudaErrorInvalidValue);
  ddpm_step_kernel<<<unsigned(blocks), TILE_PIXELS, 0, static_cast<cudaStream_t>(cuda_stream)>>>(a);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
