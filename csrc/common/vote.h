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
  int32_t frames, height, width;
  bool bf16;  // value and out, else fp32
  int64_t channels;
  Position patch;   // frames, rows and columns of a patch
  Position middle;  // of the mean: the part of a patch that votes for what middles cover; other pixels get all votes
  Position count;   // patches of the field, along each axis
  const Offset* field;  // (count); every match is inside of `value`: on a device, it ends at the border otherwise
  bool mean;            // else median
  const float* weight;  // (count), of the mean; null: all 1
  void* out;            // (count + patch - 1, C)
};

SINFUSION_HD static inline Position output_size(const Vote& a) {
  return {a.count.t + a.patch.t - 1, a.count.y + a.patch.y - 1, a.count.x + a.patch.x - 1};
}

// A part of a patch, on one axis.
struct Part {
  int32_t first, end;
};
SINFUSION_HD static inline Part middle_of(int32_t side, int32_t middle) {
  const int32_t first = (side - middle) / 2;
  return {first, first + middle};
}
// Whether the middles of patches cover this place, on one axis.
SINFUSION_HD static inline bool covers(Part part, int32_t count, int32_t at) {
  return at >= part.first && at < count + part.end - 1;
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

// Of the offsets that lead from a patch to a pixel over it, on one axis, those in a part of the patch.
SINFUSION_HD static inline Part within(Part part, int32_t count, int32_t at) {
  const int32_t first = at < count ? 0 : at - count + 1, end = at + 1;
  return {first > part.first ? first : part.first, end < part.end ? end : part.end};
}

SINFUSION_HD static inline int32_t inside(int32_t at, int32_t places) {
  return at < 0 ? 0 : at < places ? at : places - 1;
}

// Calls visit(index of the patch, address of its vote) for all patches that vote for an output pixel.
template <class T, class Visit>
SINFUSION_HD static inline void for_each_vote(const Vote& a, Position at, int64_t channel, const Visit& visit) {
  Part t = middle_of(a.patch.t, a.middle.t), y = middle_of(a.patch.y, a.middle.y), x = middle_of(a.patch.x, a.middle.x);
  if (!covers(t, a.count.t, at.t) || !covers(y, a.count.y, at.y) || !covers(x, a.count.x, at.x)) {
    t = {0, a.patch.t};
    y = {0, a.patch.y};
    x = {0, a.patch.x};
  }
  t = within(t, a.count.t, at.t);
  y = within(y, a.count.y, at.y);
  x = within(x, a.count.x, at.x);
  const Position places = {a.frames - a.patch.t + 1, a.height - a.patch.y + 1, a.width - a.patch.x + 1};
  for (int32_t dt = t.first; dt < t.end; ++dt)
    for (int32_t dy = y.first; dy < y.end; ++dy)
      for (int32_t dx = x.first; dx < x.end; ++dx) {
        const Position own = {at.t - dt, at.y - dy, at.x - dx};
        const int64_t index = linear_index(own, a.count);
        const Offset o = a.field[index];
        const Position from = {inside(own.t + o.t, places.t) + dt, inside(own.y + o.y, places.y) + dy,
                               inside(own.x + o.x, places.x) + dx};
        const int64_t pixel = (int64_t(from.t) * a.height + from.y) * a.width + from.x;
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
