// The gradient of depthwise weights by Hopper's tensor cores on the host, for tests: a block after the other.
// What the device has, before what is written for it.
// clang-format off
#include "emulated_hopper.h"
#include "../../csrc/cuda/depthwise_weight_gradient_sm90.cu"
// clang-format on

using namespace sinfusion;

extern "C" void weight_gradient(const uint16_t* x, const uint16_t* skip, const uint16_t* grad, float* partial,
                                int32_t batch, int32_t height, int32_t width, int32_t channels, int32_t skip_channels,
                                int32_t parts) {
  depthwise_weight_gradient_sm90({x, skip, grad, partial, batch, height, width, channels, skip_channels, parts},
                                 nullptr);
}
