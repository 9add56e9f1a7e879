// GELU and its derivative as Hopper's convolutions make them, on the host, for tests.
// What the device has, before what is written for it.
// clang-format off
#include "emulated_hopper.h"
#include "../../csrc/cuda/hopper/gelu.h"
// clang-format on

using namespace sinfusion;

extern "C" void gelu(const float* z, float* out, float* slope, int32_t count) {
  for (int32_t i = 0; i < count; ++i) out[i] = hopper::gelu_of(z[i]), slope[i] = hopper::slope_of_gelu(z[i]);
}
