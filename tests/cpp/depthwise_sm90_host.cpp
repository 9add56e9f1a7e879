// Depthwise convolutions of Hopper's tensor cores on the host, for tests: a block after the other. Norms of 128
// channels, which two blocks make together, are not among them. What the device has, before what is written for it.
// clang-format off
#include "emulated_hopper.h"
#include "../../csrc/cuda/depthwise_sm90.cu"
// clang-format on

using namespace sinfusion;

extern "C" void depthwise(const uint16_t* x, const float* weight, const float* bias, const float* shift,
                          const float* gain, const float* offset, uint16_t* out, uint16_t* u, float* mean, float* rstd,
                          int32_t batch, int32_t height, int32_t width, float eps) {
  depthwise_sm90(
      {x, nullptr, weight, bias, shift, gain, offset, out, u, mean, rstd, 64, batch, height, width, 64, 0, eps},
      nullptr);
}

extern "C" void gradient(const uint16_t* grad, const float* weight, const uint16_t* add, const uint16_t* add_skip,
                         const uint16_t* passed, uint16_t* x, uint16_t* skip, int32_t batch, int32_t height,
                         int32_t width, int32_t channels, int32_t skip_channels) {
  depthwise_gradient_sm90({grad, weight, add, add_skip, passed, x, skip, batch, height, width, channels, skip_channels},
                          nullptr);
}
