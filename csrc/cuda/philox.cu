// Standard normals on the device: the numbers of csrc/cpu/philox.cpp.
#include <cuda_runtime.h>

#include "../common/philox.h"

namespace sinfusion {
namespace {

// One thread a block of four numbers. seeds (batch), out (batch, count).
__global__ void normal_kernel(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count,
                              float* out) {
  const int64_t blocks = (count + 3) / 4;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= batch * blocks) return;
  const int64_t b = i / blocks, block = i % blocks;
  const PhiloxBlock r = philox_block(uint64_t(seeds[b]), stream, step, uint32_t(block));
  float* to = out + b * count + block * 4;
  for (int k = 0; k < 4; k += 2) {
    const double radius = sqrt(-2.0 * log((r.v[k] + 0.5) * 0x1p-32));
    const double angle = 6.283185307179586 * (r.v[k + 1] * 0x1p-32);
    if (block * 4 + k < count) to[k] = float(radius * cos(angle));
    if (block * 4 + k + 1 < count) to[k + 1] = float(radius * sin(angle));
  }
}

}  // namespace

// Returns the error of the launch, 0 for none.
int normal(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, float* out,
           void* cuda_stream) {
  const int64_t threads = batch * ((count + 3) / 4);
  normal_kernel<<<unsigned((threads + 255) / 256), 256, 0, static_cast<cudaStream_t>(cuda_stream)>>>(
      seeds, batch, stream, step, count, out);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
