// Folding of matched patches: every pixel becomes the median, or the weighted mean, of what all patches over it suggest.
// Arguments are checked in Python (sinfusion/ops/vote.py); pointers may be null where noted.
#pragma once
#include "../common/patch_match.h"

namespace sinfusion {

struct Vote {
  const void* value;  // (T, H, W, C): where the matches lie
  int32_t height, width;
  bool bf16;  // value and out, else fp32
  int64_t channels;
  Place patch;          // frames, rows and columns of a patch
  Place count;          // places in the field
  const Offset* field;  // every match lies inside `value`
  bool mean;            // else median
  const float* weight;  // one for each place, or null: all alike; for the mean
  void* out;            // (count + patch - 1, C)
};

#define SINFUSION_DECLARE(name) \
  namespace name {              \
  void vote(const Vote& a);     \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
