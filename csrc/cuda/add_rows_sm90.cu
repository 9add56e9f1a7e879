// Sums of the rows that blocks of other kernels left, in an order that the shapes alone decide.
#include "add_rows_sm90.h"
#include "hopper/tma.h"

namespace sinfusion {
namespace {

constexpr int WARPS = 8, NUMBERS = 128;  // of a block; of a warp
constexpr int FEW = 16;                  // rows that a warp adds alone; of more each warp of a block adds every eighth

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
  __shared__ float4 parts[WARPS][32];
  int which = 0;
  while (which + 1 < sums.count && int(blockIdx.x) >= sums.sum[which + 1].first) ++which;
  const Sum& s = sums.sum[which];
  const bool few = s.rows <= FEW;
  const int block = int(blockIdx.x) - s.first, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t group = block / s.blocks_of_group;
  const int number = (block % s.blocks_of_group * (few ? WARPS : 1) + (few ? warp : 0)) * NUMBERS + lane * 4;
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
    if (inside) add(warp, WARPS);
    parts[warp][lane] = total;
    __syncthreads();
    if (warp > 0) return;
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
    const int of_block = NUMBERS * (given[3] <= FEW ? WARPS : 1);
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
