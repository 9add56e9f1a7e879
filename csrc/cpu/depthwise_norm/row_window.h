// The rows around a tile, straight from the tensors where possible. Where the channels of x or of skip are no whole
// number of blocks, rows are copied when a tile first needs them: as fp32, x and skip one behind the other, zeros
// behind the last channel.
#pragma once
#include "../arena.h"
#include "channel_blocks.h"
#include "microkernel.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// The rows of a batch of images: where they lie, or a cache of the latest, filled on demand.
template <class In>
class RowCache {
 public:
  RowCache(const In* data, int64_t W, int64_t pixel_stride) : data_(data), W_(W), pixel_stride_(pixel_stride) {}
  RowCache(Arena& arena, int64_t W, int64_t pixel_stride) : data_(nullptr), W_(W), pixel_stride_(pixel_stride) {
    for (int k = 0; k < REACHED_ROWS; ++k) buffers_[k] = arena.allocate<In>(W * pixel_stride);
    invalidate();
  }
  void invalidate() {
    for (int k = 0; k < REACHED_ROWS; ++k) cached_[k] = -1;
  }
  int64_t pixel_stride() const { return pixel_stride_; }
  template <class Fill>
  const In* row(int64_t r, Fill&& fill) {  // fill(r, buffer)
    if (data_) return data_ + r * W_ * pixel_stride_;
    const int slot = int(r % REACHED_ROWS);
    if (cached_[slot] != r) fill(r, buffers_[slot]);
    cached_[slot] = r;
    return buffers_[slot];
  }

 private:
  const In* data_;
  int64_t W_, pixel_stride_;
  In* buffers_[REACHED_ROWS];
  int64_t cached_[REACHED_ROWS];
};

// By hand: there are more streams than a core's prefetcher follows.
inline void prefetch_range(const void* data, int64_t bytes) {
  for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(static_cast<const char*>(data) + k);
}

// The rows that a row of tiles reaches, null outside of the image.
template <class In>
struct RowWindow {
  const In* rows[REACHED_ROWS];
  int64_t pixel_stride, first_block;  // first_block: the block that is channel 0 here

  template <class Fill>
  void slide(RowCache<In>& cache, const DepthwiseNorm& a, int64_t b, int64_t y, Fill&& fill) {
    pixel_stride = cache.pixel_stride();
    for (int i = 0; i < REACHED_ROWS; ++i) {
      const int64_t row = y + i - RADIUS;
      rows[i] = row < 0 || row >= a.height ? nullptr : cache.row(b * a.height + row, fill);
    }
  }
  int64_t offset(int64_t x, int64_t block) const {
    return x * pixel_stride + (block - first_block) * BLOCK_CHANNELS<In>;
  }
  // TILE_COLUMNS pixels from x on, of TILE_ROWS rows.
  void prefetch(int row, int64_t x) const {
    for (int i = row; i < row + TILE_ROWS; ++i)
      if (rows[i]) prefetch_range(rows[i] + x * pixel_stride, TILE_COLUMNS * pixel_stride * int64_t(sizeof(In)));
  }
};

// A row of x and skip, concatenated, as fp32.
template <class T>
void copy_row(const T* x, int64_t C, const T* skip, int64_t skip_C, int64_t W, float* to) {
  const int64_t pixel_stride = block_count<float>(C + skip_C) * LANES;
  for (int64_t p = 0; p < W; ++p, x += C, skip += skip_C, to += pixel_stride) {
    store(to + pixel_stride - LANES, vec_f32{});
    for (int64_t c = 0; c < C; c += LANES) store(to + c, load(x + c, lanes_of(C, c / LANES)));
    for (int64_t c = 0; c < skip_C; c += LANES) {
      const int n = lanes_of(skip_C, c / LANES);
      store(to + C + c, load(skip + c, n), n);
    }
  }
}

// Whether tensors of T can be read as In where they lie.
template <class T, class In>
bool readable_in_place(int64_t channels, int64_t skip_channels) {
  return sizeof(T) == sizeof(In) && channels % BLOCK_CHANNELS<In> == 0 && skip_channels % BLOCK_CHANNELS<In> == 0;
}

// The windows of x and skip.
template <class T, class In>
class InputWindow {
 public:
  const bool in_place;             // then a block is of x or of skip, else of their copy
  const int64_t first_skip_block;  // in place; else the number of blocks
  InputWindow(Arena& arena, const DepthwiseNorm& a)
      : in_place(readable_in_place<T, In>(a.channels, a.skip_channels)),
        first_skip_block(in_place ? a.channels / BLOCK_CHANNELS<In> : block_count<In>(channels_of(a))),
        a_(a),
        x_(in_place ? RowCache<In>(static_cast<const In*>(a.x), a.width, a.channels)
                    : RowCache<In>(arena, a.width, first_skip_block * BLOCK_CHANNELS<In>)),
        skip_(static_cast<const In*>(a.skip), a.width, a.skip_channels) {
    x_window_.first_block = 0;
    skip_window_.first_block = first_skip_block;
  }
  // To the tiles whose upper row is row y of image b.
  void slide(int64_t b, int64_t y) {
    const auto copy = [&](int64_t row, In* to) {
      const int64_t first = row * a_.width;
      const T *x = static_cast<const T*>(a_.x), *skip = static_cast<const T*>(a_.skip);
      if constexpr (BLOCK_VECTORS<In> == 1)
        copy_row(x + first * a_.channels, a_.channels, skip + first * a_.skip_channels, a_.skip_channels, a_.width, to);
    };
    x_window_.slide(x_, a_, b, y, copy);
    if (in_place && a_.skip) skip_window_.slide(skip_, a_, b, y, copy);
  }
  const RowWindow<In>& of_block(int64_t block) const { return block < first_skip_block ? x_window_ : skip_window_; }
  void prefetch(int row, int64_t x) const {
    x_window_.prefetch(row, x);
    if (in_place && a_.skip) skip_window_.prefetch(row, x);
  }

 private:
  const DepthwiseNorm& a_;
  RowCache<In> x_, skip_;
  RowWindow<In> x_window_, skip_window_;
};

// The microkernels on a block of channels, with what is constant in them picked.

template <class In, int vector, int rows>
void convolve_rows(const RowWindow<In>& in, const Tile& t, int64_t block, const float* weight, vec_f32 start,
                   float* out) {
  const auto tile = t.interior ? convolve_tile<In, vector, rows, true> : convolve_tile<In, vector, rows, false>;
  tile(in.rows, in.offset(t.x - RADIUS, block), in.pixel_stride, t.first_column, t.end_column, weight, start, out);
}
template <class In, int vector>
void convolve_vector(const RowWindow<In>& in, const Tile& t, int64_t block, const float* weight, vec_f32 start,
                     float* out) {
  const auto rows = t.rows == TILE_ROWS ? convolve_rows<In, vector, TILE_ROWS> : convolve_rows<In, vector, 1>;
  rows(in, t, block, weight, start, out);
}
// out (BLOCK_VECTORS, TILE_PIXELS, LANES) = start (BLOCK_VECTORS, LANES) + convolution with weight (BLOCK_VECTORS,
// TAPS, LANES).
template <class In>
void convolve(const RowWindow<In>& in, const Tile& t, int64_t block, const float* weight, const float* start,
              float* out) {
  convolve_vector<In, 0>(in, t, block, weight, load(start), out);
  if constexpr (BLOCK_VECTORS<In> == 2)
    convolve_vector<In, 1>(in, t, block, weight + TAPS * LANES, load(start + LANES), out + TILE_PIXELS * LANES);
}

template <class In, int vector, int rows>
void correlate_rows(const RowWindow<In>& grad, const RowWindow<In>& x, const Tile& t, int64_t block, float* taps) {
  const auto tile = t.interior ? correlate_tile<In, vector, rows, true> : correlate_tile<In, vector, rows, false>;
  tile(grad.rows, grad.offset(t.x - RADIUS, block), grad.pixel_stride, t.first_column, t.end_column, x.rows + RADIUS,
       x.offset(t.x, block), x.pixel_stride, t.columns, taps);
}
template <class In, int vector>
void correlate_vector(const RowWindow<In>& grad, const RowWindow<In>& x, const Tile& t, int64_t block, float* taps) {
  const auto rows = t.rows == TILE_ROWS ? correlate_rows<In, vector, TILE_ROWS> : correlate_rows<In, vector, 1>;
  rows(grad, x, t, block, taps);
}
// Adds to taps (BLOCK_VECTORS, TAPS, LANES), in reverse.
template <class In>
void correlate(const RowWindow<In>& grad, const RowWindow<In>& x, const Tile& t, int64_t block, float* taps) {
  correlate_vector<In, 0>(grad, x, t, block, taps);
  if constexpr (BLOCK_VECTORS<In> == 2) correlate_vector<In, 1>(grad, x, t, block, taps + TAPS * LANES);
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
