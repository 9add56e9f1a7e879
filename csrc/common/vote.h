// Votes of matched patches: each output pixel is the median, or the weighted mean, of the pixels that the matches of
// all patches over it have there.
//
// For host and device; the device's part, plain and scalar, is compiled for the host by tests, too. Functions are
// static, because this is compiled once for each instruction set. Results are the same bits everywhere because
// CMakeLists.txt forbids the compilers to contract a * b + c to a fused multiply-add, which rounds once.
#pragma once
#include <string.h>

#include "bf16.h"
#include "patch_match.h"

namespace sinfusion {

// Arguments are checked in Python (sinfusion/ops/vote.py).
struct Vote {
  const void* value;  // (T, H, W, C), in which the matches are
  int32_t height, width;
  bool bf16;  // value and out, else fp32
  int64_t channels;
  Position patch;       // frames, rows and columns of a patch
  Position count;       // patches of the field, along each axis
  const Offset* field;  // (count); every match is inside of `value`
  bool mean;            // else median
  const float* weight;  // (count), of the mean; null: all 1
  void* out;            // (count + patch - 1, C)
};

SINFUSION_HD static inline Position output_size(const Vote& a) {
  return {a.count.t + a.patch.t - 1, a.count.y + a.patch.y - 1, a.count.x + a.patch.x - 1};
}

// Integers in the order of the floats, and back.
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

// The device's part: a thread for each pixel and channel.

// Calls visit(index of the patch, address of its vote) for all patches over an output pixel.
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

// The lower median, by bisection on ordered integers. Nothing is stored but the two ends, which each pass over the
// votes moves to two of their values.
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

// index: of the output.
template <class T>
SINFUSION_HD static inline void vote_value(const Vote& a, int64_t index) {
  const Position at = position_at(index / a.channels, output_size(a));
  const int64_t channel = index % a.channels;
  store_as(static_cast<T*>(a.out) + index, a.mean ? vote_mean<T>(a, at, channel) : vote_median<T>(a, at, channel));
}

}  // namespace sinfusion
