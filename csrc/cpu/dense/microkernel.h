// The fp32 GEMM microkernel: MR x NR sums in registers, NR a number of vectors.
#pragma once
#include "../always_inline.h"
#include "../vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// Rows that fit beside two vectors each: 26 of 32 registers with AVX-512, 18 of 32 on ARM, 12 of 16 else.
#if defined(__AVX512F__)
constexpr int MR = 13;
#elif defined(__aarch64__)
constexpr int MR = 9;
#else
constexpr int MR = 6;
#endif
constexpr int NR = 2 * LANES;
constexpr int GRADIENT_MR = LANES < 8 ? LANES : LANES / 2;  // outputs, in the weight gradient: divides LANES

// c (Rows, Vectors * LANES) = a (Rows, k) b (k, Vectors * LANES), or that added to c. Strides are in floats; a's both
// are free, so that a may be transposed.
template <int Rows, int Vectors>
ALWAYS_INLINE void gemm_microkernel(const float* a, int64_t a_row_stride, int64_t a_k_stride, const float* b,
                                    int64_t ldb, int64_t k, float* c, int64_t ldc, bool accumulate) {
  vec_f32 sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[r][v] = accumulate ? load(c + r * ldc + v * LANES) : vec_f32{};
  const float* rows[(Rows + 3) / 4];  // one pointer for four rows saves registers
  for (int r = 0; r < Rows; r += 4) rows[r / 4] = a + r * a_row_stride;
  for (int64_t i = 0; i < k; ++i) {
    vec_f32 b_row[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      b_row[v] = load(b + v * LANES);
      __builtin_prefetch(b + k * ldb + v * LANES);  // the next panel
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += rows[r / 4][r % 4 * a_row_stride] * b_row[v];
#pragma GCC unroll 4
    for (int n = 0; n < (Rows + 3) / 4; ++n) rows[n] += a_k_stride;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * LANES, sum[r][v]);
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
