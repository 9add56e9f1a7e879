// The k nearest patches of a video for each patch of another, exactly.
#pragma once
#include "../common/patch_match.h"

namespace sinfusion {

// Arguments are checked in Python (sinfusion/ops/nearest_patches.py). Videos are (channel_pairs, T, H, W, 2) int16,
// readable 512 bytes past their end; the squares of a patch's values sum to less than 2^31.
struct NearestPatches {
  Volume query, key;
  int64_t channel_pairs;
  Position patch;   // frames, rows and columns
  int64_t k;        // at most as many as the key has patches
  int32_t* norms;   // (T, H, W) of the key and 256 more, scratch
  int32_t* index;   // (query patches, k), out: the numbers of the key's patches
  float* distance;  // (query patches, k), out: sums of squares, ascending; then by index
};

// A distance above a number: in their order.
inline uint64_t ranked(uint32_t distance, uint32_t index) { return uint64_t(distance) << 32 | index; }

// Puts the k smallest of `count` values first, the largest of them last among these.
void keep_smallest(uint64_t* values, int64_t count, int64_t k);
// The k smallest in ascending order.
void sort_smallest(uint64_t* values, int64_t count, int64_t k);

#define SINFUSION_DECLARE(name)                  \
  namespace name {                               \
  void nearest_patches(const NearestPatches& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
SINFUSION_DECLARE(vnni)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
