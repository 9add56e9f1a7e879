// The microkernel in AVX512-BF16 (vdpbf16ps), with the interface that amx_microkernel.h describes. A pair of A's
// elements is broadcast to all lanes and multiplied by a row of B's tiles, 16 outputs.
#pragma once
#include <string.h>

#include "packing.h"

namespace sinfusion {
namespace {

struct Avx512Microkernel {
  // 14 rows x 2 sums, two vectors of B and one of A: 31 of the 32 registers. MR is two passes, so that a block is about
  // as large as that of AMX.
  static constexpr int64_t ROWS = 14, MR = 2 * ROWS;
  Avx512Microkernel() {}

  template <class PipelinedWork>
  static ALWAYS_INLINE void igemm(const bf16_t* a, int64_t lda, const int64_t* tap_offsets, int64_t taps,
                                  int64_t k_blocks, const bf16_t* b, float* c, PipelinedWork&&) {
    for (int64_t r = 0; r < MR; r += ROWS) igemm_rows(a + r * lda, lda, tap_offsets, taps, k_blocks, b, c + r * NR);
  }

  static void gemm_accumulate(const bf16_t* a, int64_t lda, const bf16_t* b0, const bf16_t* b1, int64_t k_blocks,
                              float* c) {
    constexpr int64_t CHANNELS = 8;  // in registers at once
    for (int64_t first = 0; first < KC; first += CHANNELS) {
      float* to = c + first / TILE_ROWS * 512 + first % TILE_ROWS * FP32_LANES;
      __m512 sum[CHANNELS][2];
      for (int r = 0; r < CHANNELS; ++r)
        for (int i = 0; i < 2; ++i) sum[r][i] = _mm512_load_ps(to + i * 256 + r * FP32_LANES);
      for (int64_t k = 0; k < k_blocks * TILE_ROWS; ++k) {
        const __m512bh row0 = (__m512bh)_mm512_load_si512(b0 + k * BF16_LANES);
        const __m512bh row1 = (__m512bh)_mm512_load_si512(b1 + k * BF16_LANES);
#pragma GCC unroll 8
        for (int r = 0; r < CHANNELS; ++r) {
          const __m512bh pair = broadcast_pair(a + (first + r) * lda + 2 * k);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], pair, row0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], pair, row1);
        }
      }
      for (int r = 0; r < CHANNELS; ++r)
        for (int i = 0; i < 2; ++i) _mm512_store_ps(to + i * 256 + r * FP32_LANES, sum[r][i]);
    }
  }

 private:
  static ALWAYS_INLINE __m512bh broadcast_pair(const bf16_t* p) {
    int32_t bits;
    memcpy(&bits, p, 4);
    return (__m512bh)_mm512_set1_epi32(bits);
  }
  static void igemm_rows(const bf16_t* a, int64_t lda, const int64_t* tap_offsets, int64_t taps, int64_t k_blocks,
                         const bf16_t* b, float* c) {
    __m512 sum[ROWS][2];
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t tap = 0; tap < taps; ++tap) {
      const bf16_t* at = a + tap_offsets[tap] * lda;
      for (int64_t k_block = 0; k_block < k_blocks; ++k_block, at += KC, b += PANEL_ELEMENTS)
        for (int64_t k = 0; k < TILE_ROWS; ++k) {
          const __m512bh b0 = (__m512bh)_mm512_load_si512(b + k * BF16_LANES);
          const __m512bh b1 = (__m512bh)_mm512_load_si512(b + TILE_ELEMENTS + k * BF16_LANES);
#pragma GCC unroll 16
          for (int r = 0; r < ROWS; ++r) {
            const __m512bh pair = broadcast_pair(at + r * lda + 2 * k);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], pair, b0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], pair, b1);
          }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
      _mm512_store_ps(c + r * NR, sum[r][0]);
      _mm512_store_ps(c + r * NR + FP32_LANES, sum[r][1]);
    }
  }
};

}  // namespace
}  // namespace sinfusion
