// Compiled once for each instruction set; no C++ library here (see vector.h).
//
// A task is one row of the output, L pixels at a time. What all patches over these pixels suggest is gathered; the
// median is found by bisection on the order of floats as whole numbers, for L pixels at once.
#include "vote.h"

#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int32_t NOTHING = 0x7fffffff;  // of the whole numbers below, no float's

inline vi& at(int32_t* p) { return *reinterpret_cast<vi*>(p); }

// The inverse of ordered().
inline vf from_ordered(vi value) { return (vf)(value ^ ((value >> 31) & 0x7fffffff)); }

// Of each lane the lower median of those of `count` numbers that are not NOTHING; `present` of them.
vf median(int32_t* numbers, int64_t count, vi present) {
  const vi needed = (present + 1) >> 1;
  vi low = at(numbers), high = vi{} - NOTHING;
  for (int64_t i = 0; i < count; ++i) {
    const vi v = at(numbers + i * L);
    low = v < low ? v : low;
    high = (v > high) & (v != NOTHING) ? v : high;
  }
  for (;;) {
    const vi open = low < high;
    int32_t any = 0;
    for (int lane = 0; lane < L; ++lane) any |= open[lane];
    if (!any) return from_ordered(low);
    const vi middle = (low & high) + ((low ^ high) >> 1);
    vi below{};
    for (int64_t i = 0; i < count; ++i) below -= at(numbers + i * L) <= middle;
    const vi enough = below >= needed;
    high = enough & open ? middle : high;
    low = ~enough & open ? middle + 1 : low;
  }
}

// The rows of patches that lie over row (t, y) of the output: their number, where each begins in the field, and by how
// many pixels each of their matches is displaced.
int64_t rows_over(const Vote& a, int32_t t, int32_t y, int64_t* begins, int32_t* shifts) {
  int64_t rows = 0;
  for (int32_t dt = 0; dt < a.patch.t; ++dt)
    for (int32_t dy = 0; dy < a.patch.y; ++dy) {
      const Position first = {t - dt, y - dy, 0};
      if (first.t < 0 || first.t >= a.count.t || first.y < 0 || first.y >= a.count.y) continue;
      begins[rows] = linear_index(first, a.count);
      const Offset* field = a.field + begins[rows];
      int32_t* shift = shifts + rows * a.count.x;
      for (int32_t x = 0; x < a.count.x; ++x) shift[x] = (field[x].t * a.height + field[x].y) * a.width + field[x].x;
      ++rows;
    }
  return rows;
}

template <class T, int Channels>
class Row {  // of the output; Channels is -1 where it is not known to the compiler
 public:
  Row(const Vote& a, int64_t row, const Position& size)
      : a_(a),
        C_(Channels < 0 ? a.channels : Channels),
        width_(size.x),
        members_(int64_t(a.patch.t) * a.patch.y * a.patch.x),
        here_((row / size.y * a.height + row % size.y) * a.width),
        out_(static_cast<T*>(a.out) + row * size.x * C_) {
    const int64_t most = int64_t(a.patch.t) * a.patch.y;
    float* memory = own_scratch(2 * most + most * a.count.x + members_ * C_ * L);
    begins_ = reinterpret_cast<int64_t*>(memory);
    shifts_ = reinterpret_cast<int32_t*>(memory + 2 * most);
    numbers_ = shifts_ + most * a.count.x;
    rows_ = rows_over(a, int32_t(row / size.y), int32_t(row % size.y), begins_, shifts_);
  }

  void medians() {
    for (int32_t x = 0; x < width_; x += L) {
      const bool inside = x >= a_.patch.x - 1 && x + L <= a_.count.x;
      const vi present = inside ? gather<true>(x) : gather<false>(x);
      const int32_t lanes = width_ - x < L ? width_ - x : L;
      for (int64_t c = 0; c < C_; ++c) {
        T found[L];
        store(found, median(numbers_ + c * members_ * L, rows_ * a_.patch.x, present));
        for (int32_t lane = 0; lane < lanes; ++lane) out_[(x + lane) * C_ + c] = found[lane];
      }
    }
  }

  void means() {
    float* totals = reinterpret_cast<float*>(numbers_);
    for (int32_t x = 0; x < width_; ++x) {
      float weights = 0;
      for (int64_t c = 0; c < C_; ++c) totals[c] = 0;
      for (int64_t r = 0; r < rows_; ++r)
        for (int32_t dx = 0; dx < a_.patch.x; ++dx) {
          const int32_t px = x - dx;
          if (px < 0 || px >= a_.count.x) continue;
          const float weight = a_.weight ? a_.weight[begins_[r] + px] : 1;
          const T* pixel = suggested(r, px, x);
          for (int64_t c = 0; c < C_; ++c) totals[c] += weight * to_float(pixel[c]);
          weights += weight;
        }
      for (int64_t c = 0; c < C_; ++c) {
        T rounded[L];
        store(rounded, vf{} + totals[c] / weights);
        out_[x * C_ + c] = rounded[0];
      }
    }
  }

 private:
  // What the patch at (row r of those over this row, px) suggests for pixel x.
  const T* suggested(int64_t r, int32_t px, int32_t x) const {
    return static_cast<const T*>(a_.value) + (here_ + x + shifts_[r * a_.count.x + px]) * C_;
  }

  // All suggestions for L pixels from x on, as (C, members, L) ordered numbers; how many there are for each.
  template <bool Inside>
  vi gather(int32_t x) {
    vi present{};
    int32_t* index = numbers_;
    for (int64_t r = 0; r < rows_; ++r)
      for (int32_t dx = 0; dx < a_.patch.x; ++dx, index += L)
        for (int32_t lane = 0; lane < L; ++lane) {
          const int32_t px = x + lane - dx;
          if (!Inside && (px < 0 || px >= a_.count.x)) {
            for (int64_t c = 0; c < C_; ++c) index[c * members_ * L + lane] = NOTHING;
            continue;
          }
          const T* pixel = suggested(r, px, x + lane);
          for (int64_t c = 0; c < C_; ++c) index[c * members_ * L + lane] = ordered(to_float(pixel[c]));
          if (!Inside) present[lane] += 1;
        }
    return Inside ? vi{} + int32_t(rows_ * a_.patch.x) : present;
  }

  const Vote& a_;
  int64_t C_;
  int32_t width_;
  int64_t members_, here_;
  T* out_;
  int64_t* begins_;
  int32_t *shifts_, *numbers_;
  int64_t rows_;
};

template <class T, int Channels>
void fold(const Vote& a) {
  const Position size = size_of(a);
  const int64_t rows = int64_t(size.t) * size.y;
  each(rows, 4, [&](int64_t i) {
    Row<T, Channels> row(a, i, size);
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
