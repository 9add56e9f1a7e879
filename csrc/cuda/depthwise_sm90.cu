// 7x7 depthwise convolutions of bf16 activations + bias + shift + LayerNorm, and their gradients, channels last.
//
// A warp makes 8 columns and some rows of an image for 64 channels, two a thread. So its threads are at the same pixel,
// and shared memory is read 128 bytes in a row at addresses that are known when this is compiled. There the copy engine
// puts the pixels that the block's taps see, 0 outside the image. A number is read once and serves up to 49 sums in
// registers: of the instructions, more than four in five are the multiplications. Sums are fp32.
#include "depthwise_sm90.h"
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

__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ __forceinline__ uint32_t pack(float2 value) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(value.y), "f"(value.x));
  return pair;
}

// Activations whose last channels may lie in a second tensor: `own` channels in the first.
struct Maps {
  CUtensorMap x, skip;
  int own;

  __device__ __forceinline__ void load(void* to, uint64_t* barrier, int channel, int column, int row, int image) const {
    const bool first = channel < own;
    load_box(to, first ? x : skip, barrier, first ? channel : channel - own, column, row, image);
  }
};

// A block of HALVES times 64 channels.
template <int HALVES_>
struct Layout {
  static constexpr int HALVES = HALVES_, ROWS = 2, DOWN = 2;  // rows of a warp, warps below each other
  static constexpr int THREADS = 2 * DOWN * HALVES * 32;
  static constexpr int BLOCKS = HALVES == 1 ? 5 : 2;             // on a multiprocessor
  static constexpr int HEIGHT = DOWN * ROWS;                     // of the block's tile
  static constexpr int TILE = (HEIGHT + 6) * TILE_SEEN * PIXEL;  // words that it sees of 64 channels
};

// Where this thread is. left and top: of the block's tile; x, y: of the warp's in it.
template <class L>
struct Place {
  static constexpr int HALVES = L::HALVES, ROWS = L::ROWS, HEIGHT = L::HEIGHT;
  int lane, half, left, top, image;
  int x, y;

  __device__ __forceinline__ Place() {
    const int warp = int(threadIdx.x) / 32;
    lane = int(threadIdx.x) % 32, half = warp % HALVES;
    x = warp / HALVES % 2 * WIDTH, y = warp / HALVES / 2 * ROWS;
    left = int(blockIdx.x) * TILE_WIDTH, top = int(blockIdx.y) * HEIGHT, image = int(blockIdx.z);
  }
};

// Pixels of the block into shared memory, and the sums of the warp's tile. `taps` (49, all channels) come from L1.
template <class L>
__device__ __forceinline__ void convolve(float2 (&sums)[L::ROWS][WIDTH], const Place<L>& place, const Maps& maps,
                                         const float* taps, bool reverse) {
  extern __shared__ __align__(128) uint32_t tiles[];  // (half, row, column, pair of channels)
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    init_barrier(&full, 1);
    fence_barrier_init();
  }
  let_next_begin();
  wait_for_kernels_before();
  if (threadIdx.x == 0) {
    arrive_expecting(&full, L::HALVES * L::TILE * 4);
    for (int half = 0; half < L::HALVES; ++half)
      maps.load(tiles + half * L::TILE, &full, half * 64, place.left - 3, place.top - 3, place.image);
  }
  __syncthreads();
  wait(&full, 0);

  const uint32_t* pixels = tiles + place.half * L::TILE + (place.y * TILE_SEEN + place.x) * PIXEL + place.lane;
  const float2* own_taps = reinterpret_cast<const float2*>(taps + place.half * 64) + place.lane;
#pragma unroll
  for (int r = 0; r < L::ROWS; ++r)
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sums[r][i] = {0.f, 0.f};
#pragma unroll
  for (int seen = 0; seen < L::ROWS + 6; ++seen) {
    float2 x[SEEN];
#pragma unroll
    for (int i = 0; i < SEEN; ++i) x[i] = unpack(pixels[(seen * TILE_SEEN + i) * PIXEL]);
#pragma unroll
    for (int r = 0; r < L::ROWS; ++r) {
      const int dy = seen - r;
      if (dy < 0 || dy >= 7) continue;
#pragma unroll
      for (int dx = 0; dx < 7; ++dx) {
        const int tap = dy * 7 + dx;
        const float2 factor = __ldg(own_taps + (reverse ? 48 - tap : tap) * L::HALVES * PIXEL);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          sums[r][i].x = fmaf(factor.x, x[i + dx].x, sums[r][i].x);
          sums[r][i].y = fmaf(factor.y, x[i + dx].y, sums[r][i].y);
        }
      }
    }
  }
}

// Of 2 HALF values a thread keeps the sums, over both threads, of the half that is its own.
template <int HALF, int COUNT>
__device__ __forceinline__ void fold(float (&value)[COUNT]) {
  const bool upper = threadIdx.x & HALF;
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    const float low = value[i], high = value[i + HALF];
    value[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, HALF);
  }
  if constexpr (HALF > 1) fold<HALF / 2>(value);
}

// Sums each of 16 values over the warp's threads: thread i ends with that of value i % 16.
__device__ __forceinline__ float sum_over_threads(float (&value)[16]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) value[i] += __shfl_xor_sync(~0u, value[i], 16);
  fold<8>(value);
  return value[0];
}

// A sum over 64 channels becomes one over all: the warp with the others of the same pixels adds its own.
template <class L>
__device__ __forceinline__ float add_other_half(float (&exchange)[L::THREADS / 32][32], float sum) {
  if (L::HALVES == 1) return sum;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  __syncthreads();
  exchange[warp][lane] = sum;
  __syncthreads();
  return exchange[warp & ~1][lane] + exchange[warp | 1][lane];
}

template <int HALVES>
__global__ void __launch_bounds__(Layout<HALVES>::THREADS, Layout<HALVES>::BLOCKS)
    depthwise_kernel(const __grid_constant__ Maps maps, Depthwise a) {
  using L = Layout<HALVES>;
  constexpr int ROWS = L::ROWS, COUNT = ROWS * WIDTH, PAIRS = HALVES * 32;
  __shared__ float exchange[L::THREADS / 32][32];
  const Place<L> place;
  float2 sums[ROWS][WIDTH];
  convolve<L>(sums, place, maps, a.weight, false);

  const int row = place.top + place.y, column = place.left + place.x, channel = place.half * 64 + 2 * place.lane;
  float2 constant{0.f, 0.f};
  if (a.bias) constant = {a.bias[channel], a.bias[channel + 1]};
  if (a.shift) {
    const float* shift = a.shift + place.image * a.shift_stride + channel;
    constant.x += shift[0], constant.y += shift[1];
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sums[r][i].x += constant.x, sums[r][i].y += constant.y;

  const int64_t start = int64_t(place.image) * a.height * a.width;
  const auto store = [&](void* to) {
    uint32_t* out = static_cast<uint32_t*>(to) + (start + int64_t(row) * a.width + column) * PAIRS + channel / 2;
#pragma unroll
    for (int r = 0; r < ROWS; ++r, out += int64_t(a.width) * PAIRS)
#pragma unroll
      for (int i = 0; i < WIDTH; ++i)
        if (row + r < a.height && column + i < a.width) out[i * PAIRS] = pack(sums[r][i]);
  };
  if (a.u) store(a.u);
  if (a.gain) {
    float value[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) value[i] = sums[i / WIDTH][i % WIDTH].x + sums[i / WIDTH][i % WIDTH].y;
    constexpr float SCALE = 1.f / (HALVES * 64);
    const float mean = add_other_half<L>(exchange, sum_over_threads(value)) * SCALE;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const float average = __shfl_sync(~0u, mean, i);
      float2& sum = sums[i / WIDTH][i % WIDTH];
      sum.x -= average, sum.y -= average;
      value[i] = fmaf(sum.x, sum.x, sum.y * sum.y);
    }
    const float variance = add_other_half<L>(exchange, sum_over_threads(value)) * SCALE;
    const float rstd = rsqrtf(variance + a.eps);
    const float2 gain{a.gain[channel], a.gain[channel + 1]}, offset{a.offset[channel], a.offset[channel + 1]};
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const float factor = __shfl_sync(~0u, rstd, i);
      float2& sum = sums[i / WIDTH][i % WIDTH];
      sum.x = fmaf(sum.x * factor, gain.x, offset.x), sum.y = fmaf(sum.y * factor, gain.y, offset.y);
    }
    const int r = row + place.lane / WIDTH, c = column + place.lane % WIDTH;
    if (a.mean && place.half == 0 && place.lane < COUNT && r < a.height && c < a.width) {
      a.mean[start + int64_t(r) * a.width + c] = mean;
      a.rstd[start + int64_t(r) * a.width + c] = rstd;
    }
  }
  store(a.out);
}

// A warp takes four groups of pixels at a time, a group of 128 channels together, four a thread.
constexpr int NORM_WARPS = 8, NORM_GROUPS = 4;

template <int CHANNELS>
__global__ void __launch_bounds__(NORM_WARPS * 32) norm_gradient_kernel(NormGradient a) {
  constexpr int LANES = CHANNELS / 4, EACH = 32 / LANES;  // threads of a pixel, pixels of a group
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, channel = lane % LANES * 4;
  const int image = int(blockIdx.y);
  float sums[4][4] = {};  // for shift, gain and offset, and of other
  let_next_begin();
  wait_for_kernels_before();
  const float4 gain = *reinterpret_cast<const float4*>(a.gain + channel);
  constexpr int STEP = NORM_WARPS * NORM_GROUPS * EACH;
  for (int first = int(blockIdx.x) * STEP; first < a.pixels; first += a.parts * STEP) {
    uint2 grads[NORM_GROUPS], inputs[NORM_GROUPS], others[NORM_GROUPS] = {};
    float mean[NORM_GROUPS], rstd[NORM_GROUPS];
#pragma unroll
    for (int i = 0; i < NORM_GROUPS; ++i) {
      const int pixel = first + (i * NORM_WARPS + warp) * EACH + lane / LANES;
      const bool inside = pixel < a.pixels;
      const int64_t at = int64_t(image) * a.pixels + (inside ? pixel : 0), place = (at * CHANNELS + channel) / 4;
      grads[i] = inside ? __ldg(static_cast<const uint2*>(a.grad) + place) : make_uint2(0, 0);
      inputs[i] = __ldg(static_cast<const uint2*>(a.u) + place);
      mean[i] = __ldg(a.mean + at), rstd[i] = __ldg(a.rstd + at);
      if (a.other && inside) others[i] = __ldg(static_cast<const uint2*>(a.other) + place);
    }
#pragma unroll
    for (int i = 0; i < NORM_GROUPS; ++i) {
      const float2 g0 = unpack(grads[i].x), g1 = unpack(grads[i].y), u0 = unpack(inputs[i].x), u1 = unpack(inputs[i].y);
      float g[4] = {g0.x, g0.y, g1.x, g1.y}, normed[4] = {u0.x, u0.y, u1.x, u1.y};
      const float gains[4] = {gain.x, gain.y, gain.z, gain.w};
      const float2 o0 = unpack(others[i].x), o1 = unpack(others[i].y);
      sums[3][0] += o0.x, sums[3][1] += o0.y, sums[3][2] += o1.x, sums[3][3] += o1.y;
      float along_one = 0.f, along_normed = 0.f;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        normed[c] = (normed[c] - mean[i]) * rstd[i];
        sums[1][c] = fmaf(g[c], normed[c], sums[1][c]), sums[2][c] += g[c];
        g[c] *= gains[c];
        along_one += g[c], along_normed = fmaf(g[c], normed[c], along_normed);
      }
#pragma unroll
      for (int by = LANES / 2; by > 0; by /= 2) {
        along_one += __shfl_xor_sync(~0u, along_one, by);
        along_normed += __shfl_xor_sync(~0u, along_normed, by);
      }
      along_one *= 1.f / CHANNELS, along_normed *= 1.f / CHANNELS;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        g[c] = (g[c] - along_one - normed[c] * along_normed) * rstd[i];
        sums[0][c] += g[c];
      }
      const int pixel = first + (i * NORM_WARPS + warp) * EACH + lane / LANES;
      if (pixel < a.pixels)
        static_cast<uint2*>(a.du)[((int64_t(image) * a.pixels + pixel) * CHANNELS + channel) / 4] =
            make_uint2(pack({g[0], g[1]}), pack({g[2], g[3]}));
    }
  }
  __shared__ float parts[4][NORM_WARPS * EACH][CHANNELS];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<float4*>(&parts[i][warp * EACH + lane / LANES][channel]) =
        make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
  __syncthreads();
  for (int i = int(threadIdx.x); i < (a.other ? 4 : 3) * CHANNELS; i += NORM_WARPS * 32) {
    float sum = 0.f;
    for (int row = 0; row < NORM_WARPS * EACH; ++row) sum += parts[i / CHANNELS][row][i % CHANNELS];
    a.partial[((int64_t(i / CHANNELS) * a.batch + image) * a.parts + blockIdx.x) * CHANNELS + i % CHANNELS] = sum;
  }
}

template <int HALVES>
__global__ void __launch_bounds__(Layout<HALVES>::THREADS, Layout<HALVES>::BLOCKS)
    gradient_kernel(const __grid_constant__ Maps maps, DepthwiseGradient a) {
  using L = Layout<HALVES>;
  constexpr int ROWS = L::ROWS;
  const Place<L> place;
  float2 sums[ROWS][WIDTH];
  convolve<L>(sums, place, maps, a.weight, true);

  const int row = place.top + place.y, column = place.left + place.x, own = a.channels - a.skip_channels;
  const bool first = place.half * 64 < own;
  const int pairs = (first ? own : a.skip_channels) / 2;
  const int64_t start = (int64_t(place.image) * a.height * a.width + int64_t(row) * a.width + column) * pairs +
                        (place.half * 64 - (first ? 0 : own)) / 2 + place.lane;
  uint32_t* const out = static_cast<uint32_t*>(first ? a.x : a.skip) + start;
  const auto at_start = [&](const void* data) { return data ? static_cast<const uint32_t*>(data) + start : nullptr; };
  const uint32_t* const addends[2] = {at_start(first ? a.add : a.add_skip), at_start(first ? a.passed : nullptr)};
  const auto inside = [&](int r, int i) { return row + r < a.height && column + i < a.width; };
  // All are read before any is written: else each would wait for the one before it.
#pragma unroll
  for (const uint32_t* add : addends)
    if (add) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          const float2 more = unpack(inside(r, i) ? __ldg(add + int64_t(r * a.width + i) * pairs) : 0u);
          sums[r][i].x += more.x, sums[r][i].y += more.y;
        }
    }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (inside(r, i)) out[int64_t(r * a.width + i) * pairs] = pack(sums[r][i]);
}

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

template <class L, class Arguments>
int launch(void (*kernel)(Maps, Arguments), const Arguments& a, const void* x, const void* skip, int skip_channels,
           void* cuda_stream) {
  Maps maps;
  if (const int error = make_maps(&maps, x, skip, a.channels, skip_channels, a.width, a.height, a.batch, L::HEIGHT + 6))
    return error;
  constexpr int SHARED = L::HALVES * L::TILE * 4;
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED))
    return int(error);
  const dim3 grid(unsigned(divided_up(a.width, TILE_WIDTH)), unsigned(divided_up(a.height, L::HEIGHT)),
                  unsigned(a.batch));
  return launch_overlapping(kernel, grid, L::THREADS, SHARED, cuda_stream, maps, a);
}

}  // namespace

// Each returns the error of its launch, 0 for none.
int depthwise_sm90(const Depthwise& a, void* cuda_stream) {
  return a.channels == 64 ? launch<Layout<1>>(depthwise_kernel<1>, a, a.x, a.skip, a.skip_channels, cuda_stream)
                          : launch<Layout<2>>(depthwise_kernel<2>, a, a.x, a.skip, a.skip_channels, cuda_stream);
}

int norm_gradient_sm90(const NormGradient& a, void* cuda_stream) {
  const auto kernel = a.channels == 64 ? norm_gradient_kernel<64> : norm_gradient_kernel<128>;
  const dim3 grid(unsigned(a.parts), unsigned(a.batch));
  return launch_overlapping(kernel, grid, NORM_WARPS * 32, 0, cuda_stream, a);
}

int depthwise_gradient_sm90(const DepthwiseGradient& a, void* cuda_stream) {
  return a.channels == 64 ? launch<Layout<1>>(gradient_kernel<1>, a, a.grad, nullptr, 0, cuda_stream)
                          : launch<Layout<2>>(gradient_kernel<2>, a, a.grad, nullptr, 0, cuda_stream);
}

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
