// 7x7 depthwise convolutions for Hopper, bf16, with what stands around them in a block; see depthwise_sm90.cu.
#pragma once
#include <cstdint>

namespace sinfusion {

// Activations are (batch, height, width, channels), addresses multiples of 16. Their channels are `channels`, of which
// the last `skip_channels` lie in a tensor of their own; both multiples of 64, together 64 or 128.
struct Depthwise {
  const void* x;
  const void* skip;     // or null
  const float* weight;  // (49, all channels), 16-byte aligned
  const float* bias;    // (all channels,) or null, as the next three
  const float* shift;   // (batch, all channels), rows shift_stride apart
  const float* gain;    // null: no norm
  const float* offset;
  void* out;    // all channels in one tensor
  void* u;      // as out, the input of the norm; or null, as the next two
  float* mean;  // (batch, height, width)
  float* rstd;
  int64_t shift_stride;
  int32_t batch, height, width, channels, skip_channels;
  float eps;
};

// The gradient through the norm, and sums over pixels for shift, gain and offset.
struct NormGradient {
  const void* grad;   // (batch, pixels, channels); channels 64 or 128
  const void* u;      // as grad, the norm's input
  const float* mean;  // (batch, pixels)
  const float* rstd;
  const float* gain;  // (channels,)
  void* du;           // as grad, written
  const void* other;  // as grad: a gradient of which sums are wanted, too; or null
  float* partial;     // (3 or 4, batch, parts, channels), written
  int32_t batch, pixels, channels;
  int32_t parts;  // blocks that share an image
};

// The gradient of the input: the same with taps in reverse, of one tensor into two.
struct DepthwiseGradient {
  const void* grad;  // all channels
  const float* weight;
  const void* add;  // as x: what is added to its gradient; or null, as the next two
  const void* add_skip;
  const void* passed;  // as x, added too
  void* x;             // written
  void* skip;          // written, or null
  int32_t batch, height, width, channels, skip_channels;
};

// That of the weights, in parts to be summed.
struct DepthwiseWeightGradient {
  const void* x;
  const void* skip;
  const void* grad;
  float* partial;  // (parts, 49, all channels), written
  int32_t batch, height, width, channels, skip_channels;
  int32_t parts;  // blocks that share the tiles of all images
};

int depthwise_sm90(const Depthwise& a, void* cuda_stream);
int norm_gradient_sm90(const NormGradient& a, void* cuda_stream);
int depthwise_gradient_sm90(const DepthwiseGradient& a, void* cuda_stream);
int depthwise_weight_gradient_sm90(const DepthwiseWeightGradient& a, void* cuda_stream);

}  // namespace sinfusion
