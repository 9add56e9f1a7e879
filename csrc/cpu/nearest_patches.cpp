// Compiled once for each instruction set; no C++ library here (see vector.h).
//
// |q - k|^2 = |q|^2 + |k|^2 - 2 q k in whole numbers: products of pairs of int16, summed in int32, as a matrix product.
// Its columns are places of the key, LANES consecutive pixels a vector, read from planes of channel pairs where they
// lie, so neither patches nor distances are ever stored. Pixels whose patch would leave its row are computed as well
// and left out where they are found. A chunk is some queries against all of the key: each keeps the places below the
// k-th distance it knows of, and finds a lower one whenever its memory is full.
#include "nearest_patches.h"

#include "always_inline.h"
#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// Of a tile of sums in registers.
#if defined(__AVX512F__)
constexpr int QUERIES = 6, VECTORS = 4;
#else
constexpr int QUERIES = 4, VECTORS = 2;
#endif
constexpr int PIXELS = VECTORS * LANES;
constexpr int GROUPS = 16;  // of QUERIES in a chunk, for which a tile's pixels stay in the L1 cache

ALWAYS_INLINE vec_i32 add_products(vec_i32 sum, vec_i16 a, vec_i16 b) {
#if defined(__AVX512VNNI__)
  return (vec_i32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return sum + (vec_i32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (vec_i32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  for (int i = 0; i < LANES; ++i) sum[i] += int32_t(a[2 * i]) * b[2 * i] + int32_t(a[2 * i + 1]) * b[2 * i + 1];
  return sum;
#endif
}

ALWAYS_INLINE uint32_t lanes_below(vec_i32 v, int32_t limit) {  // a bit for each
#if defined(__AVX512F__)
  return _mm512_cmplt_epi32_mask((__m512i)v, _mm512_set1_epi32(limit));
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)(vec_i32)(v < limit)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= uint32_t(v[i] < limit) << i;
  return bits;
#endif
}

ALWAYS_INLINE vec_i16 pair_at(const int16_t* p) { return *reinterpret_cast<const vec_i16*>(p); }
ALWAYS_INLINE vec_i16 both_of(int32_t pair) { return (vec_i16)(vec_i32{} + pair); }
ALWAYS_INLINE vec_i32 at(const int32_t* p) { return *reinterpret_cast<const vec_i32*>(p); }

inline int64_t pixels_of(const Volume& video) { return video.frames * video.height * video.width; }

// What a patch is made of: where its pairs lie, from its first one on.
class PairOffsets {
 public:
  PairOffsets(const NearestPatches& a, const Volume& video, int64_t* memory) : offsets_(memory) {
    int64_t n = 0;
    for (int64_t plane = 0; plane < a.channel_pairs; ++plane)
      for (int32_t t = 0; t < a.patch.t; ++t)
        for (int32_t y = 0; y < a.patch.y; ++y)
          for (int32_t x = 0; x < a.patch.x; ++x)
            memory[n++] = 2 * (plane * pixels_of(video) + (t * video.height + y) * video.width + x);
  }
  int64_t operator[](int64_t n) const { return offsets_[n]; }

 private:
  const int64_t* offsets_;
};

struct Nearest {
  int64_t count = 0;
  int32_t norm = 0, limit = INT32_MAX;  // distances below it are kept
  uint64_t* found = nullptr;
};

class Search {
 public:
  explicit Search(const NearestPatches& a)
      : a_(a),
        pairs_(a.channel_pairs * a.patch.t * a.patch.y * a.patch.x),
        capacity_(2 * a.k + 4 * PIXELS),
        query_count_(patch_counts(a.query, a.patch)),
        key_count_(patch_counts(a.key, a.patch)),
        queries_(int64_t(query_count_.t) * query_count_.y * query_count_.x),
        memory_(reinterpret_cast<int64_t*>(caller_scratch(4 * pairs_))),
        in_query_(a, a.query, memory_),
        in_key_(a, a.key, memory_ + pairs_) {}

  // Sums of squares of the patches at all pixels of a row of the key.
  void norms_of_row(int64_t row) const {
    const int64_t first = row * a_.key.width;
    for (int64_t x = 0; x < a_.key.width; x += LANES) {
      vec_i32 sum{};
      for (int64_t n = 0; n < pairs_; ++n) {
        const vec_i16 v = pair_at(a_.key.data + 2 * (first + x) + in_key_[n]);
        sum = add_products(sum, v, v);
      }
      // A vector may end in the next row, whose own sums are the same.
      for (int lane = 0; lane < LANES && x + lane < a_.key.width; ++lane) a_.norms[first + x + lane] = sum[lane];
    }
  }

  int64_t chunks() const { return (queries_ + QUERIES * GROUPS - 1) / (QUERIES * GROUPS); }
  int64_t rows() const { return int64_t(key_count_.t - 1) * a_.key.height + key_count_.y; }

  void chunk(int64_t number) const {
    const int64_t first = number * QUERIES * GROUPS;
    const int64_t count = queries_ - first < QUERIES * GROUPS ? queries_ - first : QUERIES * GROUPS;
    const int64_t groups = (count + QUERIES - 1) / QUERIES;
    float* memory = thread_scratch(GROUPS * QUERIES * (2 * capacity_ + pairs_));
    uint64_t* found = reinterpret_cast<uint64_t*>(memory);
    int32_t* values =
        reinterpret_cast<int32_t*>(memory + 2 * GROUPS * QUERIES * capacity_);  // (groups, pairs, QUERIES)
    Nearest nearest[GROUPS * QUERIES];
    for (int64_t i = 0; i < groups * QUERIES; ++i) {
      nearest[i].found = found + i * capacity_;
      gather(first + (i < count ? i : count - 1), values + i / QUERIES * pairs_ * QUERIES + i % QUERIES, nearest[i]);
    }
    const int64_t places = (key_count_.y - 1) * a_.key.width + key_count_.x;  // in a frame, from row to row
    for (int32_t t = 0; t < key_count_.t; ++t)
      for (int64_t place = 0; place < places; place += PIXELS)
        for (int64_t g = 0; g < groups; ++g) tile(t, place, values + g * pairs_ * QUERIES, nearest + g * QUERIES);
    for (int64_t i = 0; i < count; ++i) {
      sort_smallest(nearest[i].found, nearest[i].count, a_.k);
      for (int64_t j = 0; j < a_.k; ++j) {
        a_.index[(first + i) * a_.k + j] = int32_t(uint32_t(nearest[i].found[j]));
        a_.distance[(first + i) * a_.k + j] = float(nearest[i].found[j] >> 32);
      }
    }
  }

 private:
  // Values of a query's patch, QUERIES apart, and their sum of squares.
  void gather(int64_t query, int32_t* values, Nearest& nearest) const {
    const Position q = position_at(query, query_count_);
    const int16_t* from = a_.query.data + 2 * ((q.t * a_.query.height + q.y) * a_.query.width + q.x);
    for (int64_t n = 0; n < pairs_; ++n) {
      const int16_t* pair = from + in_query_[n];
      memcpy(values + n * QUERIES, pair, 4);
      nearest.norm += int32_t(pair[0]) * pair[0] + int32_t(pair[1]) * pair[1];
    }
  }

  // QUERIES patches against those at PIXELS consecutive pixels of frame t, from `place` on.
  void tile(int32_t t, int64_t place, const int32_t* values, Nearest* nearest) const {
    const int64_t pixel = int64_t(t) * a_.key.height * a_.key.width + place;
    const int16_t* key = a_.key.data + 2 * pixel;
    vec_i32 sums[QUERIES][VECTORS] = {};
    for (int64_t n = 0; n < pairs_; ++n, values += QUERIES) {
      vec_i16 of_key[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) of_key[v] = pair_at(key + in_key_[n] + 2 * v * LANES);
#pragma GCC unroll 8
      for (int q = 0; q < QUERIES; ++q) {
        const vec_i16 of_query = both_of(values[q]);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sums[q][v] = add_products(sums[q][v], of_key[v], of_query);
      }
    }
    // Without |q|^2, which may make them negative: none overflows.
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; ++q) {
      const int32_t limit = nearest[q].limit - nearest[q].norm;
      uint64_t below = 0;
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) {
        sums[q][v] = at(a_.norms + pixel + v * LANES) - (sums[q][v] + sums[q][v]);
        below |= uint64_t(lanes_below(sums[q][v], limit)) << (v * LANES);
      }
      if (below) add(t, place, below, sums[q], nearest[q]);
    }
  }

  // Out of line: it happens for few.
  __attribute__((noinline)) void add(int32_t t, int64_t place, uint64_t below, const vec_i32* sums,
                                     Nearest& nearest) const {
    int32_t distances[PIXELS];
    memcpy(distances, sums, sizeof distances);
    const int64_t width = a_.key.width;
    for (; below; below &= below - 1) {
      const int lane = __builtin_ctzll(below);
      const int64_t y = (place + lane) / width, x = (place + lane) % width;
      if (x >= key_count_.x || y >= key_count_.y) continue;
      const int64_t index = (int64_t(t) * key_count_.y + y) * key_count_.x + x;
      nearest.found[nearest.count++] = ranked(uint32_t(distances[lane] + nearest.norm), uint32_t(index));
    }
    if (nearest.count + PIXELS <= capacity_) return;
    // Later places of the same distance have higher numbers: the limit itself is out.
    keep_smallest(nearest.found, nearest.count, a_.k);
    nearest.count = a_.k;
    nearest.limit = int32_t(nearest.found[a_.k - 1] >> 32);
  }

  const NearestPatches& a_;
  int64_t pairs_, capacity_;
  Position query_count_, key_count_;
  int64_t queries_;
  int64_t* memory_;
  PairOffsets in_query_, in_key_;
};

}  // namespace

void nearest_patches(const NearestPatches& a) {
  const Search search(a);
  parallel_for(search.rows(), 16, [&](int64_t row) { search.norms_of_row(row); });
  parallel_for(search.chunks(), 1, [&](int64_t number) { search.chunk(number); });
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
