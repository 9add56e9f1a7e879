// Gradients of the weights of 3x3 convolutions of bf16 activations on Hopper's tensor cores.
//
// gradient[o][tap][c] = sum over pixels of grad[p][o] x[p + tap][c]: a product whose depth are pixels. A block makes 64
// outputs x 9 taps x 64 channels of some tiles of 8x8 pixels, which the copy engine brings with a border of 1 around x.
// A warpgroup takes the three taps of a row at once: columns of its product are (tap, channel), and the next tap's lie
// one pixel, 128 bytes, further. The four blocks of a cluster add their sums through each other's shared memory, in
// order, so results repeat to the bit.
#include "convolve_sm90.h"
#include "hopper/tma.h"
#include "hopper/wgmma.h"

namespace sinfusion {
namespace {

using namespace hopper;

constexpr int SIZE = 8;  // of a tile
constexpr int PITCH = SIZE + 2;
constexpr int PIXEL = 128;  // bytes: 64 channels
constexpr int X_BYTES = PITCH * PITCH * PIXEL, GRAD_BYTES = SIZE * SIZE * PIXEL;
constexpr int X_STAGE = (X_BYTES + 1023) / 1024 * 1024, STAGE = X_STAGE + GRAD_BYTES;
constexpr int STAGES = 8;
constexpr int WARPGROUPS = 3;  // that multiply, one for each row of taps
constexpr int CLUSTER = 4;
constexpr int COLUMNS = 9 * 64, ROW = COLUMNS + 8;  // of the sums in shared memory, in numbers
constexpr int SHARED = 2048 + STAGES * STAGE;
static_assert(64 * ROW * 4 <= STAGES * STAGE);

struct Maps {
  CUtensorMap grad, x;
};

struct Tiles {
  int across, down, count;
};

__global__ void __launch_bounds__(WARPGROUPS * 128 + 32, 1) __cluster_dims__(CLUSTER, 1, 1)
    weight_gradient_kernel(const __grid_constant__ Maps maps, Tiles tiles, float* partial, int inputs, int outputs) {
  uint8_t* const stages = dynamic_shared_memory();
  __shared__ uint64_t full[STAGES], empty[STAGES];
  const int thread = int(threadIdx.x), warpgroup = thread / 128, lane = thread % 32;
  const int output = int(blockIdx.y) % (outputs / 64) * 64, input = int(blockIdx.y) / (outputs / 64) * 64;
  if (thread == 0) {
    for (int i = 0; i < STAGES; ++i) {
      init_barrier(&full[i], 1);
      init_barrier(&empty[i], WARPGROUPS);
    }
    fence_barrier_init();
  }
  __syncthreads();
  let_next_begin();
  wait_for_kernels_before();

  float sums[96];
  int stage = 0;
  uint32_t parity = 0;
  if (warpgroup == WARPGROUPS) {
    if (lane == 0) {
      for (int tile = int(blockIdx.x); tile < tiles.count; tile += int(gridDim.x)) {
        const int column = tile % tiles.across * SIZE, row = tile / tiles.across % tiles.down * SIZE;
        const int image = tile / tiles.across / tiles.down;
        uint8_t* const to = stages + stage * STAGE;
        wait(&empty[stage], parity ^ 1);
        arrive_expecting(&full[stage], X_BYTES + GRAD_BYTES);
        load_box(to, maps.x, &full[stage], input, column - 1, row - 1, image);
        load_box(to + X_STAGE, maps.grad, &full[stage], output, column, row, image);
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
    }
    __syncwarp();
  } else {
#pragma unroll
    for (int i = 0; i < 96; ++i) sums[i] = 0.f;
    int read = -1;  // the stage that the products under way read
    for (int tile = int(blockIdx.x); tile < tiles.count; tile += int(gridDim.x)) {
      wait(&full[stage], parity);
      const uint32_t x = shared_address(stages + stage * STAGE) + warpgroup * PITCH * PIXEL;
      const uint32_t grad = shared_address(stages + stage * STAGE) + X_STAGE;
      begin_products();
#pragma unroll
      for (int k = 0; k < SIZE / 2; ++k)  // two rows of 8 pixels
        Product<192, true, true>::add(sums, matrix_at(grad + k * 2 * SIZE * PIXEL, SIZE * PIXEL),
                                      matrix_at(x + k * 2 * PITCH * PIXEL, PITCH * PIXEL, PIXEL), true);
      commit_products();
      if (read >= 0) {
        wait_for_products<1>();
        if (thread % 128 == 0) arrive(&empty[read]);
      }
      read = stage;
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    wait_for_products<0>();
  }
  __syncthreads();  // all stages were read; their memory takes the sums

  float* const rows = reinterpret_cast<float*>(stages);
  if (warpgroup < WARPGROUPS) {
    const int row = thread / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int g = 0; g < 24; ++g)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        *reinterpret_cast<float2*>(rows + (row + 8 * h) * ROW + warpgroup * 192 + 8 * g + 2 * (lane % 4)) =
            make_float2(sums[4 * g + 2 * h], sums[4 * g + 2 * h + 1]);
  }
  synchronize_cluster();
  const int rank = int(cluster_rank()), part = int(blockIdx.x) / CLUSTER;
  constexpr int OWN = 64 / CLUSTER;  // rows that this block writes
  for (int i = thread; i < OWN * COLUMNS / 4; i += int(blockDim.x)) {
    const int row = rank * OWN + i / (COLUMNS / 4), column = i % (COLUMNS / 4) * 4;
    const float4* place = reinterpret_cast<const float4*>(rows + row * ROW + column);
    float4 sum = load_from(place, 0);
#pragma unroll
    for (uint32_t block = 1; block < CLUSTER; ++block) {
      const float4 more = load_from(place, block);
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    float* const to =
        partial + ((int64_t(part) * outputs + output + row) * 9 + column / 64) * inputs + input + column % 64;
    *reinterpret_cast<float4*>(to) = sum;
  }
  synchronize_cluster();  // no block leaves while others read its sums
}

}  // namespace

// Returns the error of the launch, 0 for none.
int convolve_weight_gradient_sm90(const ConvolutionWeightGradient& a, void* cuda_stream) {
  const uint64_t grad_sizes[4] = {uint64_t(a.outputs), uint64_t(a.width), uint64_t(a.height), uint64_t(a.batch)};
  const uint64_t x_sizes[4] = {uint64_t(a.inputs), uint64_t(a.width), uint64_t(a.height), uint64_t(a.batch)};
  const uint32_t grad_box[4] = {64, SIZE, SIZE, 1}, x_box[4] = {64, PITCH, PITCH, 1};
  Maps maps;
  int error = make_map(&maps.grad, a.grad, 4, grad_sizes, grad_box);
  if (!error) error = make_map(&maps.x, a.x, 4, x_sizes, x_box);
  if (error) return error;
  const int across = (a.width + SIZE - 1) / SIZE, down = (a.height + SIZE - 1) / SIZE;
  if (const cudaError_t raised =
          cudaFuncSetAttribute(weight_gradient_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED))
    return int(raised);
  const dim3 grid(unsigned(a.parts * CLUSTER), unsigned(a.outputs / 64 * (a.inputs / 64)));
  return launch_overlapping(weight_gradient_kernel, grid, WARPGROUPS * 128 + 32, SHARED, cuda_stream, maps,
                            Tiles{across, down, across * down * a.batch}, a.partial, a.inputs, a.outputs);
}

}  // namespace sinfusion
