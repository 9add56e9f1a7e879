// to += value, rounded as PyTorch does: gradients of what two calls of a recording have read.
#pragma once
#include <cstdint>

namespace sinfusion {

#define SINFUSION_DECLARE(name)                                 \
  namespace name {                                              \
  void add(float* to, const float* value, int64_t count);       \
  void add(uint16_t* to, const uint16_t* value, int64_t count); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
