// 7x7 depthwise convolutions of bf16 activations + bias + shift + LayerNorm, and the gradient of their input, channels
// last, by tensor cores.
//
// Of one channel, 16 patches of 4x2 outputs are a product of matrices: (patches, the 10x8 pixels that each sees) times
// (pixels, the patch's 8 outputs), with the taps in the second, 49 of the 80 in a column and zeros. That is 1.6 times
// the multiplications, at many times their rate. A block makes 16x8 outputs of 64 channels, a warp 16 of those. The
// copy engine puts the pixels that the taps see into shared memory, 0 outside the image. A thread reads 8 channels of a
// pixel at once and pairs them with those of another, since tensor cores want two numbers of the same channel in a
// word. For 128 channels two blocks make the norm together. Taps are rounded to bf16, sums are fp32.
#include "depthwise_sm90.h"
#include "hopper/bf16.h"
#include "hopper/tma.h"

namespace sinfusion {
namespace {

using namespace hopper;

constexpr int WIDTH = 16, HEIGHT = 8, COUNT = WIDTH * HEIGHT;  // of a block's tile, in pixels
constexpr int PITCH = WIDTH + 6, ROWS = HEIGHT + 6;            // of what its taps see
constexpr int PIXEL = 128;                                     // bytes: 64 channels
constexpr int WARPS = 4, THREADS = WARPS * 32, OCTETS = 2;     // of channels, a warp's
constexpr int STAGING = COUNT * PIXEL;                         // bytes of a tile of outputs
constexpr int SEEN = (PITCH * ROWS * PIXEL + 1023) / 1024 * 1024;
// Taps in shared memory, 8 channels of each: in rows of 12, from 1 above the first row and 3 left of the first column,
// so that an output that a pixel does not reach finds 0. What would lie right of a row is the next one's left end.
constexpr int TAP = 16, TAP_PITCH = 12, TAPS = (9 * TAP_PITCH + 1) * TAP;
constexpr int SHARED = 1024 + SEEN + 8 * TAPS;
// Blocks of a multiprocessor: for 64 channels 3 hold all tiles of 256x144 pixels at once, and have the registers to
// load ahead; for 128 there are more than 3 can.
constexpr int blocks_at_once(int halves) { return halves == 1 ? 3 : 4; }
static_assert(2 * STAGING <= SEEN && THREADS == COUNT && 2 * COUNT * int(sizeof(float2)) <= OCTETS * TAPS);

// Activations whose last channels may lie in a second tensor: `own` channels in the first.
struct Activation {
  CUtensorMap first, second;
  int own;

  __device__ __forceinline__ const CUtensorMap& of(int channel) const { return channel < own ? first : second; }
  __device__ __forceinline__ int place(int channel) const { return channel < own ? channel : channel - own; }
};

struct Maps {
  Activation x;
  CUtensorMap out, u;
};

struct GradientMaps {
  CUtensorMap grad, passed;
  Activation add, out;
};

// Where this thread is: its four pixels are (x, y + 4 i + j), its channels `channel` and the 15 after it.
struct Place {
  int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int first;  // channel of the block
  int left, top, image;
  int patch_x, patch_y, x, y;

  __device__ __forceinline__ explicit Place(int halves) {
    first = int(blockIdx.x) % halves * 64;
    left = int(blockIdx.x) / halves * WIDTH, top = int(blockIdx.y) * HEIGHT, image = int(blockIdx.z);
    const int patch = lane / 4;  // neighbours of a row are 4 pixels apart: no two of 8 threads read the same banks
    patch_x = patch % 4 * 4, patch_y = patch / 4 * 2;
    x = patch_x + lane % 4, y = patch_y;
  }
  __device__ __forceinline__ int channel() const { return first + warp * OCTETS * 8; }
  __device__ __forceinline__ static int row(int k) { return k / 2 * 4 + k % 2; }  // of pixel k, from y
  // Where shared memory has eight channels of this thread's pixel k, in a tile of outputs.
  __device__ __forceinline__ int staged(int k, int octet) const {
    const int pixel = (y + row(k)) * WIDTH + x;
    return pixel * PIXEL + (((warp * OCTETS + octet) ^ (pixel % 8)) << 4);
  }
};

// What a channel needs beside its taps.
struct alignas(16) Vectors {
  float added[64], gain[64], offset[64];
};

struct Shared {
  uint8_t *pixels, *taps;
  Vectors* vectors;
  uint64_t* full;  // complete when the pixels are there
};

__device__ __forceinline__ Shared shared_memory() {
  __shared__ Vectors vectors;
  __shared__ uint64_t full;
  uint8_t* const pixels = dynamic_shared_memory();
  return {pixels, pixels + SEEN, &vectors, &full};
}

// Sixteen numbers of a warp's channels.
__device__ __forceinline__ void load(float (&to)[16], const float* from) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 value = *reinterpret_cast<const float4*>(from + 4 * i);
    to[4 * i] = value.x, to[4 * i + 1] = value.y, to[4 * i + 2] = value.z, to[4 * i + 3] = value.w;
  }
}

// Sums of the warp's tile: [eight channels][channel][pixel of Place]. `taps` is (49, channels). What global memory has
// beside the pixels is fetched at the same time: `vector(channel of the block)` tells a thread's part of `Vectors`.
template <int HALVES, class Vector>
__device__ __forceinline__ void convolve(float (&sums)[OCTETS][8][4], const Place& place, const Shared& shared,
                                         const CUtensorMap& x, int channel_of_x, const float* taps, int channels,
                                         bool reverse, Vector vector) {
  const int thread = int(threadIdx.x), lane = place.lane;
  if (thread == 0) {
    init_barrier(shared.full, 1);
    fence_barrier_init();
  }
  for (int i = thread; i < 8 * TAPS / TAP; i += THREADS)
    *reinterpret_cast<uint4*>(shared.taps + i * TAP) = make_uint4(0, 0, 0, 0);
  let_next_begin();
  wait_for_kernels_before();
  if (thread == 0) {
    arrive_expecting(shared.full, PITCH * ROWS * PIXEL);
    load_box(shared.pixels, x, shared.full, channel_of_x, place.left - 3, place.top - 3, place.image);
  }
  float2 values[2][7];  // two rows of taps, of two channels
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int dx = 0; dx < 7; ++dx) {
      const int row = place.warp + r * WARPS, tap = row * 7 + dx;
      if (row < 7)
        values[r][dx] =
            *reinterpret_cast<const float2*>(taps + (reverse ? 48 - tap : tap) * channels + place.first + 2 * lane);
    }
  vector(thread % 64, thread / 64);
  __syncthreads();  // zeros are there
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int dx = 0; dx < 7; ++dx) {
      const int row = place.warp + r * WARPS;
      if (row < 7)
        *reinterpret_cast<uint32_t*>(shared.taps + lane / 4 * TAPS + ((row + 1) * TAP_PITCH + dx + 3) * TAP +
                                     lane % 4 * 4) = pack(values[r][dx]);
    }
  __syncthreads();
  wait(shared.full, 0);

  float added[16];
  load(added, shared.vectors->added + place.warp * 16);
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i / 32][i / 4 % 8][i % 4] = added[i / 4];

  // The depth of the product in groups of four pixels, one for each thread of four: (column, row) of the first. 16 of
  // them are the first eight columns of a row by halves, four are two columns of two rows each.
  const int q = lane % 4, output_x = lane / 8, output_y = lane / 4 % 2;
  const int start = place.patch_y * PITCH + place.patch_x;
#pragma unroll
  for (int octet = 0; octet < OCTETS; ++octet) {
    const int eighth = place.warp * OCTETS + octet;
    const uint8_t* const taps_at = shared.taps + eighth * TAPS + ((1 - output_y) * TAP_PITCH + 3 - output_x) * TAP;
    // The copy engine puts part i of pixel p at i ^ p % 8; of a place and a multiple of 2 that is one of four.
    const auto pixel_at = [&](int first, int further) {
      const int pixel = first + further;
      return shared.pixels + first * PIXEL + ((eighth ^ (pixel & 7)) << 4);
    };
    const int of_rows = start + q, of_ends = start + 8 + q % 2 + q / 2 * PITCH;
    const uint8_t* const rows[4] = {pixel_at(of_rows, 0), pixel_at(of_rows, 2), pixel_at(of_rows, 4),
                                    pixel_at(of_rows, 6)};
    const uint8_t* const ends[2] = {pixel_at(of_ends, 0), pixel_at(of_ends, 4)};
    const uint8_t* const row_taps = taps_at + q * TAP;
    const uint8_t* const end_taps = taps_at + (8 + q % 2 + q / 2 * TAP_PITCH) * TAP;
#pragma unroll
    for (int step = 0; step < 10; ++step) {
      if (HALVES == 2) __syncwarp();   // else more loads are under way at once than there are registers for
      uint4 pixels[2][2], factors[2];  // of two groups, pixels of two patches
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = step < 8 ? step : 4 * step - 32 + 2 * j, column = step < 8 ? 4 * j : 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int further = (4 * i + row) * PITCH + column;
          const uint8_t* const from = step < 8 ? rows[further % 8 / 2] : ends[further % 8 / 4];
          pixels[j][i] = *reinterpret_cast<const uint4*>(from + further * PIXEL);
        }
        factors[j] =
            *reinterpret_cast<const uint4*>((step < 8 ? row_taps : end_taps) + (row * TAP_PITCH + column) * TAP);
      }
      const auto add = [&](int pair, auto word) {
        const uint32_t first[2] = {first_of(word(pixels[0][0]), word(pixels[1][0])),
                                   first_of(word(pixels[0][1]), word(pixels[1][1]))};
        const uint32_t second[2] = {second_of(word(pixels[0][0]), word(pixels[1][0])),
                                    second_of(word(pixels[0][1]), word(pixels[1][1]))};
        multiply_add(sums[octet][2 * pair], first, first_of(word(factors[0]), word(factors[1])));
        multiply_add(sums[octet][2 * pair + 1], second, second_of(word(factors[0]), word(factors[1])));
      };
      add(0, [](const uint4& of) { return of.x; });
      add(1, [](const uint4& of) { return of.y; });
      add(2, [](const uint4& of) { return of.z; });
      add(3, [](const uint4& of) { return of.w; });
    }
  }
}

__device__ __forceinline__ void stage(uint8_t* to, const Place& place, const float (&sums)[OCTETS][8][4]) {
#pragma unroll
  for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const auto pair = [&](int c) { return pack({sums[octet][c][k], sums[octet][c + 1][k]}); };
      *reinterpret_cast<uint4*>(to + place.staged(k, octet)) = make_uint4(pair(0), pair(2), pair(4), pair(6));
    }
}

// Mean, and the sum of squares around it, of some channels of a pixel.
using Moments = float2;

// Those of `count` channels twice.
__device__ __forceinline__ Moments together(Moments a, Moments b, float count) {
  const float apart = a.x - b.x;
  return {0.5f * (a.x + b.x), a.y + b.y + 0.5f * count * apart * apart};
}

// Of all channels of this thread's pixels. It takes the memory of the taps, and all threads of the block, or of both,
// are past the sums afterwards.
template <int HALVES>
__device__ __forceinline__ void moments_of(Moments (&moments)[4], const float (&sums)[OCTETS][8][4], const Place& place,
                                           const Shared& shared) {
  const auto of_warp = [&](int warp) { return reinterpret_cast<Moments*>(shared.taps + warp * OCTETS * TAPS); };
  __syncwarp();  // the warp's own taps are read no more
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float mean = 0.f, squares = 0.f;
#pragma unroll
    for (int i = 0; i < 16; ++i) mean += sums[i / 8][i % 8][k];
    mean *= 1.f / 16;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float apart = sums[i / 8][i % 8][k] - mean;
      squares = fmaf(apart, apart, squares);
    }
    of_warp(place.warp)[(place.y + Place::row(k)) * WIDTH + place.x] = {mean, squares};
  }
  __syncthreads();
  const int pixel = int(threadIdx.x);
  Moments* const of_block = of_warp(0) + COUNT;
  of_block[pixel] = together(together(of_warp(0)[pixel], of_warp(1)[pixel], 16),
                             together(of_warp(2)[pixel], of_warp(3)[pixel], 16), 32);
  if (HALVES == 2) {
    synchronize_cluster();
  } else {
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const Moments* const found = of_block + (place.y + Place::row(k)) * WIDTH + place.x;
    moments[k] = *found;
    if (HALVES == 2) moments[k] = together(moments[k], load_from(found, cluster_rank() ^ 1), 64);
  }
}

template <int HALVES>
__global__ void __cluster_dims__(HALVES, 1, 1) __launch_bounds__(THREADS, blocks_at_once(HALVES))
    depthwise_kernel(const __grid_constant__ Maps maps, Depthwise a) {
  const Place place(HALVES);
  const Shared shared = shared_memory();
  float sums[OCTETS][8][4];
  const auto vector = [&](int channel, int which) {
    const int at = place.first + channel;
    if (which == 0) {
      float added = a.bias ? a.bias[at] : 0.f;
      if (a.shift) added += a.shift[place.image * a.shift_stride + at];
      shared.vectors->added[channel] = added;
    } else if (a.gain) {
      shared.vectors->gain[channel] = a.gain[at], shared.vectors->offset[channel] = a.offset[at];
    }
  };
  convolve<HALVES>(sums, place, shared, maps.x.of(place.first), maps.x.place(place.first), a.weight, a.channels, false,
                   vector);

  const int channel = place.channel();
  if (a.gain) {
    Moments moments[4];
    moments_of<HALVES>(moments, sums, place, shared);
    if (HALVES == 2) arrive_at_cluster();  // this block has read the other's moments
    if (a.u) stage(shared.pixels + STAGING, place, sums);
    float gain[16], offset[16];
    load(gain, shared.vectors->gain + place.warp * 16), load(offset, shared.vectors->offset + place.warp * 16);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float mean = moments[k].x, rstd = rsqrtf(fmaf(moments[k].y, 1.f / (HALVES * 64), a.eps));
      const int row = place.top + place.y + Place::row(k), column = place.left + place.x;
      if (a.mean && channel == 0 && row < a.height && column < a.width) {
        const int64_t at = (int64_t(place.image) * a.height + row) * a.width + column;
        a.mean[at] = mean, a.rstd[at] = rstd;
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        float& sum = sums[i / 8][i % 8][k];
        sum = fmaf(fmaf(sum, rstd, -mean * rstd), gain[i], offset[i]);
      }
    }
  } else {
    __syncthreads();  // the pixels are read no more; their memory takes the outputs
    if (a.u) stage(shared.pixels + STAGING, place, sums);
  }
  stage(shared.pixels, place, sums);
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_box(maps.out, shared.pixels, place.first, place.left, place.top, place.image);
    if (a.u) store_box(maps.u, shared.pixels + STAGING, place.first, place.left, place.top, place.image);
    wait_until_stored();
  }
  if (HALVES == 2 && a.gain) {
    __syncwarp();
    wait_for_cluster();  // no block leaves while the other reads its moments
  }
}

template <int HALVES>
__global__ void __launch_bounds__(THREADS, blocks_at_once(HALVES))
    gradient_kernel(const __grid_constant__ GradientMaps maps, DepthwiseGradient a) {
  const Place place(HALVES);
  const Shared shared = shared_memory();
  float sums[OCTETS][8][4];
  const auto nothing = [&](int channel, int which) {
    if (which == 0) shared.vectors->added[channel] = 0.f;
  };
  convolve<HALVES>(sums, place, shared, maps.grad, place.first, a.weight, a.channels, true, nothing);

  const bool own = place.first < maps.out.own, adds = own ? a.add : a.add_skip, passes = own && a.passed;
  __syncthreads();  // the pixels are read no more; their memory takes what is added, then the gradient
  if (adds || passes) {
    if (threadIdx.x == 0) {
      arrive_expecting(shared.full, (int(adds) + int(passes)) * STAGING);
      const int channel = maps.out.place(place.first);
      if (adds)
        load_box(shared.pixels, maps.add.of(place.first), shared.full, channel, place.left, place.top, place.image);
      if (passes)
        load_box(shared.pixels + STAGING, maps.passed, shared.full, channel, place.left, place.top, place.image);
    }
    wait(shared.full, 1);
    const auto add = [&](const uint8_t* from) {
#pragma unroll
      for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const uint4 more = *reinterpret_cast<const uint4*>(from + place.staged(k, octet));
          const uint32_t words[4] = {more.x, more.y, more.z, more.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 pair = unpack(words[i]);
            sums[octet][2 * i][k] += pair.x, sums[octet][2 * i + 1][k] += pair.y;
          }
        }
    };
    if (adds) add(shared.pixels);
    if (passes) add(shared.pixels + STAGING);
  }
  stage(shared.pixels, place, sums);  // each thread where it has read
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_box(maps.out.of(place.first), shared.pixels, maps.out.place(place.first), place.left, place.top, place.image);
    wait_until_stored();
  }
}

struct Size {
  int width, height, batch;
};

int map_of(CUtensorMap* map, const void* data, int channels, Size size, int width, int height) {
  const uint64_t sizes[4] = {uint64_t(channels), uint64_t(size.width), uint64_t(size.height), uint64_t(size.batch)};
  const uint32_t box[4] = {64, uint32_t(width), uint32_t(height), 1};
  return make_map(map, data, 4, sizes, box);
}

int map_of(Activation* map, const void* first, const void* second, int own, int others, Size size, int width,
           int height) {
  map->own = own;
  int error = first ? map_of(&map->first, first, own, size, width, height) : 0;
  if (!error && second && others) error = map_of(&map->second, second, others, size, width, height);
  return error;
}

template <class M, class Arguments>
int launch(void (*kernel)(M, Arguments), const M& maps, const Arguments& a, void* cuda_stream) {
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED))
    return int(error);
  const dim3 grid(unsigned((a.width + WIDTH - 1) / WIDTH * (a.channels / 64)),
                  unsigned((a.height + HEIGHT - 1) / HEIGHT), unsigned(a.batch));
  return launch_overlapping(kernel, grid, THREADS, SHARED, cuda_stream, maps, a);
}

}  // namespace

// Each returns the error of its launch, 0 for none.
int depthwise_sm90(const Depthwise& a, void* cuda_stream) {
  const Size size{a.width, a.height, a.batch};
  Maps maps;
  int error = map_of(&maps.x, a.x, a.skip, a.channels - a.skip_channels, a.skip_channels, size, PITCH, ROWS);
  if (!error) error = map_of(&maps.out, a.out, a.channels, size, WIDTH, HEIGHT);
  if (!error && a.u) error = map_of(&maps.u, a.u, a.channels, size, WIDTH, HEIGHT);
  if (error) return error;
  return a.channels == 64 ? launch(depthwise_kernel<1>, maps, a, cuda_stream)
                          : launch(depthwise_kernel<2>, maps, a, cuda_stream);
}

int depthwise_gradient_sm90(const DepthwiseGradient& a, void* cuda_stream) {
  const Size size{a.width, a.height, a.batch};
  const int own = a.channels - a.skip_channels;
  GradientMaps maps;
  int error = map_of(&maps.grad, a.grad, a.channels, size, PITCH, ROWS);
  if (!error) error = map_of(&maps.out, a.x, a.skip, own, a.skip_channels, size, WIDTH, HEIGHT);
  if (!error) error = map_of(&maps.add, a.add, a.add_skip, own, a.skip_channels, size, WIDTH, HEIGHT);
  if (!error && a.passed) error = map_of(&maps.passed, a.passed, own, size, WIDTH, HEIGHT);
  if (error) return error;
  return a.channels == 64 ? launch(gradient_kernel<1>, maps, a, cuda_stream)
                          : launch(gradient_kernel<2>, maps, a, cuda_stream);
}

}  // namespace sinfusion
