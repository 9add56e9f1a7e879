// PatchMatch (Barnes et al. 2009) as a jump flood. In a step every query patch tries, at once, the matches of its
// neighbours `stride` away, a random position beside each of these, and two around its own best. The result depends on
// the field before the step alone: not on the order of patches, threads or the device.
//
// For host and device. The caller provides the distance between two patches; the device's, plain and scalar, is here,
// too, where tests compile it for the host. All functions are static, because this is compiled once for each
// instruction set.
#pragma once
#include <cstdint>

#include "philox.h"

namespace sinfusion {

// Of a patch: its first frame, row and column.
struct Position {
  int32_t t, y, x;
};

// Position of the match minus position of the query patch.
struct Offset {
  int16_t t, y, x;
};

constexpr int32_t NEIGHBOURS = 6;
constexpr int32_t RANDOM_CANDIDATES = NEIGHBOURS + 2;  // of a step: a multiple of 4, the words of a Philox block
constexpr int32_t FIRST_NEAR_LEVEL = 3;                // near candidates: within 1/2^3 of the key's size, or less
constexpr uint32_t PATCH_MATCH_STREAM = 0x50617463;    // "Patc"

constexpr float INFINITE_DISTANCE = __builtin_inff();

struct Volume {
  const int16_t* data;  // (T, H, W, C), not negative; readable up to 64 bytes past its end
  int64_t frames, height, width;
};

// Arguments are checked in Python (sinfusion/ops/patch_match.py).
struct PatchMatch {
  Volume query, key;
  int64_t channels;     // the squared differences of two patches sum to less than 2^31
  Position patch;       // frames, rows and columns of a patch
  const float* weight;  // of each key patch, or null: a factor of its distances; inf: never chosen
  int64_t steps;
  const int32_t* strides;  // (steps), in host memory
  uint64_t seed;
  bool has_initial_field;  // in `field`; else the search begins at random
  Offset* field;           // (query patches), in and out
  Offset* scratch_field;   // as large
  uint32_t* tried;         // (2, query patches), scratch: see Match
  float* distances;        // (query patches), out
};

struct SearchSpace {
  Position query, key;  // how many patches there are, along each axis
  uint64_t seed;
  Position far_radius, near_radius;  // of the candidates around a patch's own best
};

// The radii take turns from step to step: far is 1, 1/2 and 1/4 of the key's size; near is 1/8, 1/16, ... down to 1
// pixel.
SINFUSION_HD static inline SearchSpace search_space(Position query, Position key, uint64_t seed, uint64_t step) {
  int32_t longest = key.x > key.y ? key.x : key.y, levels = 0;
  if (key.t > longest) longest = key.t;
  while (longest >> (levels + FIRST_NEAR_LEVEL) > 0) ++levels;
  if (levels == 0) levels = 1;
  const auto within = [key](int32_t level) {
    return Position{key.t >> level > 1 ? key.t >> level : 1, key.y >> level > 1 ? key.y >> level : 1,
                    key.x >> level > 1 ? key.x >> level : 1};
  };
  return {query, key, seed, within(int32_t(step % FIRST_NEAR_LEVEL)),
          within(FIRST_NEAR_LEVEL + int32_t(step % uint64_t(levels)))};
}

SINFUSION_HD static inline Position patch_counts(const Volume& video, const Position& patch) {
  return {int32_t(video.frames - patch.t + 1), int32_t(video.height - patch.y + 1), int32_t(video.width - patch.x + 1)};
}

SINFUSION_HD static inline SearchSpace search_space(const PatchMatch& a, uint64_t step) {
  return search_space(patch_counts(a.query, a.patch), patch_counts(a.key, a.patch), a.seed, step);
}

SINFUSION_HD static inline bool equal(Position a, Position b) { return (a.t == b.t) & (a.y == b.y) & (a.x == b.x); }

SINFUSION_HD static inline int32_t clamp_index(int32_t value, int32_t count) {
  return value < 0 ? 0 : value >= count ? count - 1 : value;
}

SINFUSION_HD static inline Position match_position(Position query, Offset offset, Position count) {
  return {clamp_index(query.t + offset.t, count.t), clamp_index(query.y + offset.y, count.y),
          clamp_index(query.x + offset.x, count.x)};
}

SINFUSION_HD static inline Offset offset_between(Position query, Position key) {
  return {int16_t(key.t - query.t), int16_t(key.y - query.y), int16_t(key.x - query.x)};
}

SINFUSION_HD static inline int64_t linear_index(Position p, Position count) {
  return (int64_t(p.t) * count.y + p.y) * count.x + p.x;
}

SINFUSION_HD static inline Position position_at(int64_t index, Position count) {
  const int64_t row = index / count.x;
  return {int32_t(row / count.y), int32_t(row % count.y), int32_t(index % count.x)};
}

// Uniform among the positions within `radius` of the centre, from `bits` random bits.
SINFUSION_HD static inline int32_t random_near(int32_t centre, int32_t radius, int32_t count, uint32_t random,
                                               int bits) {
  const int32_t low = centre > radius ? centre - radius : 0;
  const int32_t high = centre + radius < count ? centre + radius : count - 1;
  return low + int32_t((uint32_t(high - low + 1) * random) >> bits);
}

// Where the search begins without an initial field; it takes a Philox block.
SINFUSION_HD static inline Position random_position(const SearchSpace& g, int64_t index) {
  const PhiloxBlock r = philox_block(g.seed, PATCH_MATCH_STREAM, 0, uint32_t(index));
  const auto pick = [](int32_t count, uint32_t word) { return int32_t((uint64_t(count) * word) >> 32); };
  return {pick(g.key.t, r.v[0]), pick(g.key.y, r.v[1]), pick(g.key.x, r.v[2])};
}

// The Philox step of block `part` < RANDOM_CANDIDATES / 4 of the random words for step 1, 2, ...
SINFUSION_HD static inline uint64_t random_words_step(uint64_t step, int part) {
  return step * (RANDOM_CANDIDATES / 4) + part;
}

// Where a query patch was found, how far that is, and which places need not be tried again: the distance only falls, so
// what was not nearer once never is. tried, bits 0 to 26: of the 27 places at most 1 away from this one, since it was
// found. Bits 27 to 31: for how many steps this is the place, at most LONGEST.
struct Match {
  Position place;
  float distance;
  uint32_t tried;
};
constexpr int PLACES_AROUND = 27;
constexpr uint32_t BITS_AROUND = (1u << PLACES_AROUND) - 1;
constexpr int32_t LONGEST = 31;

// A step's stride, and how many steps ago the last one of the same stride was; more than LONGEST: none that counts.
struct Stride {
  int32_t length, steps_ago;
};

SINFUSION_HD static inline int32_t steps_since_found(uint32_t tried) { return int32_t(tried >> PLACES_AROUND); }

// The bit of a place in `tried` of a match; 0 where it is farther away.
SINFUSION_HD static inline uint32_t bit_of(Position p, Position match) {
  const uint32_t t = uint32_t(p.t - match.t + 1), y = uint32_t(p.y - match.y + 1), x = uint32_t(p.x - match.x + 1);
  return uint32_t((t < 3) & (y < 3) & (x < 3)) << ((9 * t + 3 * y + x) & 31);
}

// `tried` after a step, from that before it and the bits of the places that it tried around its match.
SINFUSION_HD static inline uint32_t tried_after(uint32_t tried, uint32_t bits, bool moved) {
  const int32_t steps = steps_since_found(tried) + 1;
  return bits | (moved ? 0u : uint32_t(steps < LONGEST ? steps : LONGEST) << PLACES_AROUND);
}

// What a step reads of the state before it, and writes; a number for each query patch.
struct SearchStep {
  uint64_t number;  // 1, 2, ...
  Stride stride;
  const Offset* field_in;
  const uint32_t* tried_in;
  Offset* field_out;
  uint32_t* tried_out;
};

// Calls run(SearchStep) for each step of a search over `count` query patches, and returns where the field is then.
template <class Run>
static inline const Offset* run_steps(const PatchMatch& a, int64_t count, const Run& run) {
  Offset* fields[2] = {a.field, a.scratch_field};
  for (int64_t i = 0; i < a.steps; ++i) {
    int32_t steps_ago = 1;
    while (steps_ago <= LONGEST && (steps_ago > i || a.strides[i - steps_ago] != a.strides[i])) ++steps_ago;
    const int64_t from = i % 2, to = 1 - from;
    run(SearchStep{uint64_t(i + 1),
                   {a.strides[i], steps_ago},
                   fields[from],
                   a.tried + from * count,
                   fields[to],
                   a.tried + to * count});
  }
  return fields[a.steps % 2];
}

// A step for the query patch at q, whose match is updated. words: RANDOM_CANDIDATES random words. distance(key, limit),
// from the query patch to one of the key's, may return anything from `limit` on where the distance is not below it.
template <class Distance>
SINFUSION_HD static inline void patch_match_step(const SearchSpace& g, const SearchStep& step, Position q,
                                                 const uint32_t* words, const Distance& distance, Match& match) {
  if (match.distance <= 0) {
    match.tried = tried_after(match.tried, 0, false);
    return;
  }
  int32_t t[RANDOM_CANDIDATES], y[RANDOM_CANDIDATES], x[RANDOM_CANDIDATES], count = 0;  // candidates
  Position neighbour_matches[NEIGHBOURS];
  const Position own = match.place;
  uint32_t tried = match.tried | bit_of(own, own);
  // Candidates are gathered before they are compared: else threads of a warp diverge at each of them. And without
  // branches, which could not be predicted: one that is not new is overwritten.
  const auto gather = [&](Position key, bool is_new) {
    const uint32_t bit = bit_of(key, match.place);
    t[count] = key.t, y[count] = key.y, x[count] = key.x;
    count += is_new & ((tried & bit) == 0);
    tried |= bit;
  };
  const auto improve = [&] {
    const Position centre = match.place;
    for (int32_t i = 0; i < count; ++i) {
      const Position key = {t[i], y[i], x[i]};
      const float found = distance(key, match.distance);
      if (found < match.distance) match.distance = found, match.place = key;
    }
    if (!equal(match.place, centre)) tried = bit_of(own, own);
    count = 0;
  };
  for (int32_t side = 0; side < NEIGHBOURS; ++side) {
    const int32_t axis = side / 2, move = side % 2 ? step.stride.length : -step.stride.length;
    const Position from = {q.t + (axis == 0 ? move : 0), q.y + (axis == 1 ? move : 0), q.x + (axis == 2 ? move : 0)};
    const bool inside_query = (from.t >= 0) & (from.t < g.query.t) & (from.y >= 0) & (from.y < g.query.y) &
                              (from.x >= 0) & (from.x < g.query.x);
    const int64_t index = linear_index(inside_query ? from : q, g.query);
    const Position key = match_position(q, step.field_in[index], g.key);
    bool is_new = steps_since_found(step.tried_in[index]) < step.stride.steps_ago;  // else it was tried then
    for (int32_t i = 0; i < side; ++i) is_new &= !equal(key, neighbour_matches[i]);
    neighbour_matches[side] = key;
    gather(key, is_new);
  }
  improve();
  for (int32_t i = 0; i < RANDOM_CANDIDATES; ++i) {
    const bool of_neighbour = i < NEIGHBOURS;
    const Position centre = of_neighbour ? neighbour_matches[i] : match.place;
    const Position radius = of_neighbour ? Position{1, 1, 1} : i == NEIGHBOURS ? g.far_radius : g.near_radius;
    gather({random_near(centre.t, radius.t, g.key.t, words[i] >> 24, 8),
            random_near(centre.y, radius.y, g.key.y, words[i] >> 12 & 0xfff, 12),
            random_near(centre.x, radius.x, g.key.x, words[i] & 0xfff, 12)},
           true);
  }
  improve();
  const bool moved = !equal(match.place, own);
  match.tried = tried_after(match.tried, tried & BITS_AROUND, moved);
}

// The device's part: a thread for each query patch, `index` of the field.

SINFUSION_HD static inline const int16_t* pixel_at(const Volume& video, int64_t channels, int64_t t, int64_t y,
                                                   int64_t x) {
  return video.data + ((t * video.height + y) * video.width + x) * channels;
}

// The weighted sum of squared differences of two patches; stops after a frame where it reaches `limit`. Rounding to
// float and the product with a weight are monotonic, so stopping changes no result.
SINFUSION_HD static inline float patch_distance(const PatchMatch& a, Position count, Position q, Position k,
                                                float limit) {
  const float weight = a.weight ? a.weight[linear_index(k, count)] : 1;
  if (weight == INFINITE_DISTANCE) return INFINITE_DISTANCE;
  const int32_t row = int32_t(a.patch.x * a.channels);
  int32_t total = 0;
  for (int32_t t = 0;;) {
    for (int32_t y = 0; y < a.patch.y; ++y) {
      const int16_t* from = pixel_at(a.query, a.channels, q.t + t, q.y + y, q.x);
      const int16_t* to = pixel_at(a.key, a.channels, k.t + t, k.y + y, k.x);
      for (int32_t i = 0; i < row; ++i) {
        const int32_t difference = int32_t(from[i]) - int32_t(to[i]);
        total += difference * difference;
      }
    }
    const float found = float(total) * weight;
    if (++t == a.patch.t || found >= limit) return found;
  }
}

SINFUSION_HD static inline void initialize_patch(const PatchMatch& a, const SearchSpace& g, int64_t index) {
  const Position q = position_at(index, g.query);
  const Position k = a.has_initial_field ? match_position(q, a.field[index], g.key) : random_position(g, index);
  a.field[index] = offset_between(q, k);
  a.tried[index] = 0;
  a.distances[index] = patch_distance(a, g.key, q, k, INFINITE_DISTANCE);
}

// A step for one query patch.
SINFUSION_HD static inline void step_patch(const PatchMatch& a, const SearchSpace& g, const SearchStep& step,
                                           int64_t index) {
  uint32_t words[RANDOM_CANDIDATES];
  for (int part = 0; part < RANDOM_CANDIDATES / 4; ++part) {
    const uint64_t word_step = random_words_step(step.number, part);
    const PhiloxBlock block = philox_block(g.seed, PATCH_MATCH_STREAM, word_step, uint32_t(index));
    for (int i = 0; i < 4; ++i) words[4 * part + i] = block.v[i];
  }
  const Position q = position_at(index, g.query);
  Match match = {match_position(q, step.field_in[index], g.key), a.distances[index], step.tried_in[index]};
  const auto distance = [&](Position to, float limit) { return patch_distance(a, g.key, q, to, limit); };
  patch_match_step(g, step, q, words, distance, match);
  step.field_out[index] = offset_between(q, match.place);
  step.tried_out[index] = match.tried;
  a.distances[index] = match.distance;
}

}  // namespace sinfusion
