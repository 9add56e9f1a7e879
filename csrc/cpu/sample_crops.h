// A training batch on the host (arguments: csrc/common/sample_crops.h).
#pragma once
#include "../common/sample_crops.h"

namespace sinfusion {

#define SINFUSION_DECLARE(name)            \
  namespace name {                         \
  void sample_crops(const SampleCrops& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
