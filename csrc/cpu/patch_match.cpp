// Compiled once for each instruction set; no C++ library here (see vector.h).
#include "patch_match.h"

#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int64_t ROWS = 4;  // of patches, that a thread matches at once

struct Frames {
  Frames(const Volume& video, int64_t channels)
      : data(video.data), pixel(channels), row(video.width * pixel), frame(video.height * row) {}
  const int16_t* at(Position p) const { return data + p.t * frame + p.y * row + p.x * pixel; }
  const int16_t* data;
  int64_t pixel, row, frame;
};

// The sum of squared differences of two patches, times the weight; given up where it reaches what is to be beaten.
// Rounding to float and the product with a weight keep order, so giving up changes nothing.
class Distance {
 public:
  explicit Distance(const PatchMatch& a)
      : query_(a.query, a.channels),
        key_(a.key, a.channels),
        patch_(a.patch),
        key_count_(patch_counts(a.key, a.patch)),
        weight_(a.weight),
        whole_(a.patch.x * a.channels / (2 * LANES)),
        worthwhile_(a.patch.y * (whole_ + 1) >= 14) {
    const int rest = int(a.patch.x * a.channels % (2 * LANES));
    for (int i = 0; i < 2 * LANES; ++i) mask_[i] = i < rest ? -1 : 0;
  }

  float operator()(Position q, Position k, float best_distance) const {
    const float weight = weight_ ? weight_[linear_index(k, key_count_)] : 1;
    if (weight == INFINITE_DISTANCE) return INFINITE_DISTANCE;
    const int16_t *from = query_.at(q), *to = key_.at(k);
    return whole_ == 0   ? rows<0>(from, to, weight, best_distance)
           : whole_ == 1 ? rows<1>(from, to, weight, best_distance)
                         : rows<-1>(from, to, weight, best_distance);
  }

 private:
  // `Whole` full vectors a row, or as many as there are, and one cut off by the mask.
  template <int Whole>
  float rows(const int16_t* from, const int16_t* to, float weight, float best_distance) const {
    const int64_t whole = Whole < 0 ? whole_ : Whole;
    const vec_i16 mask = at(mask_);
    vec_i32 total{};
    for (int32_t t = 0;; from += query_.frame, to += key_.frame) {
      const int16_t *a = from, *b = to;
      for (int32_t y = 0; y < patch_.y; ++y, a += query_.row, b += key_.row) {
        for (int64_t i = 0; i < whole; ++i) total += madd_squares(at(a + i * 2 * LANES) - at(b + i * 2 * LANES));
        total += madd_squares((at(a + whole * 2 * LANES) - at(b + whole * 2 * LANES)) & mask);
      }
      if (++t < patch_.t && !worthwhile_) continue;
      const float found = float(reduce_add(total)) * weight;
      if (t == patch_.t || found >= best_distance) return found;
    }
  }

  static vec_i16 at(const int16_t* p) { return *reinterpret_cast<const vec_i16*>(p); }

  Frames query_, key_;
  Position patch_, key_count_;
  const float* weight_;
  int64_t whole_;
  bool worthwhile_;  // to look at the sum so far after each frame: that takes as long as several vectors
  int16_t mask_[2 * LANES];
};

// The random words of L places that follow each other, made together.
class RandomWords {
 public:
  void make(uint64_t seed, uint64_t step, int64_t first) {
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

}  // namespace

void patch_match(const PatchMatch& a) {
  const Distance distance(a);
  const Position count = patch_counts(a.query, a.patch), key = patch_counts(a.key, a.patch);
  const SearchSpace start = search_space(a, 0);
  const int64_t rows = int64_t(count.t) * count.y;
  parallel_for(rows, ROWS, [&](int64_t row) {
    for (int32_t x = 0; x < count.x; ++x) {
      const Position q = {int32_t(row / count.y), int32_t(row % count.y), x};
      const int64_t index = row * count.x + x;
      const Position k = a.has_initial_field ? match_position(q, a.field[index], key) : random_position(start, index);
      a.field[index] = offset_between(q, k);
      a.distances[index] = distance(q, k, INFINITE_DISTANCE);
    }
  });
  Offset *field_in = a.field, *field_out = a.scratch_field;
  for (int64_t step = 0; step < a.steps; ++step) {
    const SearchSpace space = search_space(a, uint64_t(step + 1));
    parallel_for(rows, ROWS, [&](int64_t row) {
      RandomWords words;
      for (int32_t x = 0; x < count.x; ++x) {
        const Position q = {int32_t(row / count.y), int32_t(row % count.y), x};
        const int64_t index = row * count.x + x;
        const int lane = x % LANES;
        if (lane == 0) words.make(a.seed, uint64_t(step + 1), index);
        Position best = match_position(q, field_in[index], key);
        float best_distance = a.distances[index];
        patch_match_step(space, field_in, q, a.strides[step], words.of(lane), distance, best, best_distance);
        field_out[index] = offset_between(q, best);
        a.distances[index] = best_distance;
      }
    });
    Offset* swapped = field_in;
    field_in = field_out, field_out = swapped;
  }
  if (field_in != a.field) memcpy(a.field, field_in, rows * count.x * sizeof(Offset));
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
