// A training batch on the device. The same bits as csrc/cpu/sample_crops.cpp: compiled with --fmad=false.
#include <cuda_runtime.h>

#include "../common/sample_crops.h"

namespace sinfusion {
namespace {

// A block of threads for each tile of pixels.
__global__ void __launch_bounds__(TILE_PIXELS) sample_crops_kernel(SampleCrops a) {
  __shared__ float normals[CROP_NORMALS];
  const Tile tile = tile_of(blockIdx.x, pixels_of(a));
  const int thread = int(threadIdx.x);
  draw_crop_normals(a, tile, thread, normals);
  __syncthreads();
  for (int index = thread; index < 3 * tile.count; index += TILE_PIXELS) crop_value(a, tile, normals, index);
}

}  // namespace

// Returns the error of the launch, 0 for none.
int sample_crops(const SampleCrops& a, void* cuda_stream) {
  const int64_t blocks = a.batch * tile_count(pixels_of(a));
  if (blocks == 0) return 0;
  if (blocks > INT32_MAX) return int(cudaErrorInvalidValue);
  sample_crops_kernel<<<unsigned(blocks), TILE_PIXELS, 0, static_cast<cudaStream_t>(cuda_stream)>>>(a);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
