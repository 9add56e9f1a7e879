// Nearest-neighbour field between the space-time patches of two videos (arguments: csrc/common/patch_match.h).
#pragma once
#include "../common/patch_match.h"

namespace sinfusion {

#define SINFUSION_DECLARE(name)          \
  namespace name {                       \
  void patch_match(const PatchMatch& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
SINFUSION_DECLARE(vnni)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
