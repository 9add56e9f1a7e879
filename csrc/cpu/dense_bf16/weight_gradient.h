// The gradients of the weight and the bias: for each tap, dW (inputs x outputs) = X^T (inputs x pixels) times
// G (pixels x outputs). Here k is the pixels, so both operands are packed with pixels innermost, some rows of an image
// at a time (as many as stay in L2):
//
//     A: x transposed, a row for each channel                  B: G in VNNI order, a row for each pair of pixels
//
//                    padded pixels -->  lda (odd number of KC)     tiles of 16 outputs, each:
//        channel 0   | 0 x x x x ... 0 x x x x ...                         output 0   output 1      output 15
//        channel 1   | 0 x x x x ... 0 x x x x ...              row 0    | p=0  p=1 | p=0  p=1 | ... | p=0  p=1 |
//          ...                                                  row 1    | p=2  p=3 | ...
//
//     A tap (i, j) begins i * pitch + j elements later in A; G is zero where A runs across the end of a row.
//
// The sum over pixels is cut into SPLIT_K parts that the shape fixes; their sums are added in order, so results do not
// depend on the number of threads.
#pragma once
#include "../scratch.h"
#include "../threads.h"
#include "packing.h"

namespace sinfusion {
namespace {

constexpr int64_t SPLIT_K = 4;
constexpr int64_t L2_PANEL_BYTES = 640 << 10;  // of A and B together
constexpr int64_t K_BLOCKS_PER_TAP = 6;        // that are summed for one tap before the next: they stay in L1
constexpr int64_t C_TILE_FLOATS = TILE_ROWS * FP32_LANES, C_FLOATS = 4 * C_TILE_FLOATS;  // of 32 inputs x 32 outputs

struct BlockRange {  // of blocks of 32 channels
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// How the work is cut. Threads beyond the parts of the sum share the channels of x or of the gradient, of which there
// are more.
struct WeightGradientBlocking {
  int64_t x_blocks, grad_blocks;           // of 32 channels
  int64_t panel_rows;                      // of an image, packed at once; at most
  int64_t panels_per_image, panels;        // panels: of the batch
  int64_t k_parts;                         // of the sum over pixels; at most SPLIT_K
  bool split_x;                            // the channels of x are shared, else those of the gradient
  int64_t channel_parts;                   // so many ways
  int64_t floats_per_k_part, bias_floats;  // of sums

  WeightGradientBlocking(const PaddedImage& image, int64_t batch, const InputTensor& x, const InputTensor& grad)
      : x_blocks(x.k_blocks()), grad_blocks(grad.k_blocks()) {
    const int64_t row_bytes = (x_blocks + grad_blocks) * KC * int64_t(sizeof(bf16_t)) * image.pitch;
    panel_rows = max(1, L2_PANEL_BYTES / row_bytes);
    panels_per_image = ceil_div(image.height, panel_rows);
    panels = batch * panels_per_image;
    k_parts = min(SPLIT_K, panels);
    split_x = x_blocks > grad_blocks;
    channel_parts = min(split_x ? x_blocks : grad_blocks, ceil_div(num_threads(), k_parts));
    floats_per_k_part = x_blocks * grad_blocks * image.taps() * C_FLOATS;
    bias_floats = grad_blocks * NR;
  }
  BlockRange x_range(int64_t channel_part) const {
    return split_x ? part_of(x_blocks, channel_part) : BlockRange{0, x_blocks};
  }
  BlockRange grad_range(int64_t channel_part) const {
    return split_x ? BlockRange{0, grad_blocks} : part_of(grad_blocks, channel_part);
  }

 private:
  BlockRange part_of(int64_t blocks, int64_t part) const {
    return {blocks * part / channel_parts, blocks * (part + 1) / channel_parts};
  }
};

// A and B of some rows of an image.
class WeightGradientPanels {
 public:
  WeightGradientPanels(Arena& arena, const PaddedImage& image, const InputTensor& x, BlockRange x_range,
                       const InputTensor& grad, BlockRange grad_range, int64_t max_rows)
      : image_(image),
        x_(x),
        grad_(grad),
        x_range_(x_range),
        grad_range_(grad_range),
        max_pixels_(ceil_div(max_rows * image.pitch, KC) * KC),
        // An odd number of cache lines: 16 rows of a tile are then in 16 different sets of the cache.
        lda_((ceil_div(max_pixels_ + image.last_tap_offset(), KC) | 1) * KC),
        a_(arena.allocate<bf16_t>(x_range.count() * KC * lda_)),
        b_(arena.allocate<bf16_t>(grad_range.count() * KC * max_pixels_)) {}

  // Packs rows y .. y + rows. continues: the rows above are those packed last, of which the kernel's overlap is kept.
  // Adds the gradient to bias_sums.
  void pack(int64_t image, int64_t y, int64_t rows, bool continues, float* bias_sums) {
    const int64_t first_pixel = image * image_.height * image_.width;
    k_blocks_ = ceil_div(rows * image_.pitch, KC);
    int64_t kept = 0;
    if (continues && image_.pad) {
      kept = 2 * image_.pad * image_.pitch / KC * KC;
      for (int64_t c = 0; c < x_range_.count() * KC; ++c)
        memmove(a_ + c * lda_, a_ + c * lda_ + rows_ * image_.pitch, kept * sizeof(bf16_t));
    }
    rows_ = rows;
    pack_x(first_pixel, y, kept);
    pack_grad(first_pixel, y, bias_sums);
  }
  int64_t k_blocks() const { return k_blocks_; }
  int64_t lda() const { return lda_; }
  const bf16_t* a(int64_t block, int64_t position) const {
    return a_ + (block - x_range_.begin) * KC * lda_ + position;
  }
  const bf16_t* b(int64_t block, int64_t half, int64_t position) const {
    return b_ + (2 * (block - grad_range_.begin) + half) * TILE_ROWS * max_pixels_ + position * TILE_ROWS;
  }

 private:
  void pack_x(int64_t first_pixel, int64_t y, int64_t from) {
    int64_t pixels[KC];
    for (int64_t p = from; p < ceil_div(k_blocks_ * KC + image_.last_tap_offset(), KC) * KC; p += KC) {
      locate_pixels(p, image_.pad, y - image_.pad, 0, image_.height, pixels);
      for (int64_t n = x_range_.begin; n < x_range_.end; ++n) {
        const InputTensor::ChannelBlock block = x_.channel_block(n);
        alignas(64) __m512i low[TILE_ROWS], high[TILE_ROWS];
        for (int64_t k = 0; k < TILE_ROWS; ++k) {
          const VnniPair pair =
              to_vnni(load(x_, pixels[2 * k], first_pixel, block), load(x_, pixels[2 * k + 1], first_pixel, block));
          low[k] = pair.low, high[k] = pair.high;
        }
        bf16_t* to = a_ + (n - x_range_.begin) * KC * lda_ + p;
        transpose_16x16(low, [&](int c, __m512i v) { _mm512_store_si512(to + c * lda_, v); });
        transpose_16x16(high, [&](int c, __m512i v) { _mm512_store_si512(to + (TILE_ROWS + c) * lda_, v); });
      }
    }
  }
  void pack_grad(int64_t first_pixel, int64_t y, float* bias_sums) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    int64_t pixels[KC];
    for (int64_t p = 0; p < k_blocks_ * KC; p += KC) {
      locate_pixels(p, 0, y, y, y + rows_, pixels);
      for (int64_t n = grad_range_.begin; n < grad_range_.end; ++n) {
        const InputTensor::ChannelBlock block = grad_.channel_block(n);
        bf16_t* to = b_ + (n - grad_range_.begin) * KC * max_pixels_ + p * TILE_ROWS;
        __m512 low = _mm512_load_ps(bias_sums + n * NR), high = _mm512_load_ps(bias_sums + n * NR + FP32_LANES);
        for (int64_t k = 0; k < TILE_ROWS; ++k, to += KC) {
          const VnniPair pair = to_vnni(load(grad_, pixels[2 * k], first_pixel, block),
                                        load(grad_, pixels[2 * k + 1], first_pixel, block));
          _mm512_store_si512(to, pair.low);
          _mm512_store_si512(to + TILE_ROWS * max_pixels_, pair.high);
          low = _mm512_dpbf16_ps(low, (__m512bh)pair.low, ones);
          high = _mm512_dpbf16_ps(high, (__m512bh)pair.high, ones);
        }
        _mm512_store_ps(bias_sums + n * NR, low);
        _mm512_store_ps(bias_sums + n * NR + FP32_LANES, high);
      }
    }
  }
  // The image's pixels at KC padded pixels, -1 at pads and outside of rows begin .. end. Position 0 is in row y; `pad`
  // of its columns are before the image.
  void locate_pixels(int64_t position, int64_t pad, int64_t y, int64_t begin, int64_t end, int64_t* pixels) const {
    int64_t row = y + position / image_.pitch, x = position % image_.pitch - pad;
    for (int64_t n = 0; n < KC; ++n) {
      const bool inside = row >= begin && row < end && x >= 0 && x < image_.width;
      pixels[n] = inside ? row * image_.width + x : -1;
      if (++x == image_.pitch - pad) x = -pad, ++row;
    }
  }
  static ALWAYS_INLINE __m512i load(const InputTensor& input, int64_t pixel, int64_t first_pixel,
                                    const InputTensor::ChannelBlock& block) {
    return pixel < 0 ? _mm512_setzero_si512() : input.load(first_pixel + pixel, block);
  }

  const PaddedImage image_;
  const InputTensor x_, grad_;
  const BlockRange x_range_, grad_range_;
  const int64_t max_pixels_, lda_;
  bf16_t *const a_, *const b_;
  int64_t rows_ = 0, k_blocks_ = 0;
};

// Adds the products of packed panels to sums (x blocks, gradient blocks, taps, 4 tiles).
template <class Microkernel>
ALWAYS_INLINE void accumulate_panels(const Microkernel& microkernel, const WeightGradientPanels& panels,
                                     const PaddedImage& image, BlockRange x_range, BlockRange grad_range,
                                     int64_t grad_blocks, float* sums) {
  const int64_t kernel_size = image.kernel_size;
  for (int64_t i = 0; i < kernel_size; ++i)
    for (int64_t xb = x_range.begin; xb < x_range.end; ++xb)
      for (int64_t gb = grad_range.begin; gb < grad_range.end; ++gb)
        for (int64_t k_block = 0; k_block < panels.k_blocks(); k_block += K_BLOCKS_PER_TAP)
          for (int64_t j = 0; j < kernel_size; ++j)
            microkernel.gemm_accumulate(
                panels.a(xb, k_block * KC + i * image.pitch + j), panels.lda(), panels.b(gb, 0, k_block * KC),
                panels.b(gb, 1, k_block * KC), min(K_BLOCKS_PER_TAP, panels.k_blocks() - k_block),
                sums + ((xb * grad_blocks + gb) * image.taps() + i * kernel_size + j) * C_FLOATS);
}

// grad_weight (O, taps, C) = the sum of the k parts' sums, transposed.
inline void reduce_weight_sums(const DenseBackward& a, const WeightGradientBlocking& blocking, int64_t taps,
                               const float* sums) {
  constexpr int64_t TILES_PER_CHUNK = 64;
  const int64_t C = a.channels + a.skip_channels;
  parallel_for(blocking.x_blocks * blocking.grad_blocks * taps * 4, TILES_PER_CHUNK, [&](int64_t n) {
    const int64_t tile = n % 4, tap = n / 4 % taps, block = n / (4 * taps);
    const int64_t c = block / blocking.grad_blocks * KC + tile / 2 * TILE_ROWS;
    const int64_t o = block % blocking.grad_blocks * NR + tile % 2 * TILE_ROWS;
    alignas(64) __m512 total[TILE_ROWS];
    for (int64_t r = 0; r < TILE_ROWS; ++r) {
      total[r] = _mm512_setzero_ps();
      for (int64_t part = 0; part < blocking.k_parts; ++part)
        total[r] += _mm512_load_ps(sums + part * blocking.floats_per_k_part + n * C_TILE_FLOATS + r * FP32_LANES);
    }
    const __mmask16 mask = fp32_mask(C - c);
    transpose_16x16(total, [&](int r, __m512i v) {
      if (o + r < a.out_channels)
        _mm512_mask_storeu_ps(a.grad_weight + ((o + r) * taps + tap) * C + c, mask, _mm512_castsi512_ps(v));
    });
  });
}

inline void reduce_bias_sums(const DenseBackward& a, const WeightGradientBlocking& blocking, const float* sums) {
  // Where the channels of x are split, every part has seen all of the gradient.
  const int64_t parts = blocking.split_x ? 1 : blocking.channel_parts;
  for (int64_t o = 0; o < a.out_channels; ++o) {
    float total = 0;
    for (int64_t k_part = 0; k_part < blocking.k_parts; ++k_part)
      for (int64_t part = 0; part < parts; ++part)
        total += sums[(k_part * blocking.channel_parts + part) * blocking.bias_floats + o];
    a.grad_bias[o] = total;
  }
}

template <class Microkernel>
void weight_gradient(const DenseBackward& a, const InputTensor& x, const InputTensor& grad) {
  const PaddedImage image(a);
  const WeightGradientBlocking blocking(image, a.batch, x, grad);
  const int64_t k_parts = blocking.k_parts, channel_parts = blocking.channel_parts;
  const auto make_panels = [&](Arena& arena, int64_t channel_part) {
    return WeightGradientPanels(arena, image, x, blocking.x_range(channel_part), grad,
                                blocking.grad_range(channel_part), blocking.panel_rows);
  };
  Arena count{nullptr};
  make_panels(count, channel_parts - 1);  // none is larger
  const int64_t thread_bytes = count.used;
  const int64_t sum_floats = k_parts * (blocking.floats_per_k_part + channel_parts * blocking.bias_floats);
  Arena arena{caller_scratch(sum_floats)};
  float* sums = arena.allocate<float>(k_parts * blocking.floats_per_k_part);
  float* bias_sums = arena.allocate<float>(k_parts * channel_parts * blocking.bias_floats);

  parallel_chunks(k_parts * channel_parts, [&](Chunks& chunks) {
    const Microkernel microkernel;
    for (int64_t task; chunks.next(task);) {
      const int64_t k_part = task / channel_parts, channel_part = task % channel_parts;
      const BlockRange x_range = blocking.x_range(channel_part), grad_range = blocking.grad_range(channel_part);
      Arena thread_arena{thread_scratch(thread_bytes / sizeof(float))};
      WeightGradientPanels panels = make_panels(thread_arena, channel_part);
      float* task_sums = sums + k_part * blocking.floats_per_k_part;
      for (int64_t xb = x_range.begin; xb < x_range.end; ++xb)
        memset(task_sums + (xb * blocking.grad_blocks + grad_range.begin) * image.taps() * C_FLOATS, 0,
               grad_range.count() * image.taps() * C_FLOATS * sizeof(float));
      float* task_bias_sums = bias_sums + task * blocking.bias_floats;
      memset(task_bias_sums, 0, blocking.bias_floats * sizeof(float));
      const int64_t begin = blocking.panels * k_part / k_parts, end = blocking.panels * (k_part + 1) / k_parts;
      for (int64_t n = begin; n < end; ++n) {
        const int64_t part = n % blocking.panels_per_image;
        const int64_t y = image.height * part / blocking.panels_per_image;
        const int64_t rows = image.height * (part + 1) / blocking.panels_per_image - y;
        panels.pack(n / blocking.panels_per_image, y, rows, n > begin && part > 0, task_bias_sums);
        compiler_barrier();
        accumulate_panels(microkernel, panels, image, x_range, grad_range, blocking.grad_blocks, task_sums);
      }
    }
  });
  if (a.grad_weight) reduce_weight_sums(a, blocking, image.taps(), sums);
  if (a.grad_bias) reduce_bias_sums(a, blocking, bias_sums);
}

}  // namespace
}  // namespace sinfusion
