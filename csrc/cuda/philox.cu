// Uniform bits and standard normals on the device, the same bits as csrc/cpu/philox.cpp.
#include <cuda_runtime.h>

#include "../common/philox.h"

namespace sinfusion {
namespace {

constexpr int THREADS = 256;

// A thread for each Philox block, four numbers.
template <class T>
__global__ void __launch_bounds__(THREADS) draw_kernel(PhiloxRows a, T* out) {
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i < block_count(a)) draw_block(a, i, out);
}

template <class T>
int draw(const PhiloxRows& a, T* out, void* cuda_stream) {
  const int64_t grid = (block_count(a) + THREADS - 1) / THREADS;
  if (grid == 0) return 0;
  draw_kernel<<<unsigned(grid), THREADS, 0, static_cast<cudaStream_t>(cuda_stream)>>>(a, out);
  return int(cudaGetLastError());
}

}  // namespace

// Both return the error of the launch, 0 for none.
int uniform_bits(const PhiloxRows& a, int64_t* out, void* cuda_stream) { return draw(a, out, cuda_stream); }
int normal(const PhiloxRows& a, float* out, void* cuda_stream) { return draw(a, out, cuda_stream); }

}  // namespace sinfusion
