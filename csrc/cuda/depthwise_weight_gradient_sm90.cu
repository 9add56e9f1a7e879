// The gradient of the weights of 7x7 depthwise convolutions, bf16, channels last, by tensor cores.
//
// gradient[dy][dx] = sum over pixels of grad[p] x[p + (dy, dx)] for each channel by itself. For a dx it comes from a
// product of matrices, (14 rows of x, 16 columns) times (16 columns, 8 rows of grad): what its entries (row, row - dy)
// add up to. A block keeps the sums of 32 channels and goes through every so many tiles of 16x8 pixels, which the copy
// engine brings, 0 outside the image. A warp has 8 channels, which a thread reads at once, and the two dx that are 4
// apart, so that a number read serves both.
#include "depthwise_sm90.h"
#include "hopper/bf16.h"
#include "hopper/tma.h"

namespace sinfusion {
namespace {

using namespace hopper;

constexpr int WIDTH = 16, HEIGHT = 8;                    // of a tile of grad
constexpr int X_PITCH = WIDTH + 6, X_ROWS = HEIGHT + 6;  // of what x has for it
constexpr int GRAD_PITCH = WIDTH + 4;               // copied with four pixels that are not read, to spread the banks
constexpr int CHANNELS = 32, PIXEL = 2 * CHANNELS;  // of a block; bytes
constexpr int OCTETS = CHANNELS / 8, THREADS = OCTETS * 4 * 32;
constexpr int X_BYTES = X_PITCH * X_ROWS * PIXEL, GRAD_BYTES = GRAD_PITCH * HEIGHT * PIXEL;
constexpr int X_STAGE = (X_BYTES + 1023) / 1024 * 1024, STAGE = X_STAGE + GRAD_BYTES, STAGES = 4;
constexpr int SHARED = 1024 + STAGES * STAGE;
constexpr int ENTRIES = 16 * 8 + 1;  // of a product in shared memory
static_assert(STAGE % 1024 == 0 && OCTETS * 4 * 8 * ENTRIES * 4 <= STAGES * STAGE);

struct Maps {
  CUtensorMap x, skip, grad;
  int own;  // channels of x; the others are those of skip
};

struct Tiles {
  int across, down, count;
};

__global__ void __launch_bounds__(THREADS, 1)
    weight_gradient_kernel(const __grid_constant__ Maps maps, Tiles tiles, float* partial, int channels) {
  uint8_t* const stages = dynamic_shared_memory();
  __shared__ uint64_t full[STAGES];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, first = int(blockIdx.y) * CHANNELS;
  const auto load = [&](int tile, int stage) {
    const int column = tile % tiles.across * WIDTH, row = tile / tiles.across % tiles.down * HEIGHT;
    const int image = tile / tiles.across / tiles.down;
    uint8_t* const to = stages + stage * STAGE;
    const bool own = first < maps.own;
    arrive_expecting(&full[stage], X_BYTES + GRAD_BYTES);
    load_box(to, own ? maps.x : maps.skip, &full[stage], own ? first : first - maps.own, column - 3, row - 3, image);
    load_box(to + X_STAGE, maps.grad, &full[stage], first, column, row, image);
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) init_barrier(&full[i], 1);
    fence_barrier_init();
  }
  let_next_begin();
  wait_for_kernels_before();
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; ++i)
      if (int(blockIdx.x) + i * int(gridDim.x) < tiles.count) load(int(blockIdx.x) + i * int(gridDim.x), i);
  __syncthreads();

  // Rows of a product are rows of x in such an order that eight threads read eight different banks.
  const int octet = warp % OCTETS, dx = warp / OCTETS, r = lane / 4, q = lane % 4;
  const int row = r % 2 * 2 + r / 2 % 2 + r / 4 * 4;  // and the one 8 below it
  const bool two = dx < 3;                            // dx and dx + 4, or dx alone
  const auto place = [&](int pixel) { return pixel * PIXEL + ((octet ^ (pixel / 2 % 4)) << 4); };
  const int of_x[2] = {place(row * X_PITCH + q + dx), place((row + 8) * X_PITCH + q + dx)};
  const int of_grad = X_STAGE + place(r * GRAD_PITCH + q);
  // Four pixels further: part i of a pixel's 64 bytes is at i ^ pixel / 2 % 4.
  const auto further = [](int from, int fours) { return (from ^ (fours % 2 * 32)) + fours * 4 * PIXEL; };

  float sums[2][8][4];  // [dx][channel]
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i / 32][i / 4 % 8][i % 4] = 0.f;
  int stage = 0;
  uint32_t parity = 0;
  for (int tile = int(blockIdx.x); tile < tiles.count; tile += int(gridDim.x)) {
    wait(&full[stage], parity);
    const uint8_t* const from = stages + stage * STAGE;
    const auto words = [&](int at) { return *reinterpret_cast<const uint4*>(from + at); };
    uint32_t grad[2][8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 one = words(further(of_grad, 2 * half)), other = words(further(of_grad, 2 * half + 1));
      grad[half][0] = first_of(one.x, other.x), grad[half][1] = second_of(one.x, other.x);
      grad[half][2] = first_of(one.y, other.y), grad[half][3] = second_of(one.y, other.y);
      grad[half][4] = first_of(one.z, other.z), grad[half][5] = second_of(one.z, other.z);
      grad[half][6] = first_of(one.w, other.w), grad[half][7] = second_of(one.w, other.w);
    }
    uint4 before[2] = {words(of_x[0]), words(of_x[1])};
#pragma unroll
    for (int i = 1; i < 5; ++i) {
      __syncwarp();  // else loads of many steps are under way at once, for which there are no registers
      if (i == 4 && !two) break;
      const uint4 now[2] = {words(further(of_x[0], i)), words(further(of_x[1], i))};
      if (i % 2 || two) {
        const auto add = [&](int pair, auto word) {
          const uint32_t a[2] = {first_of(word(before[0]), word(now[0])), first_of(word(before[1]), word(now[1]))};
          const uint32_t b[2] = {second_of(word(before[0]), word(now[0])), second_of(word(before[1]), word(now[1]))};
          multiply_add(sums[(i - 1) % 2][2 * pair], a, grad[(i - 1) / 2][2 * pair]);
          multiply_add(sums[(i - 1) % 2][2 * pair + 1], b, grad[(i - 1) / 2][2 * pair + 1]);
        };
        add(0, [](const uint4& of) { return of.x; });
        add(1, [](const uint4& of) { return of.y; });
        add(2, [](const uint4& of) { return of.z; });
        add(3, [](const uint4& of) { return of.w; });
      }
      before[0] = now[0], before[1] = now[1];
    }
    __syncthreads();  // all have read the stage
    if (threadIdx.x == 0 && tile + STAGES * int(gridDim.x) < tiles.count) load(tile + STAGES * int(gridDim.x), stage);
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }

  __syncthreads();  // the stages take the products
  float* const products = reinterpret_cast<float*>(stages) + warp * 8 * ENTRIES;
  for (int which = 0; which < (two ? 2 : 1); ++which) {
#pragma unroll
    for (int c = 0; c < 8; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        products[c * ENTRIES + (row + k / 2 * 8) * 8 + 2 * q + k % 2] = which ? sums[1][c][k] : sums[0][c][k];
    __syncwarp();
    for (int dy = lane / 8; dy < 7; dy += 4) {
      const int c = lane % 8;
      float sum = 0.f;
#pragma unroll
      for (int n = 0; n < 8; ++n) sum += products[c * ENTRIES + (n + dy) * 8 + n];
      partial[(int64_t(blockIdx.x) * 49 + dy * 7 + dx + 4 * which) * channels + first + octet * 8 + c] = sum;
    }
    __syncwarp();
  }
}

}  // namespace

// Returns the error of the launch, 0 for none.
int depthwise_weight_gradient_sm90(const DepthwiseWeightGradient& a, void* cuda_stream) {
  Maps maps;
  maps.own = a.channels - a.skip_channels;
  const auto map_of = [&](CUtensorMap* map, const void* data, int channels, uint32_t width, uint32_t height) {
    const uint64_t sizes[4] = {uint64_t(channels), uint64_t(a.width), uint64_t(a.height), uint64_t(a.batch)};
    const uint32_t box[4] = {CHANNELS, width, height, 1};
    return make_map(map, data, 4, sizes, box, PIXEL);
  };
  int error = map_of(&maps.x, a.x, maps.own, X_PITCH, X_ROWS);
  if (!error && a.skip_channels) error = map_of(&maps.skip, a.skip, a.skip_channels, X_PITCH, X_ROWS);
  if (!error) error = map_of(&maps.grad, a.grad, a.channels, GRAD_PITCH, HEIGHT);
  if (error) return error;
  Tiles tiles{(a.width + WIDTH - 1) / WIDTH, (a.height + HEIGHT - 1) / HEIGHT, 0};
  tiles.count = tiles.across * tiles.down * a.batch;
  if (const cudaError_t found =
          cudaFuncSetAttribute(weight_gradient_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED))
    return int(found);
  return launch_overlapping(weight_gradient_kernel, dim3(unsigned(a.parts), unsigned(a.channels / CHANNELS)), THREADS,
                            SHARED, cuda_stream, maps, tiles, a.partial, a.channels);
}

}  // namespace sinfusion
