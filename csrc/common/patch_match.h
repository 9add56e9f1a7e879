// One step of PatchMatch (Barnes et al. 2009) as a jump flood: every patch of the query looks, at once, at what its
// neighbours `stride` away had found, and at random places around the best of that. What a step gives depends on the
// field before it alone: not on the order of the patches, nor on threads or devices.
//
// For host and device; the distance between two patches is the caller's. Static, because this is compiled once for
// each instruction set.
#pragma once
#include <cstdint>

#include "philox.h"

namespace sinfusion {

// Where a patch begins: the first of its frames, rows and columns.
struct Place {
  int32_t t, y, x;
};

// Place of the match minus place of the query.
struct Offset {
  int16_t t, y, x;
};

constexpr int32_t RANDOM_PLACES = 8;  // a step, a multiple of 4
constexpr int32_t FIRST_LEVEL = 3;     // of random places: within an eighth of the key's size
constexpr uint32_t PATCH_MATCH_STREAM = 0x50617463;  // "Patc"

struct PatchMatchGrids {
  Place query, key;  // how many places there are
  uint64_t seed;
  int32_t reach_t[RANDOM_PLACES], reach_y[RANDOM_PLACES], reach_x[RANDOM_PLACES];  // of the random places
};

// Random places are looked for within an eighth of the key's size, a sixteenth, ... and 1; then from an eighth again.
SINFUSION_HD static inline PatchMatchGrids grids_of(Place query, Place key, uint64_t seed) {
  PatchMatchGrids g{query, key, seed, {}, {}, {}};
  int32_t longest = key.x > key.y ? key.x : key.y, levels = 0;
  if (key.t > longest) longest = key.t;
  while (longest >> (levels + FIRST_LEVEL) > 0) ++levels;
  if (levels == 0) levels = 1;
  for (int32_t i = 0; i < RANDOM_PLACES; ++i) {
    const int32_t level = FIRST_LEVEL + i % levels;
    g.reach_t[i] = key.t >> level > 1 ? key.t >> level : 1;
    g.reach_y[i] = key.y >> level > 1 ? key.y >> level : 1;
    g.reach_x[i] = key.x >> level > 1 ? key.x >> level : 1;
  }
  return g;
}

SINFUSION_HD static inline bool same(Place a, Place b) { return a.t == b.t && a.y == b.y && a.x == b.x; }

SINFUSION_HD static inline int32_t clamped(int32_t value, int32_t count) {
  return value < 0 ? 0 : value >= count ? count - 1 : value;
}

SINFUSION_HD static inline Place matched(Place query, Offset offset, Place count) {
  return {clamped(query.t + offset.t, count.t), clamped(query.y + offset.y, count.y),
          clamped(query.x + offset.x, count.x)};
}

SINFUSION_HD static inline Offset offset_between(Place query, Place key) {
  return {int16_t(key.t - query.t), int16_t(key.y - query.y), int16_t(key.x - query.x)};
}

SINFUSION_HD static inline int64_t number_of(Place place, Place count) {
  return (int64_t(place.t) * count.y + place.y) * count.x + place.x;
}

// Uniform in what lies within reach of the centre, from `bits` random bits.
SINFUSION_HD static inline int32_t around(int32_t centre, int32_t reach, int32_t count, uint32_t random, int bits) {
  const int32_t low = centre > reach ? centre - reach : 0;
  const int32_t high = centre + reach < count ? centre + reach : count - 1;
  return low + int32_t((uint32_t(high - low + 1) * random) >> bits);
}

// Where the search begins if nothing is known: all bits of a block for one place.
SINFUSION_HD static inline Place random_start(const PatchMatchGrids& g, int64_t number) {
  const PhiloxBlock r = philox_block(g.seed, PATCH_MATCH_STREAM, 0, uint32_t(number));
  const auto pick = [](int32_t count, uint32_t word) { return int32_t((uint64_t(count) * word) >> 32); };
  return {pick(g.key.t, r.v[0]), pick(g.key.y, r.v[1]), pick(g.key.x, r.v[2])};
}

// Block `part`, below RANDOM_PLACES / 4, of the random words for a place in step 1, 2, ...
SINFUSION_HD static inline uint64_t words_step(uint64_t step, int part) { return step * (RANDOM_PLACES / 4) + part; }

// One step at query place `q`: reads the field `before`; `best` and `least` go in and come out. `words` are the
// RANDOM_PLACES random words; distance(q, key, least) is the distance, or anything from `least` upwards if it is no less.
template <class Distance>
SINFUSION_HD static inline void patch_match_step(const PatchMatchGrids& g, const Offset* before, Place q,
                                                 int32_t stride, const uint32_t* words, const Distance& distance,
                                                 Place& best, float& least) {
  if (least <= 0) return;
  Place tried[6];
  int32_t count = 0;
  for (int32_t side = 0; side < 6; ++side) {
    const int32_t axis = side / 2, move = side % 2 ? stride : -stride;
    const Place from = {q.t + (axis == 0 ? move : 0), q.y + (axis == 1 ? move : 0), q.x + (axis == 2 ? move : 0)};
    if (from.t < 0 || from.t >= g.query.t || from.y < 0 || from.y >= g.query.y || from.x < 0 || from.x >= g.query.x)
      continue;
    const Place key = matched(q, before[number_of(from, g.query)], g.key);
    bool known = same(key, best);
    for (int32_t i = 0; i < count; ++i) known = known || same(key, tried[i]);
    if (known) continue;
    tried[count++] = key;
    const float found = distance(q, key, least);
    if (found < least) least = found, best = key;
  }
  int32_t t[RANDOM_PLACES], y[RANDOM_PLACES], x[RANDOM_PLACES];
  for (int32_t i = 0; i < RANDOM_PLACES; ++i) {
    t[i] = around(best.t, g.reach_t[i], g.key.t, words[i] >> 24, 8);
    y[i] = around(best.y, g.reach_y[i], g.key.y, words[i] >> 12 & 0xfff, 12);
    x[i] = around(best.x, g.reach_x[i], g.key.x, words[i] & 0xfff, 12);
  }
  for (int32_t i = 0; i < RANDOM_PLACES; ++i) {
    const Place key = {t[i], y[i], x[i]};
    const float found = distance(q, key, least);
    if (found < least) least = found, best = key;
  }
}

}  // namespace sinfusion
