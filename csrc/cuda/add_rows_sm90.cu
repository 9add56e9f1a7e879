// Sums of the rows that blocks of other kernels left, in an order that the shapes alone decide.
#include "add_rows_sm90.h"
#include "hopper/tma.h"

namespace sinfusion {
namespace {

constexpr int WARPS = 8;
// Of few rows a warp adds 128 numbers alone; of more a block adds 32 numbers, every eighth thread of a warp the same
// ones.
constexpr int FEW = 16, EACH = 32;
__host__ __device__ constexpr int numbers_of_block(int64_t rows) { return rows <= FEW ? WARPS * 128 : EACH; }

struct Sum {
  const float* rows_of;
  float* out;
  int rows, numbers, blocks_of_group, first;  // first: block of the grid
};

struct Sums {
  Sum sum[MOST_SUMS];
  int count;
};

__global__ void __launch_bounds__(WARPS * 32) add_rows_kernel(const __grid_constant__ Sums sums) {
  __shared__ float4 parts[WARPS][EACH / 4];
  int which = 0;
  while (which + 1 < sums.count && int(blockIdx.x) >= sums.sum[which + 1].first) ++which;
  const Sum& s = sums.sum[which];
  const bool few = s.rows <= FEW;
  const int block = int(blockIdx.x) - s.first, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t group = block / s.blocks_of_group;
  const int column = few ? warp * 32 + lane : lane % (EACH / 4);
  const int number = block % s.blocks_of_group * numbers_of_block(s.rows) + column * 4;
  const float* const from = s.rows_of + group * s.rows * s.numbers + number;
  const bool inside = number < s.numbers;
  hopper::let_next_begin();
  hopper::wait_for_kernels_before();
  float4 total{0.f, 0.f, 0.f, 0.f};
  const auto add = [&](int first, int step) {
#pragma unroll 8
    for (int row = first; row < s.rows; row += step) {
      const float4 more = __ldg(reinterpret_cast<const float4*>(from + int64_t(row) * s.numbers));
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
  };
  if (few) {
    if (inside) add(0, 1);
  } else {
    constexpr int SHARES = 32 / (EACH / 4);  // of the rows, in a warp
    if (inside) add(warp * SHARES + lane / (EACH / 4), WARPS * SHARES);
#pragma unroll
    for (int by = EACH / 4; by < 32; by *= 2) {
      total.x += __shfl_xor_sync(~0u, total.x, by), total.y += __shfl_xor_sync(~0u, total.y, by);
      total.z += __shfl_xor_sync(~0u, total.z, by), total.w += __shfl_xor_sync(~0u, total.w, by);
    }
    if (lane < EACH / 4) parts[warp][lane] = total;
    __syncthreads();
    if (warp > 0 || lane >= EACH / 4) return;
#pragma unroll
    for (int i = 1; i < WARPS; ++i) {
      const float4 more = parts[i][lane];
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
  }
  if (inside) *reinterpret_cast<float4*>(s.out + group * s.numbers + number) = total;
}

}  // namespace

// Returns the error of the launch, 0 for none.
int add_rows_sm90(const AddRows& a, void* cuda_stream) {
  if (a.count < 1 || a.count > MOST_SUMS) return int(cudaErrorInvalidValue);
  Sums sums{};
  sums.count = int(a.count);
  int64_t blocks = 0;
  for (int i = 0; i < sums.count; ++i) {
    const int64_t* const given = a.sums + 5 * i;
    const int of_block = numbers_of_block(given[3]);
    const int of_group = int((given[4] + of_block - 1) / of_block);
    sums.sum[i] = {reinterpret_cast<const float*>(given[0]),
                   reinterpret_cast<float*>(given[1]),
                   int(given[3]),
                   int(given[4]),
                   of_group,
                   int(blocks)};
    blocks += given[2] * of_group;
  }
  if (blocks < 1 || blocks > INT32_MAX) return int(cudaErrorInvalidValue);
  return hopper::launch_overlapping(add_rows_kernel, dim3(unsigned(blocks)), WARPS * 32, 0, cuda_stream, sums);
}

}  // namespace sinfusion
