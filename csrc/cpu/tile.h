// Tiles of three channels as they lie in memory, channel c of pixel p at 3 p + c. For sources that are compiled once
// for each instruction set; see vector.h.
#pragma once
#include "../common/bf16.h"
#include "../common/normal_tile.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int TILE_VALUES = 3 * TILE_PIXELS;

inline void interleave(const float* red, const float* green, const float* blue, int count, float* out) {
  for (int p = 0; p < count; ++p) {
    out[3 * p] = red[p];
    out[3 * p + 1] = green[p];
    out[3 * p + 2] = blue[p];
  }
}

// Normals of three channels, from `channel` on.
inline void draw_interleaved_normals(const RandomStream& random, const Tile& tile, int64_t pixels, int channel,
                                     float* out) {
  float normals[3][TILE_NORMALS];
  const float* plane[3];
  for (int c = 0; c < 3; ++c) {
    const int64_t first = (channel + c) * pixels + tile.first, end = first + tile.count;
    draw_blocks(random, uint32_t(first / 4), int((end + 3) / 4 - first / 4), normals[c]);
    plane[c] = normals[c] + first % 4;
  }
  interleave(plane[0], plane[1], plane[2], tile.count, out);
}

// Stores three of an image's `channels` channels.
template <class T>
inline void store_channels(const float* values, int count, T* to, int64_t channels) {
  T converted[TILE_VALUES];
  for (int i = 0; i < 3 * count; ++i) store_as(converted + i, values[i]);
  for (int p = 0; p < count; ++p)
    for (int c = 0; c < 3; ++c) to[p * channels + c] = converted[3 * p + c];
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
