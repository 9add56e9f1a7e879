// Folding of matched patches: every pixel becomes the median, or the weighted mean, of what all patches over it
// suggest.
//
// What CPU and device share, and the device's part, plain and scalar, which the tests compile for the host too. Static,
// because this is compiled once for each instruction set. The mean is the same on all of them as long as no compiler
// makes one instruction, which rounds once, of its products and sums: CMakeLists.txt forbids it.
#pragma once
#include <string.h>

#include "bf16.h"
#include "patch_match.h"

namespace sinfusion {

// Arguments are checked in Python (sinfusion/ops/vote.py).
struct Vote {
  const void* value;  // (T, H, W, C): where the matches lie
  int32_t height, width;
  bool bf16;  // value and out, else fp32
  int64_t channels;
  Position patch;       // frames, rows and columns of a patch
  Position count;       // places in the field
  const Offset* field;  // every match lies inside `value`
  bool mean;            // else median
  const float* weight;  // one for each place, or null: all alike; for the mean
  void* out;            // (count + patch - 1, C)
};

SINFUSION_HD static inline Position output_size(const Vote& a) {
  return {a.count.t + a.patch.t - 1, a.count.y + a.patch.y - 1, a.count.x + a.patch.x - 1};
}

// Whole numbers in the order of the floats, and back.
SINFUSION_HD static inline int32_t to_ordered_int(float value) {
  int32_t bits;
  memcpy(&bits, &value, 4);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
SINFUSION_HD static inline float from_ordered_int(int32_t value) {
  const int32_t bits = value ^ ((value >> 31) & 0x7fffffff);
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// The device's part: one thread a pixel and channel.

// Calls visit(number of the patch, address of the suggested value) for all patches over a pixel of the output.
template <class T, class Visit>
SINFUSION_HD static inline void for_each_vote(const Vote& a, Position at, int64_t channel, const Visit& visit) {
  const Position first = {at.t < a.count.t ? 0 : at.t - a.count.t + 1, at.y < a.count.y ? 0 : at.y - a.count.y + 1,
                          at.x < a.count.x ? 0 : at.x - a.count.x + 1};
  const Position end = {at.t < a.patch.t ? at.t + 1 : a.patch.t, at.y < a.patch.y ? at.y + 1 : a.patch.y,
                        at.x < a.patch.x ? at.x + 1 : a.patch.x};
  for (int32_t dt = first.t; dt < end.t; ++dt)
    for (int32_t dy = first.y; dy < end.y; ++dy)
      for (int32_t dx = first.x; dx < end.x; ++dx) {
        const int64_t index = linear_index({at.t - dt, at.y - dy, at.x - dx}, a.count);
        const Offset o = a.field[index];
        const int64_t pixel = (int64_t(at.t + o.t) * a.height + at.y + o.y) * a.width + at.x + o.x;
        visit(index, static_cast<const T*>(a.value) + pixel * a.channels + channel);
      }
}

// The lower median, by bisection on the order of floats as whole numbers: nothing is kept but the two ends, which every
// look at the suggestions moves to two of their values.
template <class T>
SINFUSION_HD static inline float vote_median(const Vote& a, Position at, int64_t channel) {
  int32_t low = 0x7fffffff, high = -0x7fffffff, count = 0;
  for_each_vote<T>(a, at, channel, [&](int64_t, const T* value) {
    const int32_t v = to_ordered_int(to_float(*value));
    low = v < low ? v : low;
    high = v > high ? v : high;
    ++count;
  });
  const int32_t needed = (count + 1) / 2;
  while (low < high) {
    const int32_t middle = (low & high) + ((low ^ high) >> 1);
    int32_t below = 0, last_below = low, first_above = high;
    for_each_vote<T>(a, at, channel, [&](int64_t, const T* value) {
      const int32_t v = to_ordered_int(to_float(*value));
      if (v <= middle) {
        ++below;
        last_below = v > last_below ? v : last_below;
      } else {
        first_above = v < first_above ? v : first_above;
      }
    });
    if (below >= needed)
      high = last_below;
    else
      low = first_above;
  }
  return from_ordered_int(low);
}

template <class T>
SINFUSION_HD static inline float vote_mean(const Vote& a, Position at, int64_t channel) {
  float total = 0, weights = 0;
  for_each_vote<T>(a, at, channel, [&](int64_t index, const T* value) {
    const float weight = a.weight ? a.weight[index] : 1;
    total += weight * to_float(*value);
    weights += weight;
  });
  return total / weights;
}

// `index` in the order of the output.
template <class T>
SINFUSION_HD static inline void vote_value(const Vote& a, int64_t index) {
  const Position at = position_at(index / a.channels, output_size(a));
  const int64_t channel = index % a.channels;
  store_as(static_cast<T*>(a.out) + index, a.mean ? vote_mean<T>(a, at, channel) : vote_median<T>(a, at, channel));
}

}  // namespace sinfusion
