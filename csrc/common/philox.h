// Philox 4x32-10 (Salmon et al., SC 2011): counter-based random numbers, the same on host and device.
// A number depends on key and counter alone, so any sample of any step can be drawn on its own.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SINFUSION_HD __host__ __device__
#else
#define SINFUSION_HD
#endif

namespace sinfusion {

struct PhiloxBlock {
  uint32_t v[4];
};

SINFUSION_HD static inline PhiloxBlock philox(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * counter.v[0];
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * counter.v[2];
    counter = {{uint32_t(p1 >> 32) ^ counter.v[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter.v[3] ^ key1,
                uint32_t(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Block `block` of the numbers that belong to (seed, stream, step).
SINFUSION_HD static inline PhiloxBlock philox_block(uint64_t seed, uint32_t stream, uint64_t step, uint32_t block) {
  return philox({{block, stream, uint32_t(step), uint32_t(step >> 32)}}, uint32_t(seed), uint32_t(seed >> 32));
}

// Four standard normals of a block: Box-Muller in double, each rounded once to float, so that every libm gives the same
// numbers in practice.
SINFUSION_HD static inline void normals(const PhiloxBlock& block, float out[4]) {
  for (int k = 0; k < 4; k += 2) {
    const double radius = sqrt(-2.0 * log((block.v[k] + 0.5) * 0x1p-32));
    const double angle = 6.283185307179586 * (block.v[k + 1] * 0x1p-32);
    out[k] = float(radius * cos(angle));
    out[k + 1] = float(radius * sin(angle));
  }
}

// A step as it is passed to kernels: a number, or where to read it, so that a CUDA graph reads it anew.
struct Step {
  uint64_t number;
  const int64_t* address;  // or null
};
SINFUSION_HD static inline uint64_t value_of(Step step) { return step.address ? uint64_t(*step.address) : step.number; }

// Numbers in rows, a row for each seed.
struct PhiloxRows {
  const int64_t* seeds;
  int64_t batch;
  uint32_t stream;
  Step at;
  int64_t count;  // of a row
};
SINFUSION_HD static inline int64_t blocks_of(const PhiloxRows& a) { return a.batch * ((a.count + 3) / 4); }

SINFUSION_HD static inline void numbers_of(const PhiloxBlock& block, float out[4]) { normals(block, out); }
SINFUSION_HD static inline void numbers_of(const PhiloxBlock& block, int64_t out[4]) {
  for (int k = 0; k < 4; ++k) out[k] = block.v[k];
}

// Block i of all rows: normals, or the words themselves as int64. out (batch, count).
template <class T>
SINFUSION_HD static inline void draw_block(const PhiloxRows& a, int64_t i, T* out) {
  const int64_t blocks = (a.count + 3) / 4;
  const int64_t b = i / blocks, first = i % blocks * 4;
  T four[4];
  numbers_of(philox_block(uint64_t(a.seeds[b]), a.stream, value_of(a.at), uint32_t(first / 4)), four);
  for (int64_t k = 0; k < 4 && first + k < a.count; ++k) out[b * a.count + first + k] = four[k];
}

// `philox_block` for N blocks that follow each other, in loops over them that a compiler makes vectors of.
template <int N>
struct PhiloxBlocks {
  uint32_t v[4][N];
};

template <int N>
static inline PhiloxBlocks<N> philox_blocks(uint64_t seed, uint32_t stream, uint64_t step, uint32_t first) {
  PhiloxBlocks<N> c;
  for (int i = 0; i < N; ++i) {
    c.v[0][i] = first + uint32_t(i);
    c.v[1][i] = stream;
    c.v[2][i] = uint32_t(step);
    c.v[3][i] = uint32_t(step >> 32);
  }
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      const uint64_t p0 = uint64_t(0xD2511F53u) * c.v[0][i];
      const uint64_t p1 = uint64_t(0xCD9E8D57u) * c.v[2][i];
      c.v[0][i] = uint32_t(p1 >> 32) ^ c.v[1][i] ^ key0;
      c.v[1][i] = uint32_t(p1);
      c.v[2][i] = uint32_t(p0 >> 32) ^ c.v[3][i] ^ key1;
      c.v[3][i] = uint32_t(p0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

}  // namespace sinfusion
