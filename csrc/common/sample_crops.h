// A training batch: crops of uint8 frames, noised, as the network takes them and as it should answer.
//
// For host and device; the same on both as long as no compiler makes one instruction, which rounds once, of products
// and sums: CMakeLists.txt forbids it.
#pragma once
#include "bf16.h"
#include "normal_tile.h"

namespace sinfusion {

// Arguments are checked in Python (sinfusion/ops/sample_crops.py).
struct SampleCrops {
  const uint8_t* frames;  // (T, height, width, 3)
  int64_t height, width;
  int64_t batch;
  const int64_t* crops;       // (B, 4): frame of the target, frame offset, top, left; inside the frames
  const float* coefficients;  // (B, 8)
  const float* coarse_noise;  // (B, 3 conditions, coarse_height, coarse_width), or null
  int32_t coarse_height, coarse_width;
  const int64_t* seeds;  // (B)
  const int64_t* step;
  uint32_t noise_stream, white_noise_stream;
  int32_t conditions;  // 0, 1 or 2
  int32_t crop_height, crop_width;
  void* input;    // (B, crop_height, crop_width, 3 conditions + 3)
  bool bf16;      // input, else fp32
  float* target;  // (B, crop_height, crop_width, 3)
};

constexpr int CROP_NORMALS = 9 * TILE_NORMALS;  // of the noise, then of the white_noise on two conditions

SINFUSION_HD static inline int64_t pixels_of(const SampleCrops& a) { return int64_t(a.crop_height) * a.crop_width; }

SINFUSION_HD static inline RandomStream noise_random(const SampleCrops& a, const Tile& tile) {
  return {uint64_t(a.seeds[tile.sample]), a.noise_stream, uint64_t(*a.step)};
}
SINFUSION_HD static inline RandomStream white_noise_random(const SampleCrops& a, const Tile& tile) {
  return {uint64_t(a.seeds[tile.sample]), a.white_noise_stream, uint64_t(*a.step)};
}
SINFUSION_HD static inline bool has_white_noise(const SampleCrops& a, const Tile& tile) {
  return a.coefficients[8 * tile.sample + 6] != 0;
}

// Of thread `thread`, one of TILE. Where there is no white_noise none is drawn.
SINFUSION_HD static inline void draw_crop_normals(const SampleCrops& a, const Tile& tile, int thread, float* normals) {
  const int64_t pixels = pixels_of(a);
  draw_normals(noise_random(a, tile), tile, pixels, 3, thread, normals);
  if (has_white_noise(a, tile))
    draw_normals(white_noise_random(a, tile), tile, pixels, 3 * a.conditions, thread, normals + 3 * TILE_NORMALS);
}

// Steps of coarse places that one of fine places is long, the ends on the ends.
SINFUSION_HD static inline float interpolation_scale(int32_t fine, int32_t coarse) {
  return fine > 1 ? float(coarse - 1) / float(fine - 1) : 0;
}

// Between which two of `coarse` places that of `crop` steps lies; `weight` belongs to the second.
struct Interpolation {
  int32_t lower, upper;
  float weight;
};
SINFUSION_HD static inline Interpolation interpolation_at(int32_t crop, float stride, int32_t coarse) {
  const float at = float(crop) * stride;
  const int32_t lower = int32_t(at) < coarse - 1 ? int32_t(at) : coarse - 1;
  return {lower, lower + 1 < coarse ? lower + 1 : lower, at - float(lower)};
}

SINFUSION_HD static inline const float* coarse_noise_plane(const SampleCrops& a, const Tile& tile, int plane) {
  return a.coarse_noise + (tile.sample * 3 * a.conditions + plane) * a.coarse_height * a.coarse_width;
}
// Of two rows of coarse_noise, `weight` of the second.
SINFUSION_HD static inline float bilinear(const float* above, const float* below, float weight,
                                          const Interpolation& columns) {
  const float top = above[columns.lower] + columns.weight * (above[columns.upper] - above[columns.lower]);
  const float bottom = below[columns.lower] + columns.weight * (below[columns.upper] - below[columns.lower]);
  return top + weight * (bottom - top);
}

// Of a byte, in [-1, 1].
SINFUSION_HD static inline float normalize_byte(uint8_t byte) { return float(byte) / 127.5f - 1.0f; }

// With the coefficients of its sample.
SINFUSION_HD static inline float noisy_condition(const SampleCrops& a, const float* c, float value, float white_noise,
                                                 float coarse) {
  if (c[6] != 0) value += c[6] * white_noise;
  if (a.coarse_noise) value += c[7] * coarse;
  return value;
}
SINFUSION_HD static inline float mean_of_conditions(const SampleCrops& a, float sum) {
  return a.conditions == 2 ? sum / 2 : sum;
}
SINFUSION_HD static inline float linear_combination(const float* c, float clean, float noise, float prior_mean) {
  return c[0] * clean + c[1] * noise + c[2] * prior_mean;
}

// Frame of condition i of a sample.
SINFUSION_HD static inline int64_t condition_frame(const SampleCrops& a, const int64_t* crop, int i) {
  return crop[0] + (a.conditions == 1 ? -crop[1] : 2 * i - 1);
}

// Where the bytes of a pixel of a crop lie.
SINFUSION_HD static inline const uint8_t* pixel_bytes(const SampleCrops& a, int64_t frame, const int64_t* crop,
                                                      int64_t y, int64_t x) {
  return a.frames + ((frame * a.height + crop[2] + y) * a.width + crop[3] + x) * 3;
}

// Number `index` of the tile, in the order of the target in memory: the device's part, which the tests compile for the
// host too.
SINFUSION_HD static inline void crop_value(const SampleCrops& a, const Tile& tile, const float* normals, int index) {
  const int pixel = index / 3, channel = index % 3;
  const uint32_t within = uint32_t(tile.first + pixel);
  const int32_t y = int32_t(within / uint32_t(a.crop_width)), x = int32_t(within % uint32_t(a.crop_width));
  const int64_t *crop = a.crops + 4 * tile.sample, pixels = pixels_of(a);
  const int64_t row = tile.sample * pixels + within, channels = 3 * (a.conditions + 1);
  const float* c = a.coefficients + 8 * tile.sample;
  const auto store = [&](int at, float value) {
    if (a.bf16)
      store_as(static_cast<bf16_t*>(a.input) + row * channels + at, value);
    else
      store_as(static_cast<float*>(a.input) + row * channels + at, value);
  };
  float sum = 0;
  for (int i = 0; i < a.conditions; ++i) {
    const int plane = 3 * i + channel;
    float white_noise = 0, coarse = 0;
    if (c[6] != 0) white_noise = normals[3 * TILE_NORMALS + normal_index(tile, pixels, plane, pixel)];
    if (a.coarse_noise) {
      const Interpolation rows =
          interpolation_at(y, interpolation_scale(a.crop_height, a.coarse_height), a.coarse_height);
      const Interpolation columns =
          interpolation_at(x, interpolation_scale(a.crop_width, a.coarse_width), a.coarse_width);
      const float* values = coarse_noise_plane(a, tile, plane);
      coarse =
          bilinear(values + rows.lower * a.coarse_width, values + rows.upper * a.coarse_width, rows.weight, columns);
    }
    const uint8_t byte = pixel_bytes(a, condition_frame(a, crop, i), crop, y, x)[channel];
    const float condition = noisy_condition(a, c, normalize_byte(byte), white_noise, coarse);
    store(plane, condition);
    sum += condition;
  }
  const float clean = normalize_byte(pixel_bytes(a, crop[0], crop, y, x)[channel]),
              prior_mean = mean_of_conditions(a, sum);
  const float noise = normals[normal_index(tile, pixels, channel, pixel)];
  store(3 * a.conditions + channel, linear_combination(c, clean, noise, prior_mean));
  a.target[3 * row + channel] = linear_combination(c + 3, clean, noise, prior_mean);
}

}  // namespace sinfusion
