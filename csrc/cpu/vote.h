// Votes of matched patches on the host (arguments: csrc/common/vote.h).
#pragma once
#include "../common/vote.h"

namespace sinfusion {

#define SINFUSION_DECLARE(name) \
  namespace name {              \
  void vote(const Vote& a);     \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
