// Adam and the moving average of the weights on the device. The same bits as csrc/cpu/adam_ema.cpp: compiled with
// --fmad=false; roots and quotients are correctly rounded, nvcc's default.
#include <cuda_runtime.h>

#include "../common/adam_ema.h"

namespace sinfusion {
namespace {

constexpr int THREADS = 256;

template <bool Aligned>
__global__ void __launch_bounds__(THREADS) adam_ema_kernel(AdamEma a) {
  adam_ema_of_thread<Aligned>(a, int64_t(blockIdx.x) * THREADS + threadIdx.x);
}

}  // namespace

// Returns the error of the launch, 0 for none.
int adam_ema(const AdamEma& a, void* cuda_stream) {
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  const bool vectorized = aligned(a);
  const int64_t blocks = (threads_of(a, vectorized) + THREADS - 1) / THREADS;
  if (blocks == 0) return 0;
  if (blocks > INT32_MAX) return int(cudaErrorInvalidValue);
  if (vectorized)
    adam_ema_kernel<true><<<unsigned(blocks), THREADS, 0, stream>>>(a);
  else
    adam_ema_kernel<false><<<unsigned(blocks), THREADS, 0, stream>>>(a);
  return int(cudaGetLastError());
}

}  // namespace sinfusion
