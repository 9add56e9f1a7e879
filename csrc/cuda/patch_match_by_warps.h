// patch_match on the device with a warp for each query patch: its threads share the pixels of a patch, and each makes
// one of the candidates. Sums of squares are whole numbers, so they do not depend on that. For pixels of four numbers,
// which are read at once, and patches of up to 512 pixels. Tests compile this for the host, with threads that take
// turns.
#pragma once
#include "../common/patch_match.h"

namespace sinfusion {
namespace {

constexpr int WARPS = 8, MOST_PIXELS = 512, CHANNELS = 4;

// Of the pixels of a patch, from its first one.
struct Offsets {
  int32_t query[MOST_PIXELS], key[MOST_PIXELS];
};

__device__ __forceinline__ void fill_offsets(Offsets& offsets, const PatchMatch& a, int32_t pixels) {
  for (int32_t i = int32_t(threadIdx.x); i < pixels; i += WARPS * 32) {
    const int32_t row = i / a.patch.x, t = row / a.patch.y, y = row % a.patch.y, x = i % a.patch.x;
    offsets.query[i] = int32_t((t * a.query.height + y) * a.query.width) + x;
    offsets.key[i] = int32_t((t * a.key.height + y) * a.key.width) + x;
  }
  __syncthreads();
}

__device__ __forceinline__ int32_t sum_over_warp(int32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(~0u, value);
#else
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(~0u, value, by);
  return value;
#endif
}

__device__ __forceinline__ uint32_t any_of_warp(uint32_t bits) {
#if __CUDA_ARCH__ >= 800
  return __reduce_or_sync(~0u, bits);
#else
  for (int by = 16; by > 0; by /= 2) bits |= __shfl_xor_sync(~0u, bits, by);
  return bits;
#endif
}

__device__ __forceinline__ Position broadcast(Position p, int from) {
  return {__shfl_sync(~0u, p.t, from), __shfl_sync(~0u, p.y, from), __shfl_sync(~0u, p.x, from)};
}

__device__ __forceinline__ const int2* four_at(const Volume& video, Position p) {
  return reinterpret_cast<const int2*>(pixel_at(video, CHANNELS, p.t, p.y, p.x));
}

// The sum of squared differences of two pairs. No number is negative, so differences are 16 bits, too: that of the
// pairs as one number is high * 2^16 + low.
__device__ __forceinline__ int32_t squares(int32_t a, int32_t b) {
  const int32_t pair = a - b, low = int16_t(pair), high = (pair - low) >> 16;
  return low * low + high * high;
}

// This thread's share of a query patch: pixels lane, lane + 32, ...
template <int SHARE>
struct QueryPatch {
  int2 value[SHARE];
  int32_t key_offset[SHARE];
  uint32_t there = 0;  // bit i: whether this thread has value i

  __device__ __forceinline__ QueryPatch(const PatchMatch& a, const Offsets& offsets, Position q, int32_t pixels) {
    const int2* const first = four_at(a.query, q);
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const bool is_there = i * 32 + lane < pixels;
      value[i] = is_there ? __ldg(first + offsets.query[i * 32 + lane]) : int2{0, 0};
      key_offset[i] = is_there ? offsets.key[i * 32 + lane] : 0;
      there |= uint32_t(is_there) << i;
    }
  }

  // The sum over the first of this thread's pixels, or over the others, of the patch whose first pixel is here.
  template <int FROM, int TO>
  __device__ __forceinline__ int32_t sum(const int2* key, int32_t first) const {
    int32_t total = 0;
#pragma unroll
    for (int i = FROM; i < TO; ++i) {
      const int2 other = __ldg(key + (first + key_offset[i]));
      if (there >> i & 1) total += squares(value[i].x, other.x) + squares(value[i].y, other.y);
    }
    return total;
  }

  // As patch_distance where that is below the limit; else some number that is not. The sum over the first pixels is
  // known; they tell most candidates from the nearest patch.
  static constexpr int FIRST = SHARE > 2 ? 2 : 1;
  __device__ __forceinline__ float distance(const int2* key, int32_t first, float weight, int32_t sum_of_first,
                                            float limit) const {
    if (weight == INFINITE_DISTANCE) return INFINITE_DISTANCE;
    int32_t total = sum_over_warp(sum_of_first);
    if (float(total) * weight < limit) total += sum_over_warp(sum<FIRST, SHARE>(key, first));
    return float(total) * weight;
  }
};

// Where a patch of the key begins, in pixels, and its weight. The key's pixels are fewer than 2^31.
struct Place {
  int32_t first;
  float weight;

  __device__ __forceinline__ Place(const PatchMatch& a, Position count, Position k)
      : first((k.t * int32_t(a.key.height) + k.y) * int32_t(a.key.width) + k.x),
        weight(a.weight ? a.weight[(k.t * count.y + k.y) * count.x + k.x] : 1) {}
  __device__ __forceinline__ Place(const Place& of, int lane)
      : first(__shfl_sync(~0u, of.first, lane)), weight(__shfl_sync(~0u, of.weight, lane)) {}
};

template <int SHARE>
__global__ void __launch_bounds__(WARPS * 32)
    start_kernel(PatchMatch a, SearchSpace space, int64_t count, int32_t pixels) {
  __shared__ Offsets offsets;
  fill_offsets(offsets, a, pixels);
  const int64_t index = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (index >= count) return;
  const Position q = position_at(index, space.query);
  const Position k = a.has_initial_field ? match_position(q, a.field[index], space.key) : random_position(space, index);
  const QueryPatch<SHARE> patch(a, offsets, q, pixels);
  const int2* const key = reinterpret_cast<const int2*>(a.key.data);
  const Place place(a, space.key, k);
  const int32_t of_first = patch.template sum<0, patch.FIRST>(key, place.first);
  const float distance = patch.distance(key, place.first, place.weight, of_first, INFINITE_DISTANCE);
  if (threadIdx.x % 32 == 0) a.field[index] = offset_between(q, k), a.tried[index] = 0, a.distances[index] = distance;
}

// As step_patch: candidates are tried in the same order. The same candidate twice changes nothing.
template <int SHARE>
__global__ void __launch_bounds__(WARPS * 32)
    step_kernel(PatchMatch a, SearchSpace space, int64_t count, int32_t pixels, SearchStep step) {
  __shared__ Offsets offsets;
  fill_offsets(offsets, a, pixels);
  const int64_t index = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (index >= count) return;
  const int lane = int(threadIdx.x) % 32;
  const Position q = position_at(index, space.query), own = match_position(q, step.field_in[index], space.key);
  const uint32_t tried_before = step.tried_in[index];
  Position best = own;
  float best_distance = a.distances[index];
  uint32_t tried = 0;
  if (best_distance > 0) {
    const QueryPatch<SHARE> patch(a, offsets, q, pixels);
    const int2* const key = reinterpret_cast<const int2*>(a.key.data);
    int32_t best_first = Place(a, space.key, own).first;
    static_assert(NEIGHBOURS % 2 == 0 && RANDOM_CANDIDATES % 2 == 0);
    tried = tried_before;
    const auto improve = [&](Position mine, bool is_new, int candidates) {
      const uint32_t bit = bit_of(mine, best);
      if (!is_new || tried & bit) mine = best;  // which is not compared
      const Place of_mine(a, space.key, mine);
      int nearest = -1;
      for (int i = 0; i < candidates; i += 2) {  // two at once: neither waits for the other's pixels
        const Place one(of_mine, i), other(of_mine, i + 1);
        if (one.first == best_first && other.first == best_first) continue;
        const int32_t of_one = patch.template sum<0, patch.FIRST>(key, one.first);
        const int32_t of_other = patch.template sum<0, patch.FIRST>(key, other.first);
        const auto compare = [&](const Place& place, int32_t of_first, int lane) {
          if (place.first == best_first) return;
          const float found = patch.distance(key, place.first, place.weight, of_first, best_distance);
          if (found < best_distance) best_distance = found, best_first = place.first, nearest = lane;
        };
        compare(one, of_one, i);
        compare(other, of_other, i + 1);
      }
      tried = nearest >= 0 ? 0 : tried | any_of_warp(lane < candidates ? bit : 0);
      if (nearest >= 0) best = broadcast(mine, nearest);
    };
    const int axis = lane / 2, move = lane % 2 ? step.stride.length : -step.stride.length;
    const Position from = {q.t + (axis == 0 ? move : 0), q.y + (axis == 1 ? move : 0), q.x + (axis == 2 ? move : 0)};
    const bool inside = lane < NEIGHBOURS && from.t >= 0 && from.t < space.query.t && from.y >= 0 &&
                        from.y < space.query.y && from.x >= 0 && from.x < space.query.x;
    const int64_t beside = inside ? linear_index(from, space.query) : index;
    const Position neighbour = inside ? match_position(q, step.field_in[beside], space.key) : own;
    improve(neighbour, steps_since_found(step.tried_in[beside]) < step.stride.steps_ago, NEIGHBOURS);

    const int candidate = lane % RANDOM_CANDIDATES;
    const PhiloxBlock random =
        philox_block(space.seed, PATCH_MATCH_STREAM, random_words_step(step.number, candidate / 4), uint32_t(index));
    const uint32_t word = candidate % 4 == 0   ? random.v[0]
                          : candidate % 4 == 1 ? random.v[1]
                          : candidate % 4 == 2 ? random.v[2]
                                               : random.v[3];
    const bool of_neighbour = candidate < NEIGHBOURS;
    const Position centre = of_neighbour ? neighbour : best;
    const Position radius = of_neighbour              ? Position{1, 1, 1}
                            : candidate == NEIGHBOURS ? space.far_radius
                                                      : space.near_radius;
    improve({random_near(centre.t, radius.t, space.key.t, word >> 24, 8),
             random_near(centre.y, radius.y, space.key.y, word >> 12 & 0xfff, 12),
             random_near(centre.x, radius.x, space.key.x, word & 0xfff, 12)},
            true, RANDOM_CANDIDATES);
  }
  if (lane == 0) {
    step.field_out[index] = offset_between(q, best), a.distances[index] = best_distance;
    step.tried_out[index] = tried_after(tried_before, tried & BITS_AROUND, !equal(best, own));
  }
}

}  // namespace
}  // namespace sinfusion
