// A training batch of crops of uint8 frames: noisy inputs of the network, and its targets.
//
// For host and device. Results are the same bits everywhere because CMakeLists.txt forbids the compilers to contract
// a * b + c to a fused multiply-add, which rounds once.
#pragma once
#include "bf16.h"
#include "normal_tile.h"

namespace sinfusion {

constexpr int MOST_CONDITIONS = 3;

// Arguments are checked in Python (sinfusion/ops/sample_crops.py).
struct SampleCrops {
  const uint8_t* frames;  // (T, height, width, 3)
  int64_t height, width;
  int64_t batch;
  const int64_t* crops;             // (B, 3): frame of the target, top, left; inside the frames
  const int64_t* condition_frames;  // (B, conditions)
  const float* coefficients;  // (B, 6 + 4 conditions): of input and target, 3 each; then of each condition: of its
                              // values, of white and of coarse noise, of it in the prior mean
  const float* coarse_noise;  // (B, 3 conditions, coarse_height, coarse_width), or null
  int32_t coarse_height, coarse_width;
  const int64_t* seeds;  // (B)
  const int64_t* step;
  uint32_t noise_stream, white_noise_stream;
  int32_t conditions;  // at most MOST_CONDITIONS
  bool changes;        // a condition after the first is the change from its frame to that of the condition before
  int32_t crop_height, crop_width;
  void* input;    // (B, crop_height, crop_width, 3 conditions + 3): the conditions, then the noisy image
  bool bf16;      // of input, else fp32
  float* target;  // (B, crop_height, crop_width, 3)
};

constexpr int CROP_NORMALS = 3 * (1 + MOST_CONDITIONS) * TILE_NORMALS;  // the noise, then the white noise

SINFUSION_HD static inline int64_t pixels_of(const SampleCrops& a) { return int64_t(a.crop_height) * a.crop_width; }

SINFUSION_HD static inline RandomStream noise_random(const SampleCrops& a, const Tile& tile) {
  return {uint64_t(a.seeds[tile.sample]), a.noise_stream, uint64_t(*a.step)};
}
SINFUSION_HD static inline RandomStream white_noise_random(const SampleCrops& a, const Tile& tile) {
  return {uint64_t(a.seeds[tile.sample]), a.white_noise_stream, uint64_t(*a.step)};
}
// Of the sample's image: [0, 3) of the input, [3, 6) of the target.
SINFUSION_HD static inline const float* image_coefficients(const SampleCrops& a, const Tile& tile) {
  return a.coefficients + (6 + 4 * a.conditions) * tile.sample;
}
// Of condition i: of its values, of white and of coarse noise, of it in the prior mean.
SINFUSION_HD static inline const float* condition_coefficients(const SampleCrops& a, const Tile& tile, int i) {
  return image_coefficients(a, tile) + 6 + 4 * i;
}
SINFUSION_HD static inline bool has_white_noise(const SampleCrops& a, const Tile& tile) {
  for (int i = 0; i < a.conditions; ++i)
    if (condition_coefficients(a, tile, i)[1] != 0) return true;
  return false;
}

// The part of one of TILE_PIXELS threads. White noise that is not used is not drawn.
SINFUSION_HD static inline void draw_crop_normals(const SampleCrops& a, const Tile& tile, int thread, float* normals) {
  const int64_t pixels = pixels_of(a);
  draw_normals(noise_random(a, tile), tile, pixels, 3, thread, normals);
  if (has_white_noise(a, tile))
    draw_normals(white_noise_random(a, tile), tile, pixels, 3 * a.conditions, thread, normals + 3 * TILE_NORMALS);
}

// Steps of a coarse grid for one of a fine one; corners lie on corners (align_corners=True).
SINFUSION_HD static inline float interpolation_scale(int32_t fine, int32_t coarse) {
  return fine > 1 ? float(coarse - 1) / float(fine - 1) : 0;
}

// The two of `coarse` grid points around fine point `position`; `weight` belongs to the upper one.
struct Interpolation {
  int32_t lower, upper;
  float weight;
};
SINFUSION_HD static inline Interpolation interpolation_at(int32_t position, float scale, int32_t coarse) {
  const float at = float(position) * scale;
  const int32_t lower = int32_t(at) < coarse - 1 ? int32_t(at) : coarse - 1;
  return {lower, lower + 1 < coarse ? lower + 1 : lower, at - float(lower)};
}

SINFUSION_HD static inline const float* coarse_noise_plane(const SampleCrops& a, const Tile& tile, int plane) {
  return a.coarse_noise + (tile.sample * 3 * a.conditions + plane) * a.coarse_height * a.coarse_width;
}
// Between two rows; `weight` belongs to the one below.
SINFUSION_HD static inline float bilinear(const float* above, const float* below, float weight,
                                          const Interpolation& columns) {
  const float top = above[columns.lower] + columns.weight * (above[columns.upper] - above[columns.lower]);
  const float bottom = below[columns.lower] + columns.weight * (below[columns.upper] - below[columns.lower]);
  return top + weight * (bottom - top);
}

// A byte to [-1, 1].
SINFUSION_HD static inline float normalize_byte(uint8_t byte) { return float(byte) / 127.5f - 1.0f; }

// c: the condition's coefficients; value: of its frame, or the change up to the frame before it.
SINFUSION_HD static inline float noisy_condition(const SampleCrops& a, const float* c, float value, float white_noise,
                                                 float coarse) {
  value *= c[0];
  if (c[1] != 0) value += c[1] * white_noise;
  if (a.coarse_noise) value += c[2] * coarse;
  return value;
}
SINFUSION_HD static inline float linear_combination(const float* c, float clean, float noise, float prior_mean) {
  return c[0] * clean + c[1] * noise + c[2] * prior_mean;
}

SINFUSION_HD static inline int64_t condition_frame(const SampleCrops& a, const Tile& tile, int i) {
  return a.condition_frames[a.conditions * tile.sample + i];
}
// Whether condition i is a change.
SINFUSION_HD static inline bool is_change(const SampleCrops& a, int i) { return a.changes && i > 0; }

// The three bytes of a pixel of a crop.
SINFUSION_HD static inline const uint8_t* pixel_bytes(const SampleCrops& a, int64_t frame, const int64_t* crop,
                                                      int64_t y, int64_t x) {
  return a.frames + ((frame * a.height + crop[1] + y) * a.width + crop[2] + x) * 3;
}

// The device's part, which tests compile for the host, too: value `index` of a tile, as the target lies in memory.
SINFUSION_HD static inline void crop_value(const SampleCrops& a, const Tile& tile, const float* normals, int index) {
  const int pixel = index / 3, channel = index % 3;
  const uint32_t within = uint32_t(tile.first + pixel);
  const int32_t y = int32_t(within / uint32_t(a.crop_width)), x = int32_t(within % uint32_t(a.crop_width));
  const int64_t *crop = a.crops + 3 * tile.sample, pixels = pixels_of(a);
  const int64_t row = tile.sample * pixels + within, channels = 3 * (a.conditions + 1);
  const auto store = [&](int at, float value) {
    if (a.bf16)
      store_as(static_cast<bf16_t*>(a.input) + row * channels + at, value);
    else
      store_as(static_cast<float*>(a.input) + row * channels + at, value);
  };
  float prior_mean = 0;
  for (int i = 0; i < a.conditions; ++i) {
    const int plane = 3 * i + channel;
    const float* c = condition_coefficients(a, tile, i);
    float white_noise = 0, coarse = 0;
    if (c[1] != 0) white_noise = normals[3 * TILE_NORMALS + normal_index(tile, pixels, plane, pixel)];
    if (a.coarse_noise) {
      const Interpolation rows =
          interpolation_at(y, interpolation_scale(a.crop_height, a.coarse_height), a.coarse_height);
      const Interpolation columns =
          interpolation_at(x, interpolation_scale(a.crop_width, a.coarse_width), a.coarse_width);
      const float* values = coarse_noise_plane(a, tile, plane);
      coarse =
          bilinear(values + rows.lower * a.coarse_width, values + rows.upper * a.coarse_width, rows.weight, columns);
    }
    const auto value_of = [&](int64_t frame) { return normalize_byte(pixel_bytes(a, frame, crop, y, x)[channel]); };
    float value = value_of(condition_frame(a, tile, i));
    if (is_change(a, i)) value = value_of(condition_frame(a, tile, i - 1)) - value;
    const float condition = noisy_condition(a, c, value, white_noise, coarse);
    store(plane, condition);
    prior_mean += c[3] * condition;
  }
  const float clean = normalize_byte(pixel_bytes(a, crop[0], crop, y, x)[channel]);
  const float* c = image_coefficients(a, tile);
  const float noise = normals[normal_index(tile, pixels, channel, pixel)];
  store(3 * a.conditions + channel, linear_combination(c, clean, noise, prior_mean));
  a.target[3 * row + channel] = linear_combination(c + 3, clean, noise, prior_mean);
}

}  // namespace sinfusion
