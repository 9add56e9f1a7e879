// Vectors of LANES lanes, for sources that are compiled once for each instruction set (SINFUSION_ISA_NAMESPACE,
// SINFUSION_LANES). In an unnamed namespace: else the linker may keep one instruction set's copy for all of them. That
// is also why these sources leave the C++ library alone.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../common/bf16.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int LANES = SINFUSION_LANES;

// Unaligned: tensors are aligned to their elements alone.
typedef float vec_f32 __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t vec_u32 __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t vec_u16 __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

inline vec_f32 load(const float* p) { return *reinterpret_cast<const vec_f32*>(p); }
inline void store(float* p, vec_f32 v) { *reinterpret_cast<vec_f32*>(p) = v; }
// By intrinsics: GCC converts vectors in two halves.
inline vec_u32 load_u16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vec_u32)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (vec_u32)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(*reinterpret_cast<const vec_u16*>(p), vec_u32);
#endif
}
inline void store_u16(uint16_t* p, vec_u32 v) {  // of numbers below 2^16
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)v));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
#else
  *reinterpret_cast<vec_u16*>(p) = __builtin_convertvector(v, vec_u16);
#endif
}
inline vec_f32 load(const bf16_t* p) { return (vec_f32)(load_u16(p) << 16); }
inline vec_u32 round_to_bf16(vec_f32 v) {  // to nearest even, in the upper 16 bits; NaN stays NaN
  const vec_u32 bits = (vec_u32)v;
  const vec_u32 r = (bits & 0x10000u) != 0 ? bits + 0x8000u : bits + 0x7fffu;
  return v == v ? r : vec_u32{} + 0x7fc00000u;
}
inline void store(bf16_t* p, vec_f32 v) { store_u16(p, round_to_bf16(v) >> 16); }
// Pairs of bf16: a shift or a mask makes a vector of the even or the odd ones.
template <int odd>
inline vec_f32 load_deinterleaved(const bf16_t* p) {
  const vec_u32 pairs = *reinterpret_cast<const vec_u32*>(p);
  return (vec_f32)(odd ? pairs & 0xffff0000u : pairs << 16);
}
inline void store_interleaved(bf16_t* p, vec_f32 even, vec_f32 odd) {
  *reinterpret_cast<vec_u32*>(p) = round_to_bf16(even) >> 16 | (round_to_bf16(odd) & 0xffff0000u);
}
// The first n lanes; the others are zero, or left alone in memory.
template <class T>
inline vec_f32 load(const T* p, int n) {
  if (n == LANES) return load(p);
  T part[LANES];
  memset(part, 0, sizeof part);
  memcpy(part, p, n * sizeof(T));
  return load(part);
}
template <class T>
inline void store(T* p, vec_f32 v, int n) {
  if (n == LANES) return store(p, v);
  T part[LANES];
  store(part, v);
  memcpy(p, part, n * sizeof(T));
}
inline vec_f32 sqrt(vec_f32 v) {
#if defined(__AVX512F__)
  return (vec_f32)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (vec_f32)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < LANES; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
inline float reduce_add(vec_f32 v) {  // pairwise
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

typedef int32_t vec_i32 __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int16_t vec_i16 __attribute__((vector_size(LANES * 4), aligned(2), may_alias));  // 2 LANES of them

inline vec_i32 add_squares(vec_i32 sum, vec_i16 v) {  // v[0] v[0] + v[1] v[1], v[2] v[2] + v[3] v[3], ...
#if defined(__AVX512VNNI__)
  return (vec_i32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)v, (__m512i)v);
#elif defined(__AVX512BW__)
  return sum + (vec_i32)_mm512_madd_epi16((__m512i)v, (__m512i)v);
#elif defined(__AVX2__)
  return sum + (vec_i32)_mm256_madd_epi16((__m256i)v, (__m256i)v);
#else
  for (int i = 0; i < LANES; ++i) sum[i] += int32_t(v[2 * i]) * v[2 * i] + int32_t(v[2 * i + 1]) * v[2 * i + 1];
  return sum;
#endif
}
// Some of the lanes.
#if defined(__AVX512BW__)
typedef __mmask32 lanes_i16;
inline lanes_i16 first_lanes(int n) { return (lanes_i16(1) << n) - 1; }
inline vec_i16 subtract(lanes_i16 lanes, vec_i16 a, vec_i16 b) {  // 0 in all others
  return (vec_i16)_mm512_maskz_sub_epi16(lanes, (__m512i)a, (__m512i)b);
}
#else
typedef vec_i16 lanes_i16;
inline lanes_i16 first_lanes(int n) {
  lanes_i16 lanes;
  for (int i = 0; i < 2 * LANES; ++i) lanes[i] = i < n ? -1 : 0;
  return lanes;
}
inline vec_i16 subtract(lanes_i16 lanes, vec_i16 a, vec_i16 b) { return (a - b) & lanes; }
#endif
inline int32_t reduce_add(vec_i32 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#elif defined(__AVX2__)
  const __m128i half = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  const __m128i quarter = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0xb1)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
