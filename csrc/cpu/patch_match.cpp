// Compiled once for each instruction set; no C++ library here (see vector.h).
#include "patch_match.h"

#include "always_inline.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int64_t ROWS_PER_CHUNK = 4;  // of patches

struct StridedVolume {
  StridedVolume(const Volume& video, int64_t channels)
      : data(video.data),
        pixel_stride(channels),
        row_stride(video.width * pixel_stride),
        frame_stride(video.height * row_stride) {}
  const int16_t* at(Position p) const { return data + p.t * frame_stride + p.y * row_stride + p.x * pixel_stride; }
  const int16_t* data;
  int64_t pixel_stride, row_stride, frame_stride;
};

// What patches of both videos are made of. A row is full vectors and a part of one.
struct Layout {
  explicit Layout(const PatchMatch& a)
      : query(a.query, a.channels),
        key(a.key, a.channels),
        patch(a.patch),
        key_count(patch_counts(a.key, a.patch)),
        weight(a.weight),
        full_vectors(a.patch.x * a.channels / (2 * LANES)),
        rest(first_lanes(int(a.patch.x * a.channels % (2 * LANES)))),
        may_stop_early(a.patch.y * (full_vectors + 1) >= 14) {}
  float weight_of(Position k) const { return weight ? weight[linear_index(k, key_count)] : 1; }

  StridedVolume query, key;
  Position patch, key_count;
  const float* weight;
  int64_t full_vectors;
  lanes_i16 rest;
  bool may_stop_early;  // reducing the sum after each frame takes as long as several vectors: worth it for large frames
};

ALWAYS_INLINE vec_i16 at(const int16_t* p) { return *reinterpret_cast<const vec_i16*>(p); }

// A query's patch; called with the place of one of the key's, it returns the weighted sum of squared differences, as
// patch_distance in ../common/patch_match.h.
class AnyPatch {
 public:
  AnyPatch(const Layout& layout, Position q) : l_(layout), from_(layout.query.at(q)) {}

  float operator()(Position k, float limit) const {
    const float weight = l_.weight_of(k);
    if (weight == INFINITE_DISTANCE) return INFINITE_DISTANCE;
    const int16_t* to = l_.key.at(k);
    return l_.full_vectors == 0   ? sum<0>(to, weight, limit)
           : l_.full_vectors == 1 ? sum<1>(to, weight, limit)
                                  : sum<-1>(to, weight, limit);
  }

 private:
  template <int FULL>  // vectors of a row; -1: not known at compile time
  float sum(const int16_t* to, float weight, float limit) const {
    const int64_t full = FULL < 0 ? l_.full_vectors : FULL;
    const int16_t* from = from_;
    vec_i32 total{};
    for (int32_t t = 0;; from += l_.query.frame_stride, to += l_.key.frame_stride) {
      const int16_t *a = from, *b = to;
      for (int32_t y = 0; y < l_.patch.y; ++y, a += l_.query.row_stride, b += l_.key.row_stride) {
        for (int64_t i = 0; i < full; ++i) total = add_squares(total, at(a + i * 2 * LANES) - at(b + i * 2 * LANES));
        total = add_squares(total, subtract(l_.rest, at(a + full * 2 * LANES), at(b + full * 2 * LANES)));
      }
      if (++t < l_.patch.t && !l_.may_stop_early) continue;
      const float found = float(reduce_add(total)) * weight;
      if (t == l_.patch.t || found >= limit) return found;
    }
  }

  const Layout& l_;
  const int16_t* from_;
};

// The same of 7x7 pixels with three numbers, which is what most searches are for: its rows stay in registers where
// these are enough, and all loops are unrolled.
constexpr int SIDE = 7, CHANNELS = 3;
template <int FRAMES>
class ColourPatch {
 public:
  ALWAYS_INLINE ColourPatch(const Layout& layout, Position q) : l_(layout) {
    const int16_t* from = l_.query.at(q);
#pragma GCC unroll 3
    for (int t = 0; t < FRAMES; ++t, from += l_.query.frame_stride) {
      const int16_t* a = from;
#pragma GCC unroll 7
      for (int y = 0; y < SIDE; ++y, a += l_.query.row_stride)
        for (int i = 0; i <= FULL; ++i) rows_[t][y][i] = at(a + i * 2 * LANES);
    }
  }

  ALWAYS_INLINE float operator()(Position k, float) const {
    const float weight = l_.weight_of(k);
    if (weight == INFINITE_DISTANCE) return INFINITE_DISTANCE;
    const int16_t* to = l_.key.at(k);
    vec_i32 total{};
#pragma GCC unroll 3
    for (int t = 0; t < FRAMES; ++t, to += l_.key.frame_stride) {
      const int16_t* b = to;
      vec_i32 of_frame{};  // sums that do not wait for each other
#pragma GCC unroll 7
      for (int y = 0; y < SIDE; ++y, b += l_.key.row_stride) {
        for (int i = 0; i < FULL; ++i) of_frame = add_squares(of_frame, rows_[t][y][i] - at(b + i * 2 * LANES));
        of_frame = add_squares(of_frame, subtract(l_.rest, rows_[t][y][FULL], at(b + FULL * 2 * LANES)));
      }
      total += of_frame;
    }
    return float(reduce_add(total)) * weight;
  }

 private:
  static constexpr int FULL = SIDE * CHANNELS / (2 * LANES);
  const Layout& l_;
  vec_i16 rows_[FRAMES][SIDE][FULL + 1];
};

// The random words of LANES consecutive patches.
class RandomWords {
 public:
  void draw(uint64_t seed, uint64_t step, int64_t first) {
    for (int part = 0; part < RANDOM_CANDIDATES / 4; ++part) {
      const auto blocks =
          philox_blocks<LANES>(seed, PATCH_MATCH_STREAM, random_words_step(step, part), uint32_t(first));
      for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 4; ++i) words_[lane][4 * part + i] = blocks.v[i][lane];
    }
  }
  const uint32_t* of(int lane) const { return words_[lane]; }

 private:
  uint32_t words_[LANES][RANDOM_CANDIDATES];
};

// All candidates of a step at once.
typedef int32_t candidates_i32 __attribute__((vector_size(RANDOM_CANDIDATES * 4), aligned(4), may_alias));
typedef uint32_t candidates_u32 __attribute__((vector_size(RANDOM_CANDIDATES * 4), aligned(4), may_alias));

ALWAYS_INLINE uint32_t bits_of(candidates_i32 is) {  // of lanes that are 0 or -1
#if defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)is));
#else
  uint32_t bits = 0;
  for (int i = 0; i < RANDOM_CANDIDATES; ++i) bits |= uint32_t(is[i] & 1) << i;
  return bits;
#endif
}
ALWAYS_INLINE candidates_i32 smaller(candidates_i32 a, candidates_i32 b) { return a < b ? a : b; }
ALWAYS_INLINE candidates_i32 larger(candidates_i32 a, candidates_i32 b) { return a > b ? a : b; }
ALWAYS_INLINE candidates_i32 clamp_indices(candidates_i32 value, int32_t count) {
  return smaller(larger(value, candidates_i32{}), candidates_i32{} + (count - 1));
}
ALWAYS_INLINE candidates_i32 random_near(candidates_i32 centre, candidates_i32 radius, int32_t count,
                                         candidates_u32 random, int bits) {
  const candidates_i32 low = clamp_indices(centre - radius, count), high = clamp_indices(centre + radius, count);
  return low + (candidates_i32)((candidates_u32)(high - low + 1) * random >> bits);
}

struct Candidates {
  candidates_i32 t, y, x;

  Position operator[](int i) const { return {t[i], y[i], x[i]}; }
  ALWAYS_INLINE candidates_i32 equal_to(Position p) const { return (t == p.t) & (y == p.y) & (x == p.x); }
  // As bit_of, of each.
  ALWAYS_INLINE candidates_u32 bits(Position match) const {
    const candidates_i32 dt = t - (match.t - 1), dy = y - (match.y - 1), dx = x - (match.x - 1);
    const candidates_i32 beyond = (dt | dy | dx | (dt + 1) | (dy + 1) | (dx + 1)) & ~3;  // than 0, 1 and 2
    return (candidates_u32)(beyond == 0) & ((candidates_u32{} + 1) << ((9 * dt + 3 * dy + dx) & 31));
  }
};

// As patch_match_step in ../common/patch_match.h, without branches where candidates are chosen: these could not be
// predicted.
template <class Distance>
ALWAYS_INLINE void step_at_once(const SearchSpace& g, const SearchStep& step, Position q, const uint32_t* words,
                                const Distance& distance, Match& match) {
  if (match.distance <= 0) {
    match.tried = tried_after(match.tried, 0, false);
    return;
  }
  const Position own = match.place;
  uint32_t tried = match.tried | bit_of(own, own);
  const auto improve = [&](const Candidates& candidates, candidates_i32 known) __attribute__((always_inline)) {
    const Position centre = match.place;
    const candidates_u32 bits = candidates.bits(centre);
    uint32_t left = bits_of(~(known | ((bits & tried) != 0)));
    for (int i = 0; i < RANDOM_CANDIDATES; ++i) tried |= bits[i];
    while (left) {
      const Position key = candidates[__builtin_ctz(left)];
      left &= ~bits_of(candidates.equal_to(key));
      const float found = distance(key, match.distance);
      if (found < match.distance) match.distance = found, match.place = key;
    }
    if (!equal(match.place, centre)) tried = bit_of(own, own);
  };
  static_assert(NEIGHBOURS == 6 && RANDOM_CANDIDATES == 8);
  int64_t indices[RANDOM_CANDIDATES];
  const int64_t here = linear_index(q, g.query);
  for (int32_t side = 0; side < RANDOM_CANDIDATES; ++side) {
    const int32_t axis = side / 2, move = side % 2 ? step.stride.length : -step.stride.length;
    const int32_t at = axis == 0   ? q.t
                       : axis == 1 ? q.y
                                   : q.x,
                  count = axis == 0   ? g.query.t
                          : axis == 1 ? g.query.y
                                      : g.query.x;
    const int64_t by = axis == 0 ? int64_t(g.query.y) * g.query.x : axis == 1 ? g.query.x : 1;
    const bool inside = side < NEIGHBOURS && uint32_t(at + move) < uint32_t(count);
    indices[side] = here + (inside ? move * by : 0);
  }
  Candidates neighbours;
  candidates_u32 steps;
  for (int i = 0; i < RANDOM_CANDIDATES; ++i) {
    const Offset offset = step.field_in[indices[i]];
    neighbours.t[i] = offset.t, neighbours.y[i] = offset.y, neighbours.x[i] = offset.x;
    steps[i] = step.tried_in[indices[i]];
  }
  neighbours.t = clamp_indices(neighbours.t + q.t, g.key.t);
  neighbours.y = clamp_indices(neighbours.y + q.y, g.key.y);
  neighbours.x = clamp_indices(neighbours.x + q.x, g.key.x);
  improve(neighbours, (candidates_i32)(steps >> PLACES_AROUND) >= step.stride.steps_ago);

  const Position far = g.far_radius, near = g.near_radius, best = match.place;
  const candidates_u32 word = *reinterpret_cast<const candidates_u32*>(words);
  Candidates random = neighbours;
  random.t[6] = random.t[7] = best.t, random.y[6] = random.y[7] = best.y, random.x[6] = random.x[7] = best.x;
  const auto radius = [](int32_t far, int32_t near) { return candidates_i32{1, 1, 1, 1, 1, 1, far, near}; };
  random.t = random_near(random.t, radius(far.t, near.t), g.key.t, word >> 24, 8);
  random.y = random_near(random.y, radius(far.y, near.y), g.key.y, word >> 12 & 0xfff, 12);
  random.x = random_near(random.x, radius(far.x, near.x), g.key.x, word & 0xfff, 12);
  improve(random, candidates_i32{});
  match.tried = tried_after(match.tried, tried & BITS_AROUND, !equal(match.place, own));
}

template <class Patch>
void search(const PatchMatch& a) {
  const Layout layout(a);
  const Position count = patch_counts(a.query, a.patch), key = layout.key_count;
  const SearchSpace start = search_space(a, 0);
  const int64_t rows = int64_t(count.t) * count.y;
  parallel_for(rows, ROWS_PER_CHUNK, [&](int64_t row) {
    for (int32_t x = 0; x < count.x; ++x) {
      const Position q = {int32_t(row / count.y), int32_t(row % count.y), x};
      const int64_t index = row * count.x + x;
      const Position k = a.has_initial_field ? match_position(q, a.field[index], key) : random_position(start, index);
      a.field[index] = offset_between(q, k);
      a.tried[index] = 0;
      a.distances[index] = Patch(layout, q)(k, INFINITE_DISTANCE);
    }
  });
  const Offset* const found = run_steps(a, rows * count.x, [&](const SearchStep& step) {
    const SearchSpace space = search_space(a, step.number);
    parallel_for(rows, ROWS_PER_CHUNK, [&](int64_t row) {
      RandomWords words;
      for (int32_t x = 0; x < count.x; ++x) {
        const Position q = {int32_t(row / count.y), int32_t(row % count.y), x};
        const int64_t index = row * count.x + x;
        const int lane = x % LANES;
        if (lane == 0) words.draw(a.seed, step.number, index);
        Match match = {match_position(q, step.field_in[index], key), a.distances[index], step.tried_in[index]};
        step_at_once(space, step, q, words.of(lane), Patch(layout, q), match);
        step.field_out[index] = offset_between(q, match.place);
        step.tried_out[index] = match.tried;
        a.distances[index] = match.distance;
      }
    });
  });
  if (found != a.field) memcpy(a.field, found, rows * count.x * sizeof(Offset));
}

}  // namespace

void patch_match(const PatchMatch& a) {
  const bool is_colour = a.patch.y == SIDE && a.patch.x == SIDE && a.channels == CHANNELS;
  if (is_colour && a.patch.t == 3)
    search<ColourPatch<3>>(a);
  else if (is_colour && a.patch.t == 1)
    search<ColourPatch<1>>(a);
  else
    search<AnyPatch>(a);
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
