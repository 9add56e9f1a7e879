// The mean of neighbours' values, weighted by how likely each is.
#pragma once
#include <stdint.h>

namespace sinfusion {

// Arguments are checked in Python (sinfusion/ops/posterior.py).
struct Posterior {
  int64_t count, k;
  const int32_t* rows;    // (count, k): of `values`
  const float* distance;  // (count, k)
  const float* values;    // (M, size)
  int64_t size;
  float of_distance;
  const float* observed;  // (count, size), or null
  float of_observed;
  float* out;  // (count, size)
};

#define SINFUSION_DECLARE(name)       \
  namespace name {                    \
  void posterior(const Posterior& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
