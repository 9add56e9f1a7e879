// Adam and the moving average of the weights (arguments: csrc/common/adam_ema.h).
#pragma once
#include "../common/adam_ema.h"

namespace sinfusion {

#define SINFUSION_DECLARE(name)    \
  namespace name {                 \
  void adam_ema(const AdamEma& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
