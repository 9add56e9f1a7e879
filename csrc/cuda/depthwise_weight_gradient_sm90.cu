// TEMP
#include "depthwise_sm90.h"
#include "hopper/bf16.h"
#include "hopper/tma.h"

namespace sinfusion {
namespace {
using namespace hopper;
constexpr int WIDTH = 8;               // pixels of a warp's row
constexpr int SEEN = WIDTH + 6;        // with the neighbours that its taps see
constexpr int TILE_WIDTH = 2 * WIDTH;  // of a block: two warps beside each other
constexpr int TILE_SEEN = TILE_WIDTH + 6;
constexpr int WARPS = 4;   // of the weights' gradient
constexpr int PIXEL = 32;  // words of 64 channels

// Activations whose last channels may lie in a second tensor: `own` channels in the first.
struct Maps {
  CUtensorMap x, skip;
  int own;

  __device__ __forceinline__ void load(void* to, uint64_t* barrier, int channel, int column, int row, int image) const {
    const bool first = channel < own;
    load_box(to, first ? x : skip, barrier, first ? channel : channel - own, column, row, image);
  }
};

// The gradient of the weights: a block takes every so many tiles of 64 channels, a warp a quarter of each.
constexpr int GRADIENT_ROWS = 2;  // of a warp
constexpr int GRADIENT_HEIGHT = 2 * GRADIENT_ROWS;
constexpr int X_TILE = (GRADIENT_HEIGHT + 6) * TILE_SEEN * PIXEL, GRADIENT_TILE = GRADIENT_HEIGHT * TILE_WIDTH * PIXEL;

struct Tiles {
  int across, down, count;
};

__global__ void __launch_bounds__(WARPS * 32, 3)
    weight_gradient_kernel(const __grid_constant__ Maps maps, const __grid_constant__ CUtensorMap grads, Tiles tiles,
                           float* partial, int channels) {
  extern __shared__ __align__(128) uint32_t buffers[];  // two of X_TILE + GRADIENT_TILE
  __shared__ float parts[WARPS][64];
  __shared__ uint64_t full[2];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, first = int(blockIdx.y) * 64;
  const int x = warp % 2 * WIDTH, y = warp / 2 * GRADIENT_ROWS;
  const auto load = [&](int tile, int buffer) {
    const int column = tile % tiles.across * TILE_WIDTH, row = tile / tiles.across % tiles.down * GRADIENT_HEIGHT;
    const int image = tile / tiles.across / tiles.down;
    uint32_t* const to = buffers + buffer * (X_TILE + GRADIENT_TILE);
    arrive_expecting(&full[buffer], (X_TILE + GRADIENT_TILE) * 4);
    maps.load(to, &full[buffer], first, column - 3, row - 3, image);
    load_box(to + X_TILE, grads, &full[buffer], first, column, row, image);
  };
  let_next_begin();
  wait_for_kernels_before();
  if (threadIdx.x == 0) {
    init_barrier(&full[0], 1);
    init_barrier(&full[1], 1);
    fence_barrier_init();
    for (int i = 0; i < 2; ++i)
      if (int(blockIdx.x) + i * int(gridDim.x) < tiles.count) load(int(blockIdx.x) + i * int(gridDim.x), i);
  }
  float2 sums[49];
#pragma unroll
  for (int i = 0; i < 49; ++i) sums[i] = {0.f, 0.f};
  __syncthreads();
  int buffer = 0;
  uint32_t parity = 0;
  for (int tile = int(blockIdx.x); tile < tiles.count; tile += int(gridDim.x)) {
    wait(&full[buffer], parity);
    const uint32_t* const pixels = buffers + buffer * (X_TILE + GRADIENT_TILE) + (y * TILE_SEEN + x) * PIXEL + lane;
    const uint32_t* const given =
        buffers + buffer * (X_TILE + GRADIENT_TILE) + X_TILE + (y * TILE_WIDTH + x) * PIXEL + lane;
    float2 grad[GRADIENT_ROWS][WIDTH];
#pragma unroll
    for (int r = 0; r < GRADIENT_ROWS; ++r)
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) grad[r][i] = unpack(given[(r * TILE_WIDTH + i) * PIXEL]);
#pragma unroll
    for (int seen = 0; seen < GRADIENT_ROWS + 6; ++seen) {
      float2 value[SEEN];
#pragma unroll
      for (int i = 0; i < SEEN; ++i) value[i] = unpack(pixels[(seen * TILE_SEEN + i) * PIXEL]);
#pragma unroll
      for (int r = 0; r < GRADIENT_ROWS; ++r) {
        const int dy = seen - r;
        if (dy < 0 || dy >= 7) continue;
#pragma unroll
        for (int dx = 0; dx < 7; ++dx) {
          float2& sum = sums[dy * 7 + dx];
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) {
            sum.x = fmaf(grad[r][i].x, value[i + dx].x, sum.x);
            sum.y = fmaf(grad[r][i].y, value[i + dx].y, sum.y);
          }
        }
      }
    }
    __syncthreads();  // all have read the buffer
    if (threadIdx.x == 0 && tile + 2 * int(gridDim.x) < tiles.count) load(tile + 2 * int(gridDim.x), buffer);
    buffer ^= 1;
    parity ^= buffer == 0;
  }
  float* const out = partial + int64_t(blockIdx.x) * 49 * channels + first;
#pragma unroll
  for (int tap = 0; tap < 49; ++tap) {
    *reinterpret_cast<float2*>(&parts[warp][2 * lane]) = sums[tap];
    __syncthreads();
    if (threadIdx.x < 64)
      out[tap * channels + threadIdx.x] =
          (parts[0][threadIdx.x] + parts[1][threadIdx.x]) + (parts[2][threadIdx.x] + parts[3][threadIdx.x]);
    __syncthreads();
  }
}

// Of activations with some channels in a second tensor; boxes of `rows` rows of TILE_SEEN pixels.
int make_maps(Maps* maps, const void* x, const void* skip, int channels, int skip_channels, int width, int height,
              int batch, int rows) {
  maps->own = channels - skip_channels;
  const uint32_t box[4] = {64, TILE_SEEN, uint32_t(rows), 1};
  uint64_t sizes[4] = {uint64_t(maps->own), uint64_t(width), uint64_t(height), uint64_t(batch)};
  int error = make_map(&maps->x, x, 4, sizes, box, false);
  sizes[0] = uint64_t(skip_channels);
  if (!error && skip_channels) error = make_map(&maps->skip, skip, 4, sizes, box, false);
  return error;
}

int divided_up(int value, int by) { return (value + by - 1) / by; }

}  // namespace

int depthwise_weight_gradient_sm90(const DepthwiseWeightGradient& a, void* cuda_stream) {
  Maps maps;
  CUtensorMap grads;
  int error =
      make_maps(&maps, a.x, a.skip, a.channels, a.skip_channels, a.width, a.height, a.batch, GRADIENT_HEIGHT + 6);
  const uint64_t sizes[4] = {uint64_t(a.channels), uint64_t(a.width), uint64_t(a.height), uint64_t(a.batch)};
  const uint32_t box[4] = {64, TILE_WIDTH, GRADIENT_HEIGHT, 1};
  if (!error) error = make_map(&grads, a.grad, 4, sizes, box, false);
  if (error) return error;
  Tiles tiles{divided_up(a.width, TILE_WIDTH), divided_up(a.height, GRADIENT_HEIGHT), 0};
  tiles.count = tiles.across * tiles.down * a.batch;
  constexpr int SHARED = 2 * (X_TILE + GRADIENT_TILE) * 4;
  if (const cudaError_t found =
          cudaFuncSetAttribute(weight_gradient_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED))
    return int(found);
  return launch_overlapping(weight_gradient_kernel, dim3(unsigned(a.parts), unsigned(a.channels / 64)), WARPS * 32,
                            SHARED, cuda_stream, maps, grads, tiles, a.partial, a.channels);
}

}  // namespace sinfusion
