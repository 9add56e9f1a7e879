// Compiled once for each instruction set; no C++ library here (see vector.h).
#include "patch_match.h"

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

// The weighted sum of squared differences of two patches, in vectors; as patch_distance in ../common/patch_match.h.
class Distance {
 public:
  explicit Distance(const PatchMatch& a)
      : query_(a.query, a.channels),
        key_(a.key, a.channels),
        patch_(a.patch),
        key_count_(patch_counts(a.key, a.patch)),
        weight_(a.weight),
        full_vectors_(a.patch.x * a.channels / (2 * LANES)),
        may_stop_early_(a.patch.y * (full_vectors_ + 1) >= 14) {
    const int rest = int(a.patch.x * a.channels % (2 * LANES));
    for (int i = 0; i < 2 * LANES; ++i) mask_[i] = i < rest ? -1 : 0;
  }

  float operator()(Position q, Position k, float limit) const {
    const float weight = weight_ ? weight_[linear_index(k, key_count_)] : 1;
    if (weight == INFINITE_DISTANCE) return INFINITE_DISTANCE;
    const int16_t *from = query_.at(q), *to = key_.at(k);
    return full_vectors_ == 0   ? sum<0>(from, to, weight, limit)
           : full_vectors_ == 1 ? sum<1>(from, to, weight, limit)
                                : sum<-1>(from, to, weight, limit);
  }

 private:
  // A row is FullVectors vectors (-1: not known at compile time) and a masked one.
  template <int FullVectors>
  float sum(const int16_t* from, const int16_t* to, float weight, float limit) const {
    const int64_t full = FullVectors < 0 ? full_vectors_ : FullVectors;
    const vec_i16 mask = at(mask_);
    vec_i32 total{};
    for (int32_t t = 0;; from += query_.frame_stride, to += key_.frame_stride) {
      const int16_t *a = from, *b = to;
      for (int32_t y = 0; y < patch_.y; ++y, a += query_.row_stride, b += key_.row_stride) {
        for (int64_t i = 0; i < full; ++i) total += madd_squares(at(a + i * 2 * LANES) - at(b + i * 2 * LANES));
        total += madd_squares((at(a + full * 2 * LANES) - at(b + full * 2 * LANES)) & mask);
      }
      if (++t < patch_.t && !may_stop_early_) continue;
      const float found = float(reduce_add(total)) * weight;
      if (t == patch_.t || found >= limit) return found;
    }
  }

  static vec_i16 at(const int16_t* p) { return *reinterpret_cast<const vec_i16*>(p); }

  StridedVolume query_, key_;
  Position patch_, key_count_;
  const float* weight_;
  int64_t full_vectors_;  // of a patch's row
  bool
      may_stop_early_;  // reducing the sum after each frame takes as long as several vectors: worth it for large frames
  int16_t mask_[2 * LANES];
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

}  // namespace

void patch_match(const PatchMatch& a) {
  const Distance distance(a);
  const Position count = patch_counts(a.query, a.patch), key = patch_counts(a.key, a.patch);
  const SearchSpace start = search_space(a, 0);
  const int64_t rows = int64_t(count.t) * count.y;
  parallel_for(rows, ROWS_PER_CHUNK, [&](int64_t row) {
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
    parallel_for(rows, ROWS_PER_CHUNK, [&](int64_t row) {
      RandomWords words;
      for (int32_t x = 0; x < count.x; ++x) {
        const Position q = {int32_t(row / count.y), int32_t(row % count.y), x};
        const int64_t index = row * count.x + x;
        const int lane = x % LANES;
        if (lane == 0) words.draw(a.seed, uint64_t(step + 1), index);
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
