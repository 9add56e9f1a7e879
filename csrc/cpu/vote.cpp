// Compiled once for each instruction set; no C++ library here (see vector.h).
//
// A task is a row of the output. The votes for LANES pixels are gathered, and their medians found at once, by bisection
// on ordered integers.
#include "vote.h"

#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int32_t NO_VOTE = 0x7fffffff;  // not the ordered integer of any number

inline vec_i32& at(int32_t* p) { return *reinterpret_cast<vec_i32*>(p); }

// The inverse of to_ordered_int.
inline vec_f32 from_ordered_int(vec_i32 value) { return (vec_f32)(value ^ ((value >> 31) & 0x7fffffff)); }

// The lower median, in each lane, of `count` votes, of which `present` are not NO_VOTE.
vec_f32 median(int32_t* votes, int64_t count, vec_i32 present) {
  const vec_i32 needed = (present + 1) >> 1;
  vec_i32 low = at(votes), high = vec_i32{} - NO_VOTE;
  for (int64_t i = 0; i < count; ++i) {
    const vec_i32 v = at(votes + i * LANES);
    low = v < low ? v : low;
    high = (v > high) & (v != NO_VOTE) ? v : high;
  }
  for (;;) {
    const vec_i32 open = low < high;
    int32_t any_open = 0;
    for (int lane = 0; lane < LANES; ++lane) any_open |= open[lane];
    if (!any_open) return from_ordered_int(low);
    const vec_i32 middle = (low & high) + ((low ^ high) >> 1);
    vec_i32 below{};
    for (int64_t i = 0; i < count; ++i) below -= at(votes + i * LANES) <= middle;
    const vec_i32 enough = below >= needed;
    high = enough & open ? middle : high;
    low = ~enough & open ? middle + 1 : low;
  }
}

// The rows of patches over row (t, y) of the output. Returns how many; where each begins in the field, and by how many
// pixels each of its matches is displaced; whether the row lies in the middle of the patch.
int64_t covering_rows(const Vote& a, int32_t t, int32_t y, int64_t* patch_row_starts, int32_t* pixel_shifts,
                      int32_t* in_middle) {
  const Part of_t = middle_of(a.patch.t, a.middle.t), of_y = middle_of(a.patch.y, a.middle.y);
  int64_t rows = 0;
  for (int32_t dt = 0; dt < a.patch.t; ++dt)
    for (int32_t dy = 0; dy < a.patch.y; ++dy) {
      const Position first = {t - dt, y - dy, 0};
      if (first.t < 0 || first.t >= a.count.t || first.y < 0 || first.y >= a.count.y) continue;
      patch_row_starts[rows] = linear_index(first, a.count);
      const Offset* field = a.field + patch_row_starts[rows];
      int32_t* shift = pixel_shifts + rows * a.count.x;
      for (int32_t x = 0; x < a.count.x; ++x) shift[x] = (field[x].t * a.height + field[x].y) * a.width + field[x].x;
      in_middle[rows] = dt >= of_t.first && dt < of_t.end && dy >= of_y.first && dy < of_y.end;
      ++rows;
    }
  return rows;
}

template <class T, int Channels>
class RowVoter {  // Channels: -1 where not known at compile time
 public:
  RowVoter(const Vote& a, int64_t row, const Position& size)
      : a_(a),
        C_(Channels < 0 ? a.channels : Channels),
        width_(size.x),
        votes_per_pixel_(int64_t(a.patch.t) * a.patch.y * a.patch.x),
        row_start_((row / size.y * a.height + row % size.y) * a.width),
        out_(static_cast<T*>(a.out) + row * size.x * C_) {
    const int64_t most = int64_t(a.patch.t) * a.patch.y;
    float* memory = thread_scratch(3 * most + most * a.count.x + votes_per_pixel_ * C_ * LANES);
    patch_row_starts_ = reinterpret_cast<int64_t*>(memory);
    in_middle_ = reinterpret_cast<int32_t*>(memory + 2 * most);
    pixel_shifts_ = in_middle_ + most;
    votes_ = pixel_shifts_ + most * a.count.x;
    const int32_t t = int32_t(row / size.y), y = int32_t(row % size.y);
    rows_ = covering_rows(a, t, y, patch_row_starts_, pixel_shifts_, in_middle_);
    row_covered_ = covers(middle_of(a.patch.t, a.middle.t), a.count.t, t) &&
                   covers(middle_of(a.patch.y, a.middle.y), a.count.y, y);
  }

  void medians() {
    for (int32_t x = 0; x < width_; x += LANES) {
      const bool inside = x >= a_.patch.x - 1 && x + LANES <= a_.count.x;
      const vec_i32 counts = inside ? gather<true>(x) : gather<false>(x);
      const int32_t lanes = width_ - x < LANES ? width_ - x : LANES;
      for (int64_t c = 0; c < C_; ++c) {
        T found[LANES];
        store(found, median(votes_ + c * votes_per_pixel_ * LANES, rows_ * a_.patch.x, counts));
        for (int32_t lane = 0; lane < lanes; ++lane) out_[(x + lane) * C_ + c] = found[lane];
      }
    }
  }

  void means() {
    float* totals = reinterpret_cast<float*>(votes_);
    const Part middle = middle_of(a_.patch.x, a_.middle.x), whole = {0, a_.patch.x};
    for (int32_t x = 0; x < width_; ++x) {
      const bool covered = row_covered_ && covers(middle, a_.count.x, x);
      const Part part = covered ? middle : whole;
      float weights = 0;
      for (int64_t c = 0; c < C_; ++c) totals[c] = 0;
      for (int64_t r = 0; r < rows_; ++r) {
        if (covered && !in_middle_[r]) continue;
        for (int32_t dx = part.first; dx < part.end; ++dx) {
          const int32_t px = x - dx;
          if (px < 0 || px >= a_.count.x) continue;
          const float weight = a_.weight ? a_.weight[patch_row_starts_[r] + px] : 1;
          const T* pixel = voted_pixel(r, px, x);
          for (int64_t c = 0; c < C_; ++c) totals[c] += weight * to_float(pixel[c]);
          weights += weight;
        }
      }
      for (int64_t c = 0; c < C_; ++c) {
        T rounded[LANES];
        store(rounded, vec_f32{} + totals[c] / weights);
        out_[x * C_ + c] = rounded[0];
      }
    }
  }

 private:
  // The vote for pixel x of the patch at px of covering row r.
  const T* voted_pixel(int64_t r, int32_t px, int32_t x) const {
    return static_cast<const T*>(a_.value) + (row_start_ + x + pixel_shifts_[r * a_.count.x + px]) * C_;
  }

  // Votes for LANES pixels from x on, (C, votes_per_pixel, LANES) ordered integers; returns how many each pixel has.
  template <bool Inside>
  vec_i32 gather(int32_t x) {
    vec_i32 counts{};
    int32_t* votes = votes_;
    for (int64_t r = 0; r < rows_; ++r)
      for (int32_t dx = 0; dx < a_.patch.x; ++dx, votes += LANES)
        for (int32_t lane = 0; lane < LANES; ++lane) {
          const int32_t px = x + lane - dx;
          if (!Inside && (px < 0 || px >= a_.count.x)) {
            for (int64_t c = 0; c < C_; ++c) votes[c * votes_per_pixel_ * LANES + lane] = NO_VOTE;
            continue;
          }
          const T* pixel = voted_pixel(r, px, x + lane);
          for (int64_t c = 0; c < C_; ++c)
            votes[c * votes_per_pixel_ * LANES + lane] = to_ordered_int(to_float(pixel[c]));
          if (!Inside) counts[lane] += 1;
        }
    return Inside ? vec_i32{} + int32_t(rows_ * a_.patch.x) : counts;
  }

  const Vote& a_;
  int64_t C_;
  int32_t width_;
  int64_t votes_per_pixel_, row_start_;
  T* out_;
  int64_t* patch_row_starts_;
  int32_t *in_middle_, *pixel_shifts_, *votes_;
  int64_t rows_;
  bool row_covered_;  // by middles of patches, along columns and frames
};

template <class T, int Channels>
void fold(const Vote& a) {
  const Position size = output_size(a);
  const int64_t rows = int64_t(size.t) * size.y;
  parallel_for(rows, 4, [&](int64_t i) {
    RowVoter<T, Channels> row(a, i, size);
    a.mean ? row.means() : row.medians();
  });
}

}  // namespace

void vote(const Vote& a) {
  if (a.channels == 3) return a.bf16 ? fold<bf16_t, 3>(a) : fold<float, 3>(a);
  a.bf16 ? fold<bf16_t, -1>(a) : fold<float, -1>(a);
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
