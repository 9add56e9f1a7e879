// Votes of matched patches on the device. The same bits as csrc/cpu/vote.cpp: compiled with --fmad=false.
#include <cuda_runtime.h>

#include "../common/vote.h"

namespace sinfusion {
namespace {

constexpr int THREADS = 256;

// A thread for each pixel and channel.
template <class T>
__global__ void __launch_bounds__(THREADS) vote_kernel(Vote a, int64_t count) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index < count) vote_value<T>(a, index);
}

}  // namespace

// Returns the error of the launch, 0 for none.
int vote(const Vote& a, void* cuda_stream) {
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  const Position size = output_size(a);
  const int64_t count = int64_t(size.t) * size.y * size.x * a.channels;
  const int64_t blocks = (count + THREADS - 1) / THREADS;
  if (blocks == 0) return 0;
  if (blocks > INT32_MAX) return int(cudaErrorInvalidValue);
  if (a.bf16)
    vote_kernel<bf16_t><<<unsigned(blocks), THREADS, 0, stream>>>(a, count);
  else
    vote_kernel<float><<<unsigned(blocks), THREADS, 0, stream>>>(a, count);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
