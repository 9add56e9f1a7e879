// Uniform bits and standard normals on the device: the numbers of csrc/cpu/philox.cpp.
#include <cuda_runtime.h>

#include "../common/philox.h"

namespace sinfusion {
namespace {

constexpr int THREADS = 256;

// One thread a block of four numbers, in both. seeds (batch), out (batch, count).
__global__ void __launch_bounds__(THREADS)
    uniform_bits_kernel(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, int64_t* out) {
  const int64_t blocks = (count + 3) / 4;
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= batch * blocks) return;
  const int64_t b = i / blocks, first = i % blocks * 4;
  const PhiloxBlock r = philox_block(uint64_t(seeds[b]), stream, value_of(at), uint32_t(first / 4));
  for (int k = 0; k < 4 && first + k < count; ++k) out[b * count + first + k] = r.v[k];
}

__global__ void __launch_bounds__(THREADS)
    normal_kernel(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, float* out) {
  const int64_t blocks = (count + 3) / 4;
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= batch * blocks) return;
  const int64_t b = i / blocks, first = i % blocks * 4;
  float four[4];
  normals(philox_block(uint64_t(seeds[b]), stream, value_of(at), uint32_t(first / 4)), four);
  for (int k = 0; k < 4 && first + k < count; ++k) out[b * count + first + k] = four[k];
}

unsigned grid(int64_t batch, int64_t count) {
  return unsigned((batch * ((count + 3) / 4) + THREADS - 1) / THREADS);
}

}  // namespace

// Both return the error of the launch, 0 for none.
int uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, int64_t* out,
                 void* cuda_stream) {
  if (batch * count == 0) return 0;
  uniform_bits_kernel<<<grid(batch, count), THREADS, 0, static_cast<cudaStream_t>(cuda_stream)>>>(
      seeds, batch, stream, at, count, out);
  return int(cudaGetLastError());
}

int normal(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, float* out,
           void* cuda_stream) {
  if (batch * count == 0) return 0;
  normal_kernel<<<grid(batch, count), THREADS, 0, static_cast<cudaStream_t>(cuda_stream)>>>(seeds, batch, stream, at,
                                                                                           count, out);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
