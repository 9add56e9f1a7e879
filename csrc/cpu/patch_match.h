// Nearest-neighbour field between the space-time patches of two videos, and the folding of matched patches.
// Arguments are checked in Python (sinfusion/ops/patch_match.py, vote.py); pointers may be null where noted.
#pragma once
#include "../common/patch_match.h"

namespace sinfusion {

struct Volume {
  const int16_t* data;  // (T, H, W, C), not negative; readable up to 64 bytes past its end
  int64_t frames, height, width;
};

struct PatchMatch {
  Volume query, key;
  int64_t channels;     // the squared differences of two patches sum to less than 2^31
  Place patch;          // frames, rows and columns of a patch
  const float* weight;  // one for each patch of the key, or null: distances are multiplied by it; inf: never chosen
  int64_t steps;
  const int32_t* strides;  // (steps)
  uint64_t seed;
  bool started;      // whether `field` holds a field to start from
  Offset* field;     // in and out, one for each patch of the query
  Offset* other;     // as large, to work with
  float* distances;  // out, likewise
};

// Rows of patches are short: wider vectors than AVX2's gain nothing.
#define SINFUSION_DECLARE(name)          \
  namespace name {                       \
  void patch_match(const PatchMatch& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
