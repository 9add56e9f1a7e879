// Standard normals for a tile, a run of pixels, in all channels.
//
// Pixel p of channel c has number c * pixels + p of its stream. Philox makes four numbers at once, and a tile may begin
// anywhere within such a block. Tiles are long beside a block, so almost every block is computed once.
#pragma once
#include "philox.h"

namespace sinfusion {

constexpr int TILE_PIXELS = 128;                         // a multiple of 4; also the threads of a CUDA block
constexpr int TILE_NORMALS = 4 * (TILE_PIXELS / 4 + 1);  // of a channel: whole blocks, from that of the first pixel on

struct Tile {
  int64_t sample, first;  // first: pixel, in row-major order
  int count;
};

SINFUSION_HD static inline int64_t tile_count(int64_t pixels) { return (pixels + TILE_PIXELS - 1) / TILE_PIXELS; }

SINFUSION_HD static inline Tile tile_of(int64_t index, int64_t pixels) {
  const int64_t tiles = tile_count(pixels), first = index % tiles * TILE_PIXELS;
  return {index / tiles, first, int(pixels - first < TILE_PIXELS ? pixels - first : TILE_PIXELS)};
}

// Where a pixel of the tile lies in `normals`, as draw_normals writes them.
SINFUSION_HD static inline int normal_index(const Tile& tile, int64_t pixels, int channel, int pixel) {
  return channel * TILE_NORMALS + int((channel * pixels + tile.first) % 4) + pixel;
}

// The part of one of TILE_PIXELS threads. normals (channels, TILE_NORMALS).
SINFUSION_HD static inline void draw_normals(const RandomStream& random, const Tile& tile, int64_t pixels, int channels,
                                             int thread, float* normals) {
  constexpr int BLOCKS = TILE_NORMALS / 4;
  for (int i = thread; i < channels * BLOCKS; i += TILE_PIXELS) {
    const int channel = i / BLOCKS, block = i % BLOCKS;
    const int64_t first = channel * pixels + tile.first;
    if (first / 4 + block > (first + tile.count - 1) / 4) continue;
    draw_blocks(random, uint32_t(first / 4 + block), 1, normals + 4 * i);
  }
}

}  // namespace sinfusion
