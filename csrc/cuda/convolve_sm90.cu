// 3x3 convolutions of bf16 activations on Hopper's tensor cores, forward and for the gradient of the input.
//
// out[o][p] = sum over taps and channels of weight[o][tap][c] x[p + tap][c]: a product of (outputs, taps x channels)
// and (taps x channels, pixels), with a warpgroup's 64 outputs as its rows and up to 144 pixels as its columns. A block
// makes a tile of 8 columns and some rows of an image. The pixels that its taps see, with a border of 1, are copied to
// shared memory once (64 channels of them at a time) and all nine taps read them there, shifted; outside an image the
// copy engine writes 0. Weights follow through a ring, each half loaded by one of two blocks of a cluster for both. A
// warp copies while the others multiply; blocks go from tile to tile.
#include <cuda_bf16.h>

#include <algorithm>

#include "convolve_sm90.h"
#include "hopper/gelu.h"
#include "hopper/tma.h"
#include "hopper/wgmma.h"

namespace sinfusion {
namespace {

using namespace hopper;

constexpr int WIDTH = 8;           // of a tile
constexpr int PITCH = WIDTH + 2;   // pixels of a row in shared memory
constexpr int PIXEL = 128;         // bytes: 64 channels
constexpr int WEIGHTS = 64 * 128;  // bytes of a tap's weights for 64 outputs and 64 channels
constexpr int X_STAGES = 2;
constexpr int CLUSTER = 2;
constexpr int SHARED_LIMIT = 227 * 1024;

struct Maps {
  CUtensorMap x, weight, residual, out, z;
  CUtensorMap shortcut[2], shortcut_weight;
};

// The depth of the product in pieces of 64 channels: those of x, with nine taps, then those of the shortcut, with one.
struct Depth {
  int chunks, shortcut_chunks, shortcut_own;  // own: chunks in the shortcut's first tensor

  __device__ __forceinline__ int taps(int chunk) const { return chunk < chunks ? 9 : 1; }
};

struct Tiles {
  int across, down, count, width, height;
};

template <int OUTPUTS, int GROUPS, bool BACKWARD>
struct Shape {
  static constexpr int BLOCKS = OUTPUTS / 64;          // of 64 outputs
  static constexpr int PARTS = OUTPUTS == 64 ? 2 : 1;  // of the pixels, each for warpgroups of its own
  static constexpr int WARPGROUPS = BLOCKS * PARTS;    // that multiply
  static constexpr int N = 8 * GROUPS;                 // pixels of a warpgroup
  static constexpr int HEIGHT = GROUPS * PARTS;        // of a tile
  static constexpr int THREADS = WARPGROUPS * 128 + 32;
  static constexpr int X_BYTES = (HEIGHT + 2) * PITCH * PIXEL;
  static constexpr int X_STAGE = (X_BYTES + 1023) / 1024 * 1024;
  static constexpr int W_STAGE = BLOCKS * WEIGHTS;
  static constexpr int STAGING = N * PIXEL;  // of a warpgroup; a multiple of 1024
  static constexpr int FREE = SHARED_LIMIT - 2048 - X_STAGES * X_STAGE - WARPGROUPS * STAGING;
  static constexpr int W_STAGES = FREE / W_STAGE < 8 ? FREE / W_STAGE : 8;
  static constexpr int SHARED = 2048 + X_STAGES * X_STAGE + WARPGROUPS * STAGING + W_STAGES * W_STAGE;
  static_assert(W_STAGES >= 2);
};

template <class S>
struct Barriers {
  uint64_t x_full[X_STAGES], x_empty[X_STAGES], w_full[S::W_STAGES], w_empty[S::W_STAGES], residual[S::WARPGROUPS];
};

// A place in a ring of stages, and the parity of its phase.
template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Four 8x8 matrices between registers, whose rows are outputs, and staging, whose rows are pixels.
__device__ __forceinline__ void store_transposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

template <class S, bool BACKWARD>
__device__ __forceinline__ void copy_tiles(const Maps& maps, Tiles tiles, Depth depth, uint8_t* x_stages,
                                           uint8_t* w_stages, Barriers<S>& barriers) {
  const int rank = int(cluster_rank());
  Ring<X_STAGES> xs;
  Ring<S::W_STAGES> ws;
  const auto load_weights = [&](int chunk, int tap) {
    wait(&barriers.w_empty[ws.stage], ws.parity ^ 1);
    arrive_expecting(&barriers.w_full[ws.stage], S::W_STAGE);
    const bool of_x = chunk < depth.chunks;
    for (int block = 0; block < S::BLOCKS; ++block) {
      constexpr int ROWS = 64 / CLUSTER;
      uint8_t* to = w_stages + ws.stage * S::W_STAGE + block * WEIGHTS + rank * ROWS * PIXEL;
      const int piece = of_x ? chunk : chunk - depth.chunks;
      const int channel = (BACKWARD ? block : piece) * 64, output = (BACKWARD ? piece : block) * 64 + rank * ROWS;
      load_box_to((1 << CLUSTER) - 1, to, of_x ? maps.weight : maps.shortcut_weight, &barriers.w_full[ws.stage],
                  channel, BACKWARD ? 8 - tap : tap, output);
    }
    ws.advance();
  };
  for (int first = int(blockIdx.x) - rank; first < tiles.count; first += int(gridDim.x)) {
    const int tile = first + rank;  // past the last: an image that is not there, all zeros
    const int column = tile % tiles.across * WIDTH, row = tile / tiles.across % tiles.down * S::HEIGHT;
    const int image = tile / tiles.across / tiles.down;
    for (int chunk = 0; chunk < depth.chunks + depth.shortcut_chunks; ++chunk) {
      wait(&barriers.x_empty[xs.stage], xs.parity ^ 1);
      arrive_expecting(&barriers.x_full[xs.stage], S::X_BYTES);
      int piece = chunk;
      const CUtensorMap* from = &maps.x;
      if (chunk >= depth.chunks) {
        piece -= depth.chunks;
        const bool own = piece < depth.shortcut_own;
        from = &maps.shortcut[own ? 0 : 1], piece -= own ? 0 : depth.shortcut_own;
      }
      load_box(x_stages + xs.stage * S::X_STAGE, *from, &barriers.x_full[xs.stage], piece * 64, column - 1, row - 1,
               image);
      xs.advance();
      for (int tap = 0; tap < depth.taps(chunk); ++tap) load_weights(chunk, tap);
    }
  }
}

// A stage of weights is read no more here, and one of pixels unless it is -1.
template <class S>
__device__ __forceinline__ void release(Barriers<S>& barriers, int w, int x) {
  for (uint32_t block = 0; block < CLUSTER; ++block) arrive_in(&barriers.w_empty[w], block);
  if (x >= 0) arrive(&barriers.x_empty[x]);
}

template <int OUTPUTS, int GROUPS, bool BACKWARD, bool GELU>
__global__ void __launch_bounds__(Shape<OUTPUTS, GROUPS, BACKWARD>::THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
    convolve_kernel(const __grid_constant__ Maps maps, Tiles tiles, Depth depth, const float* bias,
                    const float* shortcut_bias, float* partial, bool has_residual, bool has_z) {
  // What is loaded beside the products: the residual, or what GELU was taken of where the gradient passes through it.
  constexpr bool THROUGH_GELU = BACKWARD && GELU;
  using S = Shape<OUTPUTS, GROUPS, BACKWARD>;
  uint8_t* const x_stages = dynamic_shared_memory();
  uint8_t* const w_stages = x_stages + X_STAGES * S::X_STAGE;
  uint8_t* const stagings = w_stages + S::W_STAGES * S::W_STAGE;
  Barriers<S>& barriers = *reinterpret_cast<Barriers<S>*>(stagings + S::WARPGROUPS * S::STAGING);

  const int thread = int(threadIdx.x), warpgroup = thread / 128;
  if (thread == 0) {
    for (int i = 0; i < X_STAGES; ++i) {
      init_barrier(&barriers.x_full[i], 1);
      init_barrier(&barriers.x_empty[i], S::WARPGROUPS);
    }
    for (int i = 0; i < S::W_STAGES; ++i) {
      init_barrier(&barriers.w_full[i], 1);
      init_barrier(&barriers.w_empty[i], S::WARPGROUPS * CLUSTER);
    }
    for (int i = 0; i < S::WARPGROUPS; ++i) init_barrier(&barriers.residual[i], 1);
    fence_barrier_init();
  }
  synchronize_cluster();
  let_next_begin();
  wait_for_kernels_before();

  if (warpgroup == S::WARPGROUPS) {
    if (thread % 32 == 0) copy_tiles<S, BACKWARD>(maps, tiles, depth, x_stages, w_stages, barriers);
    __syncwarp();
  } else {
    const int rank = int(cluster_rank()), lane = thread % 32, warp = thread / 32 % 4;
    const int block = warpgroup / S::PARTS, part = warpgroup % S::PARTS;
    uint8_t* const staging = stagings + warpgroup * S::STAGING;
    const bool leader = thread % 128 == 0;
    float low = 0.f, high = 0.f;  // biases of the two outputs of this thread
    if (bias) {
      const int output = block * 64 + warp * 16 + lane / 4;
      low = bias[output], high = bias[output + 8];
    }
    if (shortcut_bias) {
      const int output = block * 64 + warp * 16 + lane / 4;
      low += shortcut_bias[output], high += shortcut_bias[output + 8];
    }
    Ring<X_STAGES> xs;
    Ring<S::W_STAGES> ws;
    uint32_t residual_parity = 0;
    for (int first = int(blockIdx.x) - rank; first < tiles.count; first += int(gridDim.x)) {
      const int tile = first + rank;
      const int column = tile % tiles.across * WIDTH;
      const int row = tile / tiles.across % tiles.down * S::HEIGHT + part * GROUPS;
      const int image = tile / tiles.across / tiles.down;
      const bool there = tile < tiles.count;
      if (has_residual && there && leader) {
        wait_for_stores();
        arrive_expecting(&barriers.residual[warpgroup], S::STAGING);
        load_box(staging, maps.residual, &barriers.residual[warpgroup], block * 64, column, row, image);
      }
      float sums[S::N / 2];
      int read_w = -1, read_x = -1;  // stages that the products under way read, released when those are done
      for (int chunk = 0; chunk < depth.chunks + depth.shortcut_chunks; ++chunk) {
        wait(&barriers.x_full[xs.stage], xs.parity);
        const uint32_t pixels = shared_address(x_stages + xs.stage * S::X_STAGE) + part * GROUPS * PITCH * PIXEL;
        for (int tap = 0; tap < depth.taps(chunk); ++tap) {
          wait(&barriers.w_full[ws.stage], ws.parity);
          const uint32_t weights = shared_address(w_stages + ws.stage * S::W_STAGE) + block * WEIGHTS;
          const int place = chunk < depth.chunks ? tap : 4;  // of the nine
          const uint32_t shifted = pixels + (place / 3 * PITCH + place % 3) * PIXEL;
          begin_products();
#pragma unroll
          for (int k = 0; k < 4; ++k)
            Product<S::N, BACKWARD, false>::add(sums, matrix_at(weights + k * (BACKWARD ? 16 * PIXEL : 32), 1024),
                                                matrix_at(shifted + k * 32, PITCH * PIXEL), chunk + tap + k > 0);
          commit_products();
          if (read_w >= 0) {
            wait_for_products<1>();
            if (leader) release<S>(barriers, read_w, read_x);
            read_x = -1;
          }
          read_w = ws.stage;
          ws.advance();
        }
        read_x = xs.stage;
        xs.advance();
      }
      wait_for_products<0>();
      if (leader) release<S>(barriers, read_w, read_x);
      if (!there) continue;

      // Rows of a matrix that this lane addresses: a pixel of group g + lane / 16, outputs of half lane / 8 % 2.
      const uint32_t base = shared_address(staging) + (lane / 16 * 8 + lane % 8) * PIXEL;
      const uint32_t part_of_row = uint32_t((warp * 2 + lane / 8 % 2) ^ (lane % 8)) * 16;
      if (has_residual) {
        wait(&barriers.residual[warpgroup], residual_parity);
        residual_parity ^= 1;
      }
      float of_low = 0.f, of_high = 0.f;  // sums over this thread's pixels, through GELU
      const int inside = min(tiles.height - row, GROUPS), across = tiles.width - column - 2 * (lane % 4);
      for (int pass = has_z ? 0 : 1; pass < 2; ++pass) {
        if (!has_residual) {
          if (leader) wait_for_stores();
          synchronize_warpgroup(warpgroup);
        }
#pragma unroll
        for (int g = 0; g < GROUPS; g += 2) {
          const uint32_t address = base + g * 8 * PIXEL + part_of_row;
          float value[8];
          uint32_t packed[4];
#pragma unroll
          for (int i = 0; i < 8; ++i) value[i] = g + i / 4 < GROUPS ? sums[(g * 4 + i) % (S::N / 2)] : 0.f;
          float beside[8];
          if (has_residual) {
            load_transposed(g + 1 < GROUPS || lane < 16 ? address : address - 8 * PIXEL, packed);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float2 pair = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(packed[i]));
              beside[2 * i] = pair.x, beside[2 * i + 1] = pair.y;
            }
          }
          if constexpr (THROUGH_GELU) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              value[i] *= slope_of_gelu(beside[i] + (i / 2 % 2 ? high : low));
              if (g + i / 4 < inside && i % 2 < across) (i / 2 % 2 ? of_high : of_low) += value[i];
            }
          } else if (pass) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              asm volatile("" : "+f"(value[i]));  // else it is computed for both passes at once, in as many registers
              value[i] += i / 2 % 2 ? high : low;
              if (GELU) value[i] = gelu_of(value[i]);
              if (has_residual) value[i] += beside[i];
            }
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) packed[i] = pack(value[2 * i], value[2 * i + 1]);
          if (g + 1 < GROUPS) {
            store_transposed(address, packed);
          } else {
            asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 [%0], {%1, %2};" ::"r"(address),
                         "r"(packed[0]), "r"(packed[1])
                         : "memory");
          }
        }
        fence_async();
        synchronize_warpgroup(warpgroup);
        if (leader) store_box(pass ? maps.out : maps.z, staging, block * 64, column, row, image);
      }
      if constexpr (THROUGH_GELU) {  // four threads have the same outputs
        of_low += __shfl_xor_sync(~0u, of_low, 1), of_high += __shfl_xor_sync(~0u, of_high, 1);
        of_low += __shfl_xor_sync(~0u, of_low, 2), of_high += __shfl_xor_sync(~0u, of_high, 2);
        if (lane % 4 == 0) {
          float* const to = partial + (int64_t(tile) * S::PARTS + part) * OUTPUTS + block * 64 + warp * 16 + lane / 4;
          to[0] = of_low, to[8] = of_high;
        }
      }
    }
    if (leader) wait_until_stored();
  }
  synchronize_cluster();  // no block leaves while another copies into it
}

// The tile's height that takes the least time, by the count of waves: what a block makes one after another.
template <int OUTPUTS>
int best_groups(const Convolution& a, int blocks) {
  int best = 0;
  int64_t least = INT64_MAX;
  for (const int groups : {9, 12, 17, 18}) {
    const int height = groups * (OUTPUTS == 64 ? 2 : 1);
    const int64_t tiles = int64_t((a.width + WIDTH - 1) / WIDTH) * ((a.height + height - 1) / height) * a.batch;
    const int64_t time = (tiles + blocks - 1) / blocks * (groups + 2);
    if (time < least) least = time, best = groups;
  }
  return best;
}

template <int OUTPUTS, int GROUPS, bool BACKWARD, bool GELU>
int launch(const Convolution& a, int blocks, cudaStream_t stream) {
  using S = Shape<OUTPUTS, GROUPS, BACKWARD>;
  Maps maps;
  const uint64_t x_sizes[4] = {uint64_t(a.inputs), uint64_t(a.width), uint64_t(a.height), uint64_t(a.batch)};
  const uint64_t out_sizes[4] = {OUTPUTS, uint64_t(a.width), uint64_t(a.height), uint64_t(a.batch)};
  const uint64_t weight_sizes[3] = {uint64_t(BACKWARD ? OUTPUTS : a.inputs), 9,
                                    uint64_t(BACKWARD ? a.inputs : OUTPUTS)};
  const uint32_t x_box[4] = {64, PITCH, S::HEIGHT + 2, 1}, out_box[4] = {64, WIDTH, GROUPS, 1};
  const uint32_t weight_box[3] = {64, 1, 64 / CLUSTER};
  int error = make_map(&maps.x, a.x, 4, x_sizes, x_box);
  if (!error) error = make_map(&maps.weight, a.weight, 3, weight_sizes, weight_box);
  if (!error) error = make_map(&maps.out, a.out, 4, out_sizes, out_box);
  constexpr bool THROUGH_GELU = BACKWARD && GELU;
  const void* const beside = THROUGH_GELU ? a.z : a.residual;
  if (!error && a.z && !THROUGH_GELU) error = make_map(&maps.z, a.z, 4, out_sizes, out_box);
  if (!error && beside) error = make_map(&maps.residual, beside, 4, out_sizes, out_box);
  Depth depth{a.inputs / 64, 0, 0};
  if (!error && a.shortcut) {
    const int own = a.shortcut_channels - a.shortcut_skip_channels;
    uint64_t sizes[4] = {uint64_t(own), uint64_t(a.width), uint64_t(a.height), uint64_t(a.batch)};
    const uint64_t of_weight[3] = {uint64_t(a.shortcut_channels), 1, OUTPUTS};
    error = make_map(&maps.shortcut[0], a.shortcut, 4, sizes, x_box);
    sizes[0] = uint64_t(a.shortcut_skip_channels);
    if (!error && a.shortcut_skip) error = make_map(&maps.shortcut[1], a.shortcut_skip, 4, sizes, x_box);
    if (!error) error = make_map(&maps.shortcut_weight, a.shortcut_weight, 3, of_weight, weight_box);
    depth.shortcut_chunks = a.shortcut_channels / 64, depth.shortcut_own = own / 64;
  }
  if (error) return error;
  const Tiles tiles{(a.width + WIDTH - 1) / WIDTH, (a.height + S::HEIGHT - 1) / S::HEIGHT,
                    (a.width + WIDTH - 1) / WIDTH * ((a.height + S::HEIGHT - 1) / S::HEIGHT) * a.batch, a.width,
                    a.height};
  const auto kernel = convolve_kernel<OUTPUTS, GROUPS, BACKWARD, GELU>;
  if (const cudaError_t raised = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED))
    return int(raised);
  const int grid = std::min(blocks / CLUSTER, (tiles.count + CLUSTER - 1) / CLUSTER) * CLUSTER;
  return launch_overlapping(kernel, dim3(unsigned(grid)), S::THREADS, S::SHARED, stream, maps, tiles, depth, a.bias,
                            a.shortcut_bias, a.partial, beside != nullptr, a.z && !THROUGH_GELU);
}

template <int OUTPUTS, bool BACKWARD, bool GELU>
int launch_best(const Convolution& a, int blocks, cudaStream_t stream) {
  switch (best_groups<OUTPUTS>(a, blocks)) {
    case 9:
      return launch<OUTPUTS, 9, BACKWARD, GELU>(a, blocks, stream);
    case 12:
      return launch<OUTPUTS, 12, BACKWARD, GELU>(a, blocks, stream);
    case 17:
      return launch<OUTPUTS, 17, BACKWARD, GELU>(a, blocks, stream);
    default:
      return launch<OUTPUTS, 18, BACKWARD, GELU>(a, blocks, stream);
  }
}

int processors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 0;
  return count;
}

}  // namespace

// Rows of `partial` for an image of 192 outputs.
int64_t partial_rows_sm90(int batch, int height, int width) {
  Convolution a{};
  a.batch = batch, a.height = height, a.width = width;
  const int rows = best_groups<192>(a, processors());
  return int64_t((width + WIDTH - 1) / WIDTH) * ((height + rows - 1) / rows) * batch;
}

// Returns the error of the launch, 0 for none.
int convolve_sm90(const Convolution& a, void* cuda_stream) {
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  const int blocks = processors();
  if (!blocks) return int(cudaErrorInvalidDevice);
  if (a.outputs == 64 && a.backward) return launch_best<64, true, false>(a, blocks, stream);
  if (a.outputs == 128 && a.backward) return launch_best<128, true, false>(a, blocks, stream);
  if (a.outputs == 192 && a.backward && a.gelu) return launch_best<192, true, true>(a, blocks, stream);
  if (a.outputs == 192 && a.backward) return launch_best<192, true, false>(a, blocks, stream);
  if (a.outputs == 64 && !a.gelu) return launch_best<64, false, false>(a, blocks, stream);
  if (a.outputs == 192 && a.gelu) return launch_best<192, false, true>(a, blocks, stream);
  return int(cudaErrorInvalidValue);
}

}  // namespace sinfusion
