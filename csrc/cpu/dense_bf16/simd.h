// AVX-512 helpers of the bf16 convolutions: masks, conversions, the VNNI order of pairs, a transpose.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "../always_inline.h"

namespace sinfusion {
namespace {

constexpr int64_t FP32_LANES = 16;  // of a 64-byte vector, which is also a cache line and a row of an AMX tile
constexpr int64_t BF16_LANES = 32;

ALWAYS_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
ALWAYS_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
ALWAYS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Masks of the first n lanes; n may be negative, or more than there are.
ALWAYS_INLINE __mmask32 bf16_mask(int64_t n) { return _bzhi_u32(~0u, unsigned(max(0, min(n, BF16_LANES)))); }
ALWAYS_INLINE __mmask16 fp32_mask(int64_t n) {
  return __mmask16(_bzhi_u32(0xffff, unsigned(max(0, min(n, FP32_LANES)))));
}

// Keeps stores above it: the AMX intrinsics do not tell the compiler that they read memory.
ALWAYS_INLINE void compiler_barrier() { asm volatile("" ::: "memory"); }

// 32 fp32 numbers in order.
struct Fp32x32 {
  __m512 low, high;
};
ALWAYS_INLINE Fp32x32 to_fp32(__m512i v) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v)), 16)),
          _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1)), 16))};
}
ALWAYS_INLINE __m512i to_bf16(Fp32x32 v) { return (__m512i)_mm512_cvtne2ps_pbh(v.high, v.low); }

// Two vectors of bf16 in VNNI order, in which dot products read pairs: a0 b0 a1 b1 .. a15 b15 and a16 b16 .. a31 b31.
struct VnniPair {
  __m512i low, high;
};
ALWAYS_INLINE VnniPair to_vnni(__m512i a, __m512i b) {
  const __v16si low = __v16si{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x10001 + 0x200000;
  return {_mm512_permutex2var_epi16(a, (__m512i)low, b), _mm512_permutex2var_epi16(a, (__m512i)(low + 0x100010), b)};
}

// Transposes 16 x 16 elements of 32 bits; calls store(row, vector) for each row of the transpose.
template <class Store>
ALWAYS_INLINE void transpose_16x16(const void* from, Store&& store) {
  const char* block = static_cast<const char*>(from);
#pragma GCC unroll 4
  for (int column = 0; column < 4; ++column) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m128i* at = reinterpret_cast<const __m128i*>(block + i * 64 + column * 16);
      v[i] = _mm512_castsi128_si512(_mm_load_si128(at));
      v[i] = _mm512_inserti32x4(v[i], _mm_load_si128(at + 16), 1);
      v[i] = _mm512_inserti32x4(v[i], _mm_load_si128(at + 32), 2);
      v[i] = _mm512_inserti32x4(v[i], _mm_load_si128(at + 48), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    store(4 * column, _mm512_unpacklo_epi64(a, c));
    store(4 * column + 1, _mm512_unpackhi_epi64(a, c));
    store(4 * column + 2, _mm512_unpacklo_epi64(b, d));
    store(4 * column + 3, _mm512_unpackhi_epi64(b, d));
  }
}

}  // namespace
}  // namespace sinfusion
