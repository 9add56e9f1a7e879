// k x k convolution with zero padding, + bias, then GELU or + residual; forward and backward, channels-last.
// Arguments are checked in Python (sinfusion/ops/dense.py); pointers may be null where noted.
#pragma once
#include <cstdint>

namespace sinfusion {

struct Dense {
  int64_t batch, height, width;
  int64_t channels, skip_channels;    // of x and of skip, which are concatenated
  int64_t out_channels, kernel_size;  // kernel_size: 1 or 3
  bool bf16;                          // activations are bf16, else fp32
  const void* x;                      // (B, H, W, channels)
  const void* skip;                   // (B, H, W, skip_channels) or null
  const float* weight;                // (O, k, k, channels + skip_channels)
};

struct DenseForward : Dense {
  const float* bias;     // (O) or null
  const void* residual;  // (B, H, W, O) or null; not with gelu
  bool gelu;
  void* out;  // (B, H, W, O)
  void* z;    // (B, H, W, O) or null: the input of GELU
};

struct DenseBackward : Dense {
  const void* grad_out;  // (B, H, W, O)
  const void* z;         // as saved, with gelu; else null
  void* grad_z;          // (B, H, W, O), with z: scratch for grad_out * GELU'(z)
  void* grad_x;          // (B, H, W, channels) or null
  void* grad_skip;       // (B, H, W, skip_channels), with grad_x and skip
  float* grad_weight;    // (O, k, k, channels + skip_channels) or null
  float* grad_bias;      // (O) or null
};

#define SINFUSION_DECLARE(name)                \
  namespace name {                             \
  void dense_forward(const DenseForward& a);   \
  void dense_backward(const DenseBackward& a); \
  }
SINFUSION_DECLARE(plain)
SINFUSION_DECLARE(avx2)
SINFUSION_DECLARE(avx512)
SINFUSION_DECLARE(avx512_bf16)  // this and amx: bf16 activations alone
SINFUSION_DECLARE(amx)
#undef SINFUSION_DECLARE

}  // namespace sinfusion
