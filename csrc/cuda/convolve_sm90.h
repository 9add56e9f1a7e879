// A 3x3 convolution for Hopper's tensor cores, bf16; see convolve_sm90.cu.
#pragma once
#include <cstdint>

namespace sinfusion {

// Activations are (batch, height, width, channels); channels are multiples of 64, addresses of 16 bytes.
struct Convolution {
  const void* x;         // inputs channels
  const void* weight;    // (outputs, 3, 3, inputs); backward: (inputs, 3, 3, outputs), taps taken in reverse
  const float* bias;     // (outputs,) or null
  const void* residual;  // outputs channels, or null; not with gelu
  void* out;             // outputs channels, written; backward with gelu: times the slope of GELU at z + bias
  void* z;               // as out, written before bias and GELU, or null; backward: read
  float* partial;        // (partial_rows_sm90, outputs), written: sums of out over pixels; backward with gelu
  // A 1x1 convolution of other activations that is added, forward without gelu; or null. Its channels are in all
  // shortcut_channels, of which the last lie in shortcut_skip.
  const void* shortcut;
  const void* shortcut_skip;
  const void* shortcut_weight;  // (outputs, shortcut_channels)
  const float* shortcut_bias;   // (outputs,) or null
  int32_t shortcut_channels, shortcut_skip_channels;
  int32_t batch, height, width, inputs, outputs;
  bool gelu, backward;
};

// The gradient of its weights, in parts to be summed.
struct ConvolutionWeightGradient {
  const void* grad;  // outputs channels
  const void* x;     // inputs channels
  float* partial;    // (parts, outputs, 3, 3, inputs), written
  int32_t batch, height, width, inputs, outputs;
  int32_t parts;  // clusters of blocks that share the tiles of all images
};

int convolve_weight_gradient_sm90(const ConvolutionWeightGradient& a, void* cuda_stream);
int convolve_sm90(const Convolution& a, void* cuda_stream);
int64_t partial_rows_sm90(int batch, int height, int width);

}  // namespace sinfusion
