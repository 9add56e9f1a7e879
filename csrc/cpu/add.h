// to += value, rounded as PyTorch does. Adds up gradients of what several calls of a recording have read.
#pragma once
#include "../common/bf16.h"

namespace sinfusion {

#define SINFUSION_DECLARE(name)                             \
  namespace name {                                          \
  void add(float* to, const float* value, int64_t count);   \
  void add(bf16_t* to, const bf16_t* value, int64_t count); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
