// Philox 4x32-10 (Salmon et al., SC 2011): counter-based random numbers, the same on host and device.
// A number depends on key and counter alone, so any of them can be drawn at any time, by any thread.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "host_device.h"

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

// Block `block` of stream (seed, stream, step).
SINFUSION_HD static inline PhiloxBlock philox_block(uint64_t seed, uint32_t stream, uint64_t step, uint32_t block) {
  return philox({{block, stream, uint32_t(step), uint32_t(step >> 32)}}, uint32_t(seed), uint32_t(seed >> 32));
}

// Logarithm, cosine and sine for Box-Muller, in double, within 1.5 ulp. They use sums, products, quotients and roots
// alone, each rounded once (CMakeLists.txt forbids fused multiply-adds), so normals are the same bits with every
// instruction set and on the GPU. They have no branches, so that the compiler can vectorize them. The polynomials are
// minimax, with relative errors of 2^-59 (logarithm), 2^-63 (cosine) and 2^-57 (sine).

SINFUSION_HD static inline uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return bits;
}
SINFUSION_HD static inline double double_from_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, 8);
  return value;
}
// An integer below 2^52 as double: from 2^52 on, the last bit of the mantissa is worth 1.
SINFUSION_HD static inline double exact_double(uint64_t integer) {
  return double_from_bits(0x4330000000000000u | integer) - 0x1p52;
}

// log((word + 0.5) / 2^32). With 2 word + 1 = 2^e m and m = 1 + f in [sqrt(1/2), sqrt(2)):
//     log(2 word + 1) = e log(2) + log(1 + f),  log(1 + f) = 2 atanh(s),  s = f / (2 + f)
SINFUSION_HD static inline double log_of_uniform(uint32_t word) {
  constexpr uint64_t SQRT_HALF = 0x3fe6a09e667f3bcdu;
  // log(2) in two parts. The first ends in zero bits, so that its products with e are exact.
  constexpr double LN2 = 0x1.62e42fefa3800p-1, LN2_LOW = 0x1.ef35793c76730p-45;
  const uint64_t bits = bits_of(2.0 * exact_double(word) + 1.0), e = (bits - SQRT_HALF) >> 52;
  const double power = exact_double(e) - 33.0, f = double_from_bits(bits - (e << 52)) - 1.0;
  const double s = f / (2.0 + f), z = s * s;
  double p = 0x1.2f025c29ad619p-3;
  p = p * z + 0x1.39a20ac882047p-3;
  p = p * z + 0x1.74663ba9bff25p-3;
  p = p * z + 0x1.c71c521a04b44p-3;
  p = p * z + 0x1.24924941db54cp-2;
  p = p * z + 0x1.999999997ff63p-2;
  p = p * z + 0x1.5555555555592p-1;
  return power * LN2 + (f - (s * (f - z * p) - power * LN2_LOW));
}

// Cosine and sine of 2 pi word / 2^32, where the angle is rounded as Python's 2 * math.pi * (word / 2**32).
struct SinCos {
  double cosine, sine;
};
SINFUSION_HD static inline SinCos sincos_of_uniform(uint32_t word) {
  constexpr double HALF_PI = 0x1.921fb54442d18p0, HALF_PI_LOW = 0x1.1a62633145c07p-54;
  const uint64_t quarters = (uint64_t(word) + (1u << 29)) >> 30;  // the nearest multiple of pi / 2
  const double count = exact_double(quarters), angle = exact_double(word) * (4 * HALF_PI * 0x1p-32);
  const double x = angle - count * HALF_PI - count * HALF_PI_LOW, z = x * x;  // the first difference is exact
  double s = 0x1.5d8b558a66e81p-33;
  s = s * z - 0x1.ae5e4b83d04e4p-26;
  s = s * z + 0x1.71de35552b48fp-19;
  s = s * z - 0x1.a01a019be9217p-13;
  s = s * z + 0x1.111111110f730p-7;
  s = s * z - 0x1.5555555555548p-3;
  double c = -0x1.8fa683ed86279p-37;
  c = c * z + 0x1.1ee9dbce25e68p-29;
  c = c * z - 0x1.27e4f7f19087bp-22;
  c = c * z + 0x1.a01a019c8f24dp-16;
  c = c * z - 0x1.6c16c16c15015p-10;
  c = c * z + 0x1.555555555554bp-5;
  const uint64_t sine = bits_of(x + x * z * s), cosine = bits_of(1.0 - (0.5 * z - z * z * c));
  const uint64_t exchange = (sine ^ cosine) & (0 - (quarters & 1));  // sin(x + pi / 2) = cos(x)
  constexpr uint64_t SIGN = uint64_t(1) << 63;
  return {double_from_bits(cosine ^ exchange ^ ((quarters + 1) << 62 & SIGN)),
          double_from_bits(sine ^ exchange ^ (quarters << 62 & SIGN))};
}

// Four standard normals of a block: Box-Muller in double, each rounded once to float.
SINFUSION_HD static inline void box_muller(const PhiloxBlock& block, float out[4]) {
  for (int k = 0; k < 4; k += 2) {
    const double radius = sqrt(-2.0 * log_of_uniform(block.v[k]));
    const SinCos turn = sincos_of_uniform(block.v[k + 1]);
    out[k] = float(radius * turn.cosine);
    out[k + 1] = float(radius * turn.sine);
  }
}

// A step, by value or by address; a CUDA graph reads the latter anew each time.
struct Step {
  uint64_t value;
  const int64_t* address;  // or null
};
SINFUSION_HD static inline uint64_t resolve(Step step) { return step.address ? uint64_t(*step.address) : step.value; }

// Which random numbers: a sample's seed is Philox's key; stream and step are in its counter.
struct RandomStream {
  uint64_t seed;
  uint32_t stream;
  uint64_t step;
};

SINFUSION_HD static inline void convert_block(const PhiloxBlock& block, float out[4]) { box_muller(block, out); }
SINFUSION_HD static inline void convert_block(const PhiloxBlock& block, int64_t out[4]) {
  for (int k = 0; k < 4; ++k) out[k] = block.v[k];
}

// Blocks first .. first + count: normals (float), or the random words themselves (int64). The compiler vectorizes over
// blocks.
template <class T>
SINFUSION_HD static inline void draw_blocks(const RandomStream& random, uint32_t first, int count, T* out) {
  for (int i = 0; i < count; ++i)
    convert_block(philox_block(random.seed, random.stream, random.step, first + uint32_t(i)), out + 4 * i);
}

// A row of numbers for each seed.
struct PhiloxRows {
  const int64_t* seeds;
  int64_t batch;
  uint32_t stream;
  Step at;
  int64_t count;  // of a row
};
SINFUSION_HD static inline int64_t block_count(const PhiloxRows& a) { return a.batch * ((a.count + 3) / 4); }

// Block i of all rows; out (batch, count).
template <class T>
SINFUSION_HD static inline void draw_block(const PhiloxRows& a, int64_t i, T* out) {
  const int64_t blocks = (a.count + 3) / 4;
  const int64_t b = i / blocks, first = i % blocks * 4;
  T four[4];
  draw_blocks({uint64_t(a.seeds[b]), a.stream, resolve(a.at)}, uint32_t(first / 4), 1, four);
  for (int64_t k = 0; k < 4 && first + k < a.count; ++k) out[b * a.count + first + k] = four[k];
}

// N consecutive blocks, in loops that the compiler vectorizes.
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
