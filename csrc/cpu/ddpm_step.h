// One step of a reverse process on the host (arguments: csrc/common/ddpm_step.h).
#pragma once
#include "../common/ddpm_step.h"

namespace sinfusion {

#define SINFUSION_DECLARE(name)      \
  namespace name {                   \
  void ddpm_step(const DdpmStep& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
