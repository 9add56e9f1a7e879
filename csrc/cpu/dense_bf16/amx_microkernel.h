// The microkernel in AMX tiles. Every microkernel has
//
//   MR                the pixels of a product
//   igemm             C (MR, NR) = sum over taps and k blocks of A (pixels, lda), shifted by the taps' offsets, times
//                     the panels B; an indirect GEMM. Calls pipelined_work() after each step, or never.
//   gemm_accumulate   C (2, 2, 16, 16) += A (32 channels, lda) times B0 and B1 (pixel pairs, 16 outputs, 2), over
//                     k_blocks of KC pixels; for weight gradients
//
// Tile registers:
//                     B:  tmm6 | tmm7     16 outputs each
//       A: tmm4           tmm0 | tmm1
//          tmm5           tmm2 | tmm3     16 rows each
//
// Tile instructions leave the vector units idle. What `pipelined_work` does there (the epilogue of the block before,
// packing for the next) is free as long as it is short.
#pragma once
#include "packing.h"

namespace sinfusion {
namespace {

struct alignas(64) TileConfig {  // as LDTILECFG reads it
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
};
constexpr TileConfig TILE_CONFIG{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

struct AmxMicrokernel {
  static constexpr int64_t MR = 2 * TILE_ROWS;
  AmxMicrokernel() { _tile_loadconfig(&TILE_CONFIG); }
  ~AmxMicrokernel() { _tile_release(); }

  template <class PipelinedWork>
  static ALWAYS_INLINE void igemm(const bf16_t* a, int64_t lda, const int64_t* tap_offsets, int64_t taps,
                                  int64_t k_blocks, const bf16_t* b, float* c, PipelinedWork&& pipelined_work) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const bf16_t* at = a + tap_offsets[tap] * lda;
      for (int64_t k_block = 0; k_block < k_blocks; ++k_block, at += KC, b += PANEL_ELEMENTS) {
        _tile_loadd(4, at, lda * 2);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE_ELEMENTS, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, at + TILE_ROWS * lda, lda * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        pipelined_work();
      }
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + FP32_LANES, 128);
    _tile_stored(2, c + TILE_ROWS * NR, 128);
    _tile_stored(3, c + TILE_ROWS * NR + FP32_LANES, 128);
  }

  static ALWAYS_INLINE void gemm_accumulate(const bf16_t* a, int64_t lda, const bf16_t* b0, const bf16_t* b1,
                                            int64_t k_blocks, float* c) {
    _tile_loadd(0, c, 64);
    _tile_loadd(1, c + 256, 64);
    _tile_loadd(2, c + 512, 64);
    _tile_loadd(3, c + 768, 64);
    for (int64_t n = 0; n < k_blocks; ++n, a += KC, b0 += TILE_ELEMENTS, b1 += TILE_ELEMENTS) {
      _tile_loadd(4, a, lda * 2);
      _tile_loadd(6, b0, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b1, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + TILE_ROWS * lda, lda * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 64);
    _tile_stored(1, c + 256, 64);
    _tile_stored(2, c + 512, 64);
    _tile_stored(3, c + 768, 64);
  }
};

}  // namespace
}  // namespace sinfusion
