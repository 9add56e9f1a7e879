// Numbers of a tile in the order of memory, channel c of pixel p at 3 p + c. For sources compiled once an instruction
// set; in an unnamed namespace, so that no copy made for one serves another.
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

// Normals of three channels.
inline void draw_interleaved_normals(const RandomStream& draw, const Tile& tile, int64_t pixels, int channel,
                                     float* out) {
  float normals[3][TILE_NORMALS];
  const float* plane[3];
  for (int c = 0; c < 3; ++c) {
    const int64_t first = (channel + c) * pixels + tile.first, end = first + tile.count;
    draw_blocks(draw, uint32_t(first / 4), int((end + 3) / 4 - first / 4), normals[c]);
    plane[c] = normals[c] + first % 4;
  }
  interleave(plane[0], plane[1], plane[2], tile.count, out);
}

// To three channels of `channels`.
template <class T>
inline void store_channels(const float* numbers, int count, T* to, int64_t channels) {
  T values[TILE_VALUES];
  for (int i = 0; i < 3 * count; ++i) store_as(values + i, numbers[i]);
  for (int p = 0; p < count; ++p)
    for (int c = 0; c < 3; ++c) to[p * channels + c] = values[3 * p + c];
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
