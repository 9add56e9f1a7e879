// One step of a reverse process, in place. Coefficients and the step counter are read from memory, so that one CUDA
// graph serves every step.
//
//     clean = clamp([0] output + [1] x + [2] prior_mean), or the known image where it is known
//     next  = [3] x + [4] previous + [5] clean + [6] noise
//     input = [7] next + [8] prior_mean                                 what the network reads in the next step
//
// For host and device. Results are the same bits everywhere because CMakeLists.txt forbids the compilers to contract
// a * b + c to a fused multiply-add, which rounds once.
#pragma once
#include "bf16.h"
#include "normal_tile.h"

namespace sinfusion {

// Images are (H, W, 3) in memory. Arguments are checked in Python (sinfusion/ops/ddpm_step.py).
struct DdpmStep {
  int64_t batch, pixels;
  float* x;
  const void* output;  // of the network, or null: clean is 0
  bool output_bf16;
  const float* prior_mean;    // or null
  const float* coefficients;  // (9)
  const int64_t* seeds;       // (B)
  uint32_t stream;
  const int64_t* counter;
  void* inputs;  // (B, H, W, channels), or null: the last three channels are written
  bool inputs_bf16;
  int64_t channels;
  float* previous;           // x of the step before, or null
  const bool* known_mask;    // (B or 1, H, W), or null
  bool known_mask_shared;    // one for all samples
  const float* known_image;  // with `known_mask`
  bool known_image_shared;
};

constexpr int DDPM_NORMALS = 3 * TILE_NORMALS;

SINFUSION_HD static inline bool adds_noise(const DdpmStep& a) { return a.coefficients[6] != 0; }

SINFUSION_HD static inline RandomStream noise_random(const DdpmStep& a, const Tile& tile) {
  return {uint64_t(a.seeds[tile.sample]), a.stream, uint64_t(*a.counter)};
}

// The arithmetic of one value. Terms of null tensors are left out.

// The clean image that the network predicts, clamped to [-1, 1]; NaN stays NaN.
SINFUSION_HD static inline float predicted_clean(const DdpmStep& a, float output, float x, float prior_mean) {
  if (!a.output) return 0;
  float clean = a.coefficients[0] * output + a.coefficients[1] * x;
  if (a.prior_mean) clean += a.coefficients[2] * prior_mean;
  clean = clean < -1 ? -1 : clean;
  return clean > 1 ? 1 : clean;
}

SINFUSION_HD static inline float next_sample(const DdpmStep& a, float x, float previous, float clean, float noise) {
  float next = a.coefficients[3] * x;
  if (a.previous) next += a.coefficients[4] * previous;
  next += a.coefficients[5] * clean;
  if (adds_noise(a)) next += a.coefficients[6] * noise;
  return next;
}

SINFUSION_HD static inline float network_input(const DdpmStep& a, float next, float prior_mean) {
  float input = a.coefficients[7] * next;
  if (a.prior_mean) input += a.coefficients[8] * prior_mean;
  return input;
}

// The device's part, which tests compile for the host, too: value `index` of a tile, as it lies in memory.
SINFUSION_HD static inline void step_value(const DdpmStep& a, const Tile& tile, const float* normals, int index) {
  const int pixel = index / 3, channel = index % 3;
  const int64_t within = tile.first + pixel, row = tile.sample * a.pixels + within, at = 3 * row + channel;
  const float x = a.x[at], prior_mean = a.prior_mean ? a.prior_mean[at] : 0, previous = a.previous ? a.previous[at] : 0;
  const float output = !a.output       ? 0
                       : a.output_bf16 ? to_float(static_cast<const bf16_t*>(a.output)[at])
                                       : static_cast<const float*>(a.output)[at];
  float clean = predicted_clean(a, output, x, prior_mean);
  if (a.known_mask && a.known_mask[a.known_mask_shared ? within : row])
    clean = a.known_image[3 * (a.known_image_shared ? within : row) + channel];
  const float noise = adds_noise(a) ? normals[normal_index(tile, a.pixels, channel, pixel)] : 0;
  const float next = next_sample(a, x, previous, clean, noise);
  if (a.previous) a.previous[at] = x;
  a.x[at] = next;
  if (!a.inputs) return;
  const float input = network_input(a, next, prior_mean);
  const int64_t to = (row + 1) * a.channels - 3 + channel;
  if (a.inputs_bf16)
    store_as(static_cast<bf16_t*>(a.inputs) + to, input);
  else
    store_as(static_cast<float*>(a.inputs) + to, input);
}

}  // namespace sinfusion
