// The packed layouts that the microkernels read, and what writes them: the input's ring buffer and the weights' panels.
//
// A convolution is a sum of matrix products, one for each tap (i, j) of the kernel:
//
//     C  =  sum over taps of  A, shifted by the tap,  times  B of the tap
//     pixels x outputs        pixels x inputs                inputs x outputs
//
// A: the zero-padded image as a sequence of pixels, row after row. Each row begins with `pad` zero pixels, which also
// end the row above, so a tap is one offset, i * pitch + j pixels, and MR pixels may run across the end of a row. What
// is computed for pad pixels is thrown away.
//
//                       k: inputs -->            lda = KC * k_blocks
//                    |<- KC = 32 ->|<- KC ->| ...
//          pixel 0   | 0 0 0 ... 0 | 0 ...        <- pad      ^
//          pixel 1   | 64 bytes    |              <- x = 0    |  pitch = width + pad pixels
//          pixel 2   |             |              <- x = 1    |
//            ...                                              v
//                    A tile of the AMX microkernel is 16 of these rows by KC columns; it reads two, MR = 32.
//                    The AVX-512 microkernel broadcasts pairs of inputs of MR = 2 * 14 rows.
//
// B: panels of KC inputs x NR outputs, 2 KiB each, in the order in which the loops below read them:
//
//          | NR block 0                                                  | NR block 1 ...
//          | tap 0                                  | tap 1 ...          |
//          | k block 0           | k block 1 | ...  |                    |
//          | tile       | tile   |
//            outputs      outputs
//            0 .. 15      16 .. 31
//
//     A tile is in VNNI order, a row of 64 bytes for each pair of inputs (k, k + 1):
//
//                      output 0     output 1          output 15
//          row 0     | k=0   k=1  | k=0   k=1  | ... | k=0   k=1  |
//          row 1     | k=2   k=3  | k=2   k=3  | ... | k=2   k=3  |
//            ...
//          row 15    | k=30  k=31 |                  | k=30  k=31 |
//
// The loops around them are in dense_bf16.cpp:
//
//     for each task: some rows of an image, at most TASK_PIXELS              (threads)
//       for each mc pixels of the task                  A: mc pixels, and what the taps reach around them, in the ring
//         for each block of NR outputs                  B: the panels of this block; mc is chosen so that they, or the
//           for each MR of the mc pixels                   MR pixels, stay in L1
//             microkernel: for each tap, for each k block, MR x KC times KC x NR, summed in registers
//
// Weight gradients sum over pixels instead; their layout is in weight_gradient.h.
#pragma once
#include <string.h>

#include "../../common/bf16.h"
#include "../arena.h"
#include "../dense.h"
#include "gelu_table.h"
#include "simd.h"

namespace sinfusion {
namespace {

constexpr int64_t KC = BF16_LANES;      // a k block: a cache line of bf16
constexpr int64_t NR = 2 * FP32_LANES;  // outputs of a microkernel
constexpr int64_t TILE_ROWS = 16;
constexpr int64_t TILE_ELEMENTS = TILE_ROWS * KC;
constexpr int64_t PANEL_ELEMENTS = KC * NR;
constexpr int64_t PREFETCH_DISTANCE = 32;  // pixels

struct PaddedImage {
  int64_t height, width, kernel_size, pad, pitch;
  explicit PaddedImage(const Dense& a)
      : height(a.height), width(a.width), kernel_size(a.kernel_size), pad(a.kernel_size / 2), pitch(a.width + pad) {}
  int64_t taps() const { return kernel_size * kernel_size; }
  int64_t tap_offset(int64_t tap) const { return tap / kernel_size * pitch + tap % kernel_size; }
  int64_t last_tap_offset() const { return (kernel_size - 1) * (pitch + 1); }
};

// What a convolution reads: one tensor, or two whose channels are concatenated. With z it is a gradient, which is
// multiplied by GELU'(z) as it is read, and the product is stored as well.
struct InputTensor {
  const bf16_t *first, *second;
  int64_t first_channels, second_channels;
  const bf16_t* z;
  bf16_t* product;

  int64_t k_blocks() const { return ceil_div(first_channels + second_channels, KC); }

  // Where KC channels lie in a pixel of either tensor, and in which lanes.
  struct ChannelBlock {
    int64_t first_offset, second_offset;
    __mmask32 first_mask, second_mask;
  };
  ChannelBlock channel_block(int64_t n) const {
    const int64_t begin = n * KC, left = first_channels - begin;
    const __mmask32 first_mask = bf16_mask(left);
    return {first_mask ? begin : 0, -left, first_mask, bf16_mask(left + second_channels) & ~first_mask};
  }
  ALWAYS_INLINE __m512i load(int64_t pixel, const ChannelBlock& block) const {
    const bf16_t* from = first + pixel * first_channels + block.first_offset;
    __builtin_prefetch(from + PREFETCH_DISTANCE * first_channels);
    __m512i v = _mm512_maskz_loadu_epi16(block.first_mask, from);
    if (block.second_mask) {
      from = second + pixel * second_channels + block.second_offset;
      __builtin_prefetch(from + PREFETCH_DISTANCE * second_channels);
      v |= _mm512_maskz_loadu_epi16(block.second_mask, from);
    }
    return v;
  }
  ALWAYS_INLINE __m512i load_times_gelu_gradient(int64_t pixel, const ChannelBlock& block,
                                                 const GeluTable<Activation::gelu_gradient>& gelu_gradient,
                                                 bool store_product) const {
    const int64_t at = pixel * first_channels + block.first_offset, ahead = at + PREFETCH_DISTANCE * first_channels;
    __builtin_prefetch(first + ahead);
    __builtin_prefetch(z + ahead);
    const Fp32x32 grad = to_fp32(_mm512_maskz_loadu_epi16(block.first_mask, first + at));
    const Fp32x32 value = to_fp32(_mm512_maskz_loadu_epi16(block.first_mask, z + at));
    const __m512i v = to_bf16({grad.low * gelu_gradient(value.low), grad.high * gelu_gradient(value.high)});
    if (store_product) {
      __builtin_prefetch(product + ahead, 1);
      _mm512_mask_storeu_epi16(product + at, block.first_mask, v);
    }
    return v;
  }
};

// A, a ring buffer of padded pixels. The pixels at its beginning are stored once more behind its end, so that a block
// and its taps are read without wrapping around.
template <Activation A>
class PackedInputRing {
 public:
  // Room for at least `pixels`; `mr` are read at once.
  PackedInputRing(Arena& arena, const PaddedImage& image, const InputTensor& input, int64_t pixels, int64_t mr)
      : image_(image),
        input_(input),
        k_blocks_(input.k_blocks()),
        lda_(k_blocks_ * KC),
        rows_(ceil_div(pixels, image.pitch)),
        size_(rows_ * image.pitch),
        channel_blocks_(arena.allocate<InputTensor::ChannelBlock>(k_blocks_)),
        begin_(arena.allocate<bf16_t>((size_ + image.last_tap_offset() + mr) * lda_)),
        end_(begin_ + size_ * lda_),
        mirrored_end_(begin_ + (image.last_tap_offset() + mr) * lda_) {}

  void initialize() {
    for (int64_t n = 0; n < k_blocks_; ++n) channel_blocks_[n] = input_.channel_block(n);
    for (int64_t row = 0; row < rows_ && image_.pad; ++row) {
      bf16_t* pad = begin_ + row * image_.pitch * lda_;
      memset(pad, 0, lda_ * sizeof(bf16_t));
      if (pad < mirrored_end_) memset(pad + size_ * lda_, 0, lda_ * sizeof(bf16_t));
    }
  }

  // Begins with rows y .. y + rows of an image, and those that the kernel reaches around them.
  void start_rows(int64_t image, int64_t y, int64_t rows) {
    first_row_ = y, end_row_ = y + rows, image_pixel_ = image * image_.height * image_.width;
    position_ = k_block_ = 0;
    to_ = end_;
    start_row(y - image_.pad);
  }
  const bf16_t* pixel(int64_t position) const { return begin_ + position % size_ * lda_; }
  int64_t lda() const { return lda_; }

  // Sets how far `advance` goes, to padded pixel `end`; returns how many steps that takes.
  int64_t set_end(int64_t end) {
    packed_end_ = min(end, (end_row_ - first_row_ + 2 * image_.pad) * image_.pitch);
    return max(0, packed_end_ - position_) * k_blocks_;
  }
  // A step packs KC channels of a pixel.
  ALWAYS_INLINE void advance(int64_t steps, const GeluTable<A>& activation) {
    for (; steps > 0 && position_ < packed_end_; --steps) step(activation);
  }

 private:
  ALWAYS_INLINE void start_row(int64_t y) {  // behind its pad
    y_ = y, x_ = 0;
    inside_ = y >= 0 && y < image_.height;
    pixel_ = image_pixel_ + y * image_.width;
    position_ += image_.pad;
    if (to_ == end_) to_ = begin_;
    to_ += image_.pad * lda_;
  }
  ALWAYS_INLINE void step(const GeluTable<A>& activation) {
    __m512i v = _mm512_setzero_si512();
    if (inside_) {
      if constexpr (A == Activation::gelu_gradient)
        v = input_.load_times_gelu_gradient(pixel_, channel_blocks_[k_block_], activation,
                                            y_ >= first_row_ && y_ < end_row_);
      else
        v = input_.load(pixel_, channel_blocks_[k_block_]);
    }
    bf16_t* to = to_ + k_block_ * KC;
    _mm512_store_si512(to, v);
    if (to_ < mirrored_end_) _mm512_store_si512(to + size_ * lda_, v);
    if (++k_block_ < k_blocks_) return;
    k_block_ = 0;
    ++pixel_, ++position_, to_ += lda_;
    if (++x_ == image_.width) start_row(y_ + 1);
  }

  const PaddedImage image_;
  const InputTensor input_;
  const int64_t k_blocks_, lda_, rows_, size_;
  InputTensor::ChannelBlock* const channel_blocks_;
  bf16_t *const begin_, *const end_, *const mirrored_end_;
  int64_t first_row_, end_row_, image_pixel_;  // of the task
  int64_t y_, x_, pixel_, k_block_;            // of the next step
  int64_t position_, packed_end_ = 0;          // in padded pixels of the task
  bool inside_;
  bf16_t* to_;
};

// The weights (O, taps, C) of a convolution; transposed, of the convolution whose input gradient is computed: its
// outputs are then summed over, and its taps are in reverse.
struct Weights {
  const float* data;
  int64_t taps, in_channels, out_channels;  // of this convolution: summed over, and computed
  bool transposed;
};

// Packs a tile: inputs from KC * k_block on, outputs out .. out + count, of which the tile takes at most 16.
void pack_tile(const Weights& w, int64_t tap, int64_t k_block, int64_t out, int64_t count, bf16_t* to) {
  const int64_t begin = k_block * KC;
  if (!w.transposed) {
    alignas(64) __m512i rows[TILE_ROWS];  // an output's inputs
    for (int64_t n = 0; n < TILE_ROWS; ++n) {
      const float* from = w.data + ((out + n) * w.taps + tap) * w.in_channels + begin;
      const __mmask16 low = n < count ? fp32_mask(w.in_channels - begin) : 0;
      const __mmask16 high = n < count ? fp32_mask(w.in_channels - begin - FP32_LANES) : 0;
      rows[n] = to_bf16({_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + FP32_LANES)});
    }
    transpose_16x16(rows, [&](int row, __m512i value) { _mm512_store_si512(to + row * KC, value); });
    return;
  }
  const __mmask16 mask = fp32_mask(count);
  for (int64_t pair = 0; pair < TILE_ROWS; ++pair) {
    const int64_t in = begin + 2 * pair;
    const float* from = w.data + (in * w.taps + w.taps - 1 - tap) * w.out_channels + out;
    const __m512i both =
        to_bf16({_mm512_maskz_loadu_ps(in < w.in_channels ? mask : 0, from),
                 _mm512_maskz_loadu_ps(in + 1 < w.in_channels ? mask : 0, from + w.taps * w.out_channels)});
    const __v16si order = __v16si{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x10001 + 0x100000;
    _mm512_store_si512(to + pair * KC, _mm512_permutexvar_epi16((__m512i)order, both));
  }
}

}  // namespace
}  // namespace sinfusion
