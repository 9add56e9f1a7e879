// Standard normals for a run of pixels: those of every channel, drawn a Philox block at a time.
//
// The number of pixel p in channel c is c * pixels + p, which begins anywhere in a block of four. A tile is a run that
// is long beside such a block, so that almost every block is drawn once.
#pragma once
#include "philox.h"

namespace sinfusion {

constexpr int TILE_PIXELS = 128;  // pixels, a multiple of 4; also the device's threads for them
constexpr int TILE_NORMALS =
    4 * (TILE_PIXELS / 4 + 1);  // room for those of a channel, from the beginning of their first block

struct Tile {
  int64_t sample, first;  // pixel, in the order of rows
  int count;
};

SINFUSION_HD static inline int64_t tile_count(int64_t pixels) { return (pixels + TILE_PIXELS - 1) / TILE_PIXELS; }

SINFUSION_HD static inline Tile tile_of(int64_t index, int64_t pixels) {
  const int64_t tiles = tile_count(pixels), first = index % tiles * TILE_PIXELS;
  return {index / tiles, first, int(pixels - first < TILE_PIXELS ? pixels - first : TILE_PIXELS)};
}

// Where the number of a channel and pixel of the tile lies among the drawn.
SINFUSION_HD static inline int normal_index(const Tile& tile, int64_t pixels, int channel, int pixel) {
  return channel * TILE_NORMALS + int((channel * pixels + tile.first) % 4) + pixel;
}

// The part of `thread`, one of TILE: `normals` takes TILE_NORMALS numbers for each channel.
SINFUSION_HD static inline void draw_normals(const RandomStream& draw, const Tile& tile, int64_t pixels, int channels,
                                             int thread, float* normals) {
  constexpr int BLOCKS = TILE_NORMALS / 4;
  for (int i = thread; i < channels * BLOCKS; i += TILE_PIXELS) {
    const int channel = i / BLOCKS, block = i % BLOCKS;
    const int64_t first = channel * pixels + tile.first;
    if (first / 4 + block > (first + tile.count - 1) / 4) continue;
    draw_blocks(draw, uint32_t(first / 4 + block), 1, normals + 4 * i);
  }
}

}  // namespace sinfusion
