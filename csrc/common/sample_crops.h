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
  const int64_t* places;      // (B, 4): frame of the target, frame offset, top, left; inside the frames
  const float* coefficients;  // (B, 8)
  const float* blotches;      // (B, 3 conditions, blotch_height, blotch_width), or null
  int32_t blotch_height, blotch_width;
  const int64_t* seeds;  // (B)
  const int64_t* step;
  uint32_t noise_stream, grain_stream;
  int32_t conditions;  // 0, 1 or 2
  int32_t crop_height, crop_width;
  void* input;    // (B, crop_height, crop_width, 3 conditions + 3)
  bool bf16;      // input, else fp32
  float* target;  // (B, crop_height, crop_width, 3)
};

constexpr int CROP_NORMALS = 9 * TILE_NORMALS;  // of the noise, then of the grain on two conditions

SINFUSION_HD static inline int64_t pixels_of(const SampleCrops& a) { return int64_t(a.crop_height) * a.crop_width; }

SINFUSION_HD static inline Draw noise_of(const SampleCrops& a, const Tile& tile) {
  return {uint64_t(a.seeds[tile.sample]), a.noise_stream, uint64_t(*a.step)};
}
SINFUSION_HD static inline Draw grain_of(const SampleCrops& a, const Tile& tile) {
  return {uint64_t(a.seeds[tile.sample]), a.grain_stream, uint64_t(*a.step)};
}
SINFUSION_HD static inline bool has_grain(const SampleCrops& a, const Tile& tile) {
  return a.coefficients[8 * tile.sample + 6] != 0;
}

// Of thread `thread`, one of TILE. Where there is no grain none is drawn.
SINFUSION_HD static inline void draw_crop(const SampleCrops& a, const Tile& tile, int thread, float* drawn) {
  const int64_t pixels = pixels_of(a);
  draw_tile(noise_of(a, tile), tile, pixels, 3, thread, drawn);
  if (has_grain(a, tile))
    draw_tile(grain_of(a, tile), tile, pixels, 3 * a.conditions, thread, drawn + 3 * TILE_NORMALS);
}

// Between which two of `coarse` places that of `fine` lies, the ends on the ends; `share` belongs to the second.
struct Between {
  int32_t low, high;
  float share;
};
SINFUSION_HD static inline Between between(int32_t place, int32_t fine, int32_t coarse) {
  const float at = fine > 1 ? float(place) * (float(coarse - 1) / float(fine - 1)) : 0;
  const int32_t low = int32_t(at) < coarse - 1 ? int32_t(at) : coarse - 1;
  return {low, low + 1 < coarse ? low + 1 : low, at - float(low)};
}

SINFUSION_HD static inline float blotch_at(const SampleCrops& a, int64_t plane, int32_t y, int32_t x) {
  const Between rows = between(y, a.crop_height, a.blotch_height), columns = between(x, a.crop_width, a.blotch_width);
  const float* values = a.blotches + plane * a.blotch_height * a.blotch_width;
  const float *above = values + rows.low * a.blotch_width, *below = values + rows.high * a.blotch_width;
  const float top = above[columns.low] + columns.share * (above[columns.high] - above[columns.low]);
  const float bottom = below[columns.low] + columns.share * (below[columns.high] - below[columns.low]);
  return top + rows.share * (bottom - top);
}

// A channel of the pixel of a crop, in [-1, 1].
SINFUSION_HD static inline float value_at(const SampleCrops& a, int64_t frame, int64_t y, int64_t x, int channel) {
  return float(a.frames[((frame * a.height + y) * a.width + x) * 3 + channel]) / 127.5f - 1.0f;
}

// Number `number` of the tile, in the order of the target in memory.
SINFUSION_HD static inline void crop_number(const SampleCrops& a, const Tile& tile, const float* drawn, int number) {
  const int pixel = number / 3, channel = number % 3;
  const uint32_t within = uint32_t(tile.first + pixel);
  const int32_t y = int32_t(within / uint32_t(a.crop_width)), x = int32_t(within % uint32_t(a.crop_width));
  const int64_t *place = a.places + 4 * tile.sample, pixels = pixels_of(a);
  const int64_t row = tile.sample * pixels + within, channels = 3 * (a.conditions + 1);
  const float* c = a.coefficients + 8 * tile.sample;
  const auto store = [&](int at, float value) {
    if (a.bf16)
      put(static_cast<uint16_t*>(a.input) + row * channels + at, value);
    else
      put(static_cast<float*>(a.input) + row * channels + at, value);
  };
  float centre = 0;
  for (int i = 0; i < a.conditions; ++i) {
    const int plane = 3 * i + channel;
    const int64_t frame = place[0] + (a.conditions == 1 ? -place[1] : 2 * i - 1);
    float condition = value_at(a, frame, place[2] + y, place[3] + x, channel);
    if (c[6] != 0) condition += c[6] * drawn[3 * TILE_NORMALS + drawn_at(tile, pixels, plane, pixel)];
    if (a.blotches) condition += c[7] * blotch_at(a, tile.sample * 3 * a.conditions + plane, y, x);
    store(plane, condition);
    centre += condition;
  }
  if (a.conditions == 2) centre /= 2;
  const float clean = value_at(a, place[0], place[2] + y, place[3] + x, channel);
  const float noise = drawn[drawn_at(tile, pixels, channel, pixel)];
  store(3 * a.conditions + channel, c[0] * clean + c[1] * noise + c[2] * centre);
  a.target[3 * row + channel] = c[3] * clean + c[4] * noise + c[5] * centre;
}

}  // namespace sinfusion
