// The epilogue of a microkernel: + bias, then GELU or a residual, rounded to bf16 and stored where pixels are.
#pragma once
#include "packing.h"

namespace sinfusion {
namespace {

struct OutputTensor {
  bf16_t* data;
  int64_t channels;
  bf16_t* z;               // or null: what GELU is taken of
  const bf16_t* residual;  // or null
};

// Works through a block C (MR, NR) a pixel at a time, so that it can be interleaved with the next product.
template <Activation A>
class Epilogue {
 public:
  explicit Epilogue(const PaddedImage& image) : width_(image.width), pitch_(image.pitch) {}

  // c (count, NR): channels from `channel` on, of padded pixels from column x on; columns from `width` on are pads.
  // pixel: of the image, the first that is not a pad.
  void start(const float* c, int64_t count, int64_t x, int64_t pixel, const OutputTensor& output, int64_t channel,
             const float* bias) {
    c_ = c, left_ = count, x_ = x, output_ = output, bias_ = bias;
    at_ = pixel * output.channels + channel;
    mask_ = bf16_mask(output.channels - channel);
  }
  ALWAYS_INLINE void advance(int64_t pixels, const GeluTable<A>& activation) {
    for (; pixels > 0 && left_ > 0; --pixels, --left_) {
      if (x_ < width_) store_pixel(activation);
      c_ += NR;
      if (++x_ == pitch_) x_ = 0;
    }
  }
  void finish(const GeluTable<A>& activation) { advance(left_, activation); }

 private:
  ALWAYS_INLINE void store_pixel(const GeluTable<A>& activation) {
    Fp32x32 v{_mm512_load_ps(c_) + _mm512_load_ps(bias_),
              _mm512_load_ps(c_ + FP32_LANES) + _mm512_load_ps(bias_ + FP32_LANES)};
    const int64_t ahead = at_ + PREFETCH_DISTANCE * output_.channels;
    __builtin_prefetch(output_.data + ahead, 1);
    if (output_.z) {
      __builtin_prefetch(output_.z + ahead, 1);
      _mm512_mask_storeu_epi16(output_.z + at_, mask_, to_bf16(v));
    }
    if constexpr (A == Activation::gelu) v = {activation(v.low), activation(v.high)};
    if (output_.residual) {
      __builtin_prefetch(output_.residual + ahead);
      const Fp32x32 residual = to_fp32(_mm512_maskz_loadu_epi16(mask_, output_.residual + at_));
      v = {v.low + residual.low, v.high + residual.high};
    }
    _mm512_mask_storeu_epi16(output_.data + at_, mask_, to_bf16(v));
    at_ += output_.channels;
  }

  const int64_t width_, pitch_;
  const float *c_, *bias_;
  int64_t left_ = 0, x_, at_;
  __mmask32 mask_;
  OutputTensor output_;
};

}  // namespace
}  // namespace sinfusion
