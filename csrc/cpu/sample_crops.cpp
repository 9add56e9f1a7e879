// Tile by tile, in loops that the compiler vectorizes. Compiled once for each instruction set; no C++ library here (see
// vector.h).
#include "sample_crops.h"

#include "threads.h"
#include "tile.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// Calls visit(pixel of the tile, count, y, x) for each run of pixels that lie in one row of the crop.
template <class Visit>
inline void for_each_row(const SampleCrops& a, const Tile& tile, const Visit& visit) {
  int32_t y = int32_t(tile.first / a.crop_width), x = int32_t(tile.first % a.crop_width);
  for (int pixel = 0, count; pixel < tile.count; pixel += count, ++y, x = 0) {
    count = a.crop_width - x < tile.count - pixel ? a.crop_width - x : tile.count - pixel;
    visit(pixel, count, y, x);
  }
}

inline void load_values(const SampleCrops& a, const Tile& tile, int64_t frame, float* out) {
  const int64_t* crop = a.crops + 3 * tile.sample;
  uint8_t bytes[TILE_VALUES];
  for_each_row(a, tile, [&](int pixel, int count, int32_t y, int32_t x) {
    memcpy(bytes + 3 * pixel, pixel_bytes(a, frame, crop, y, x), 3 * count);
  });
  for (int i = 0; i < 3 * tile.count; ++i) out[i] = normalize_byte(bytes[i]);
}

// Coarse noise of three channels at the pixels of a tile.
inline void upsample_coarse_noise(const SampleCrops& a, const Tile& tile, int channel, float* out) {
  const float y_scale = interpolation_scale(a.crop_height, a.coarse_height);
  const float x_scale = interpolation_scale(a.crop_width, a.coarse_width);
  float planes[3][TILE_PIXELS];
  for_each_row(a, tile, [&](int pixel, int count, int32_t y, int32_t x) {
    const Interpolation rows = interpolation_at(y, y_scale, a.coarse_height);
    for (int c = 0; c < 3; ++c) {
      const float* values = coarse_noise_plane(a, tile, channel + c);
      const float *above = values + rows.lower * a.coarse_width, *below = values + rows.upper * a.coarse_width;
      float* to = planes[c] + pixel;
      for (int i = 0; i < count; ++i)
        to[i] = bilinear(above, below, rows.weight, interpolation_at(x + i, x_scale, a.coarse_width));
    }
  });
  interleave(planes[0], planes[1], planes[2], tile.count, out);
}

template <class T>
inline void crop_tile(const SampleCrops& a, const Tile& tile, T* input) {
  const int64_t pixels = pixels_of(a), row = tile.sample * pixels + tile.first, channels = 3 * (a.conditions + 1);
  const int64_t target_frame = a.crops[3 * tile.sample];
  const int values_count = 3 * tile.count;
  float noise[TILE_VALUES], white_noise[TILE_VALUES] = {}, coarse_noise[TILE_VALUES] = {}, values[TILE_VALUES];
  float newer[TILE_VALUES], condition[TILE_VALUES], prior_mean[TILE_VALUES] = {};
  T* to = input + row * channels;
  for (int i = 0; i < a.conditions; ++i, to += 3) {
    const float* c = condition_coefficients(a, tile, i);
    load_values(a, tile, condition_frame(a, tile, i), values);
    for (int k = 0; k < values_count; ++k) condition[k] = is_change(a, i) ? newer[k] - values[k] : values[k];
    if (a.changes) memcpy(newer, values, sizeof(float) * values_count);
    if (c[1] != 0) draw_interleaved_normals(white_noise_random(a, tile), tile, pixels, 3 * i, white_noise);
    if (a.coarse_noise) upsample_coarse_noise(a, tile, 3 * i, coarse_noise);
    for (int k = 0; k < values_count; ++k) {
      condition[k] = noisy_condition(a, c, condition[k], white_noise[k], coarse_noise[k]);
      prior_mean[k] += c[3] * condition[k];
    }
    store_channels(condition, tile.count, to, channels);
  }
  const float* c = image_coefficients(a, tile);
  load_values(a, tile, target_frame, values);
  draw_interleaved_normals(noise_random(a, tile), tile, pixels, 0, noise);
  float noisy[TILE_VALUES], *target = a.target + 3 * row;
  for (int k = 0; k < values_count; ++k) noisy[k] = linear_combination(c, values[k], noise[k], prior_mean[k]);
  store_channels(noisy, tile.count, to, channels);
  for (int k = 0; k < values_count; ++k) target[k] = linear_combination(c + 3, values[k], noise[k], prior_mean[k]);
}

}  // namespace

void sample_crops(const SampleCrops& a) {
  const int64_t pixels = pixels_of(a), tiles = a.batch * tile_count(pixels);
  parallel_for(tiles, 4, [&](int64_t i) {
    if (a.bf16)
      crop_tile(a, tile_of(i, pixels), static_cast<bf16_t*>(a.input));
    else
      crop_tile(a, tile_of(i, pixels), static_cast<float*>(a.input));
  });
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
