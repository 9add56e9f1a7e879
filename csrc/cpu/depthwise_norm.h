// Depthwise 7x7 convolution + bias + shift + LayerNorm over channels, forward and backward, channels-last.
// Arguments are checked in Python (sinfusion/ops/depthwise_norm.py); pointers may be null where noted.
#pragma once
#include <cstdint>

namespace sinfusion {

struct DepthwiseNorm {
  int64_t batch, height, width, channels;
  bool bf16;            // activations are bf16, else fp32
  const void* x;        // (B, H, W, C)
  const float* weight;  // (49, C): taps row by row
  const float* gain;    // (C) or null: no norm
};

struct DepthwiseNormForward : DepthwiseNorm {
  const float* bias;    // (C)
  const float* shift;   // (B, C) or null
  const float* offset;  // (C), with gain
  float eps;
  void* out;    // (B, H, W, C)
  void* u;      // (B, H, W, C) or null: the input of the norm
  float* mean;  // (B, H, W), with u and gain
  float* rstd;  // (B, H, W), with u and gain
};

struct DepthwiseNormBackward : DepthwiseNorm {
  const void* grad_out;  // (B, H, W, C)
  const void* u;         // as saved, with gain
  const float* mean;     // (B, H, W), with gain
  const float* rstd;
  void* grad_u;          // (B, H, W, C), with gain: the gradient at the norm's input, to work with
  void* grad_x;          // (B, H, W, C)
  float* grad_weight;    // (49, C)
  float* grad_shift;     // (B, C): its sum over B is the gradient of the bias
  float* grad_gain;      // (C), with gain
  float* grad_offset;    // (C), with gain
};

#define SINFUSION_DECLARE(name)                       \
  namespace name {                                    \
  void forward(const DepthwiseNormForward& a);        \
  void backward(const DepthwiseNormBackward& a);      \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
