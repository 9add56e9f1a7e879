// Uniform bits and standard normals, a row for each seed (arguments: csrc/common/philox.h).
#pragma once
#include "../common/philox.h"

namespace sinfusion {

#define SINFUSION_DECLARE(name)                         \
  namespace name {                                      \
  void uniform_bits(const PhiloxRows& a, int64_t* out); \
  void normal(const PhiloxRows& a, float* out);         \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
