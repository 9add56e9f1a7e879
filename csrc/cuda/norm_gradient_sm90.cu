// The gradient through a LayerNorm over channels, bf16, channels last, with the sums over pixels that a block's vectors
// need.
#include "depthwise_sm90.h"
#include "hopper/bf16.h"
#include "hopper/tma.h"

namespace sinfusion {
namespace {

using namespace hopper;

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

}  // namespace

// Returns the error of the launch, 0 for none.
int norm_gradient_sm90(const NormGradient& a, void* cuda_stream) {
  const auto kernel = a.channels == 64 ? norm_gradient_kernel<64> : norm_gradient_kernel<128>;
  const dim3 grid(unsigned(a.parts), unsigned(a.batch));
  return launch_overlapping(kernel, grid, NORM_WARPS * 32, 0, cuda_stream, a);
}

}  // namespace sinfusion
