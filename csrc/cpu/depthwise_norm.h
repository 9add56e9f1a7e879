// Depthwise 7x7 convolution + bias + shift + LayerNorm over channels, forward and backward, channels-last.
// Arguments are checked in Python (sinfusion/ops/depthwise_norm.py); pointers may be null where noted.
#pragma once
#include <cstdint>

namespace sinfusion {

struct DepthwiseNorm {
  int64_t batch, height, width;
  int64_t channels, skip_channels;  // of x and of skip, which are concatenated; C is their sum
  bool bf16;                        // activations are bf16, else fp32
  const void* x;                    // (B, H, W, channels)
  const void* skip;                 // (B, H, W, skip_channels) or null
  const float* weight;              // (C, 49): taps in row-major order
  const float* gain;                // (C) or null: no norm
};

struct DepthwiseNormForward : DepthwiseNorm {
  const float* bias;   // (C)
  const float* shift;  // (B, C), rows shift_stride floats apart; or null
  int64_t shift_stride;
  const float* offset;  // (C), with gain
  float eps;
  void* out;         // (B, H, W, C)
  void* norm_input;  // (B, H, W, C) or null: the input of the norm, with gain
  float* mean;       // (B, H, W), with u
  float* rstd;       // (B, H, W), with u
};

struct DepthwiseNormBackward : DepthwiseNorm {
  const void* grad_out;    // (B, H, W, C)
  const void* norm_input;  // as saved, with gain
  const float* mean;       // (B, H, W), with gain
  const float* rstd;
  void* grad_x;        // (B, H, W, channels) or null
  void* grad_skip;     // (B, H, W, skip_channels), with grad_x and skip
  float* grad_weight;  // (C, 49) or null
  float* grad_bias;    // (C) or null
  float* grad_shift;   // (B, C), rows grad_shift_stride floats apart; or null
  int64_t grad_shift_stride;
  float* grad_gain;    // (C), with gain, or null
  float* grad_offset;  // (C), with gain, or null
};

#define SINFUSION_DECLARE(name)                  \
  namespace name {                               \
  void forward(const DepthwiseNormForward& a);   \
  void backward(const DepthwiseNormBackward& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
