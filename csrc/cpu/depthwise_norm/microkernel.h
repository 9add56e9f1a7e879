// The 7x7 depthwise microkernels: a tile of TILE_ROWS x TILE_COLUMNS pixels of one vector of channels in registers.
//
//     convolve    out (pixels) = start + the sum over taps of in (pixels + tap) * weight (tap)
//     correlate   taps (tap) += the sum over pixels of grad (pixels + tap) * x (pixels)        the weight gradient
//
// Both walk the rows of inputs that a tile reaches. An input row meets the taps of row i for the tile's upper row of
// pixels, and those of row i - 1 for the lower one: each input is loaded once for both.
#pragma once
#include "../always_inline.h"
#include "channel_blocks.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 2;  // 32 registers: 16 pixels, the taps of two rows, an input
#else
constexpr int TILE_ROWS = 1;
#endif
constexpr int KERNEL_SIZE = 7, RADIUS = 3, TAPS = KERNEL_SIZE * KERNEL_SIZE;
constexpr int TILE_COLUMNS = 8, TILE_PIXELS = TILE_ROWS * TILE_COLUMNS;
constexpr int REACHED_COLUMNS = TILE_COLUMNS + KERNEL_SIZE - 1, REACHED_ROWS = TILE_ROWS + KERNEL_SIZE - 1;

// Where a tile lies in its image.
struct Tile {
  int64_t x;
  int rows, columns;             // of it in the image
  int first_column, end_column;  // of the REACHED_COLUMNS in the image, which begin at x - RADIUS
  bool interior;                 // all of these are in the image
  Tile(int64_t x, int64_t W, int rows) : x(x), rows(rows) {
    columns = W - x < TILE_COLUMNS ? int(W - x) : TILE_COLUMNS;
    first_column = x < RADIUS ? int(RADIUS - x) : 0;
    end_column = W - x + RADIUS < REACHED_COLUMNS ? int(W - x + RADIUS) : REACHED_COLUMNS;
    interior = first_column == 0 && end_column == REACHED_COLUMNS;
  }
};

// One row of inputs times the taps of the upper and of the lower row of pixels.
template <class In, int vector, bool upper, bool lower, bool interior>
ALWAYS_INLINE void convolve_row(const In* in, int64_t stride, int first_column, int end_column, const float* taps,
                                vec_f32* sum) {
  vec_f32 u[KERNEL_SIZE], l[KERNEL_SIZE];
#pragma GCC unroll 8
  for (int j = 0; j < KERNEL_SIZE; ++j) {
    if (upper) u[j] = load(taps + j * LANES);
    if (lower) l[j] = load(taps + (j - KERNEL_SIZE) * LANES);
  }
#pragma GCC unroll 16
  for (int q = 0; q < REACHED_COLUMNS; ++q) {
    if (!interior && (q < first_column || q >= end_column)) continue;
    const vec_f32 value = load_vector<vector>(in + q * stride);
#pragma GCC unroll 8
    for (int j = 0; j < KERNEL_SIZE; ++j)
      if (q - j >= 0 && q - j < TILE_COLUMNS) {
        if (upper) sum[q - j] += value * u[j];
        if (lower) sum[TILE_COLUMNS + q - j] += value * l[j];
      }
  }
}

// in: the rows that are reached, null outside of the image; weight (TAPS, LANES); out (rows, TILE_COLUMNS, LANES).
template <class In, int vector, int rows, bool interior>
void convolve_tile(const In* const* in, int64_t at, int64_t stride, int first_column, int end_column,
                   const float* weight, vec_f32 start, float* out) {
  vec_f32 sum[rows * TILE_COLUMNS];
#pragma GCC unroll 16
  for (int p = 0; p < rows * TILE_COLUMNS; ++p) sum[p] = start;
  if (in[0]) convolve_row<In, vector, true, false, interior>(in[0] + at, stride, first_column, end_column, weight, sum);
  for (int i = 1; i < KERNEL_SIZE; ++i)
    if (in[i])
      convolve_row<In, vector, true, rows == 2, interior>(in[i] + at, stride, first_column, end_column,
                                                          weight + i * KERNEL_SIZE * LANES, sum);
  if (rows == 2 && in[KERNEL_SIZE])
    convolve_row<In, vector, false, true, interior>(in[KERNEL_SIZE] + at, stride, first_column, end_column,
                                                    weight + TAPS * LANES, sum);
#pragma GCC unroll 16
  for (int p = 0; p < rows * TILE_COLUMNS; ++p) store(out + p * LANES, sum[p]);
}

// One row of gradients times the pixels of the upper and of the lower row, added to their taps.
template <class In, int vector, bool upper, bool lower, bool interior>
ALWAYS_INLINE void correlate_row(const In* grad, int64_t stride, int first_column, int end_column, float* taps,
                                 const vec_f32* x) {
  vec_f32 u[KERNEL_SIZE], l[KERNEL_SIZE];
#pragma GCC unroll 8
  for (int j = 0; j < KERNEL_SIZE; ++j) {
    if (upper) u[j] = load(taps + j * LANES);
    if (lower) l[j] = load(taps + (j - KERNEL_SIZE) * LANES);
  }
#pragma GCC unroll 16
  for (int q = 0; q < REACHED_COLUMNS; ++q) {
    if (!interior && (q < first_column || q >= end_column)) continue;
    const vec_f32 value = load_vector<vector>(grad + q * stride);
#pragma GCC unroll 8
    for (int j = 0; j < KERNEL_SIZE; ++j)
      if (q - j >= 0 && q - j < TILE_COLUMNS) {
        if (upper) u[j] += value * x[q - j];
        if (lower) l[j] += value * x[TILE_COLUMNS + q - j];
      }
  }
#pragma GCC unroll 8
  for (int j = 0; j < KERNEL_SIZE; ++j) {
    if (upper) store(taps + j * LANES, u[j]);
    if (lower) store(taps + (j - KERNEL_SIZE) * LANES, l[j]);
  }
}

// grad: the rows that are reached; x: the tile's rows, of which `columns` are in the image; taps (TAPS, LANES), in
// reverse, since the roles of input and output are exchanged.
template <class In, int vector, int rows, bool interior>
void correlate_tile(const In* const* grad, int64_t at, int64_t stride, int first_column, int end_column,
                    const In* const* x, int64_t x_at, int64_t x_stride, int columns, float* taps) {
  vec_f32 v[rows * TILE_COLUMNS];
#pragma GCC unroll 16
  for (int p = 0; p < rows * TILE_COLUMNS; ++p)
    v[p] = interior || p % TILE_COLUMNS < columns
               ? load_vector<vector>(x[p / TILE_COLUMNS] + x_at + p % TILE_COLUMNS * x_stride)
               : vec_f32{};
  if (grad[0])
    correlate_row<In, vector, true, false, interior>(grad[0] + at, stride, first_column, end_column, taps, v);
  for (int i = 1; i < KERNEL_SIZE; ++i)
    if (grad[i])
      correlate_row<In, vector, true, rows == 2, interior>(grad[i] + at, stride, first_column, end_column,
                                                           taps + i * KERNEL_SIZE * LANES, v);
  if (rows == 2 && grad[KERNEL_SIZE])
    correlate_row<In, vector, false, true, interior>(grad[KERNEL_SIZE] + at, stride, first_column, end_column,
                                                     taps + TAPS * LANES, v);
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
