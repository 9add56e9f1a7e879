// LayerNorm over the channels of each pixel: the forward of a tile, the backward of a row. With u the input, C
// channels:
//
//     n = (u - mean) * rstd,  out = n * gain + offset
//     grad_u = (g - mean(g) - n * mean(g * n)) * rstd,  where g = grad_out * gain
#pragma once
#include "channel_blocks.h"
#include "microkernel.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// Stores a tile of u (vectors, TILE_PIXELS, LANES), as it is or normalized; save_input: u is stored as well.
template <class T, class In, bool normalize, bool save_input>
void store_tile(const DepthwiseNormForward& a, int64_t first, const Tile& t, const float* u, const float* mean,
                const float* rstd, const float* gain, const float* offset) {
  const int64_t W = a.width, C = channels_of(a), blocks = block_count<In>(C);
  constexpr int64_t second = (BLOCK_VECTORS<In> - 1) * LANES;  // vector 1, or in fp32 vector 0 once more
  const int rows = t.rows, columns = t.columns;
  for (int64_t block = 0; block < blocks; ++block) {
    const vec_f32 scale[] = {load(gain), load(gain + second)}, shift[] = {load(offset), load(offset + second)};
    for (int r = 0; r < rows; ++r) {
      T* out = static_cast<T*>(a.out) + (first + r * W) * C;
      T* saved = static_cast<T*>(a.norm_input) + (first + r * W) * C;
      for (int p = r * TILE_COLUMNS; p < r * TILE_COLUMNS + columns; ++p, out += C, saved += C) {
        vec_f32 v0 = load(u + p * LANES), v1 = load(u + second * TILE_PIXELS + p * LANES);
        if (save_input) store_block<In>(saved, C, block, v0, v1);
        if (normalize) {
          v0 = (v0 - mean[p]) * rstd[p] * scale[0] + shift[0];
          v1 = (v1 - mean[p]) * rstd[p] * scale[1] + shift[1];
        }
        store_block<In>(out, C, block, v0, v1);
      }
    }
    u += BLOCK_VECTORS<In> * TILE_PIXELS * LANES, gain += BLOCK_CHANNELS<In>, offset += BLOCK_CHANNELS<In>;
  }
}

// Normalizes and stores a tile. channel_lanes is 1 in the lanes of the last vector that are channels, else 0.
template <class T, class In>
void layer_norm(const DepthwiseNormForward& a, int64_t first, const Tile& t, const float* u, const float* gain,
                const float* offset, vec_f32 channel_lanes) {
  const int64_t C = channels_of(a), vectors = block_count<In>(C) * BLOCK_VECTORS<In>;
  const float inverse_count = 1.0f / float(C);
  float mean[TILE_PIXELS], rstd[TILE_PIXELS];
  vec_f32 sums[TILE_PIXELS]{}, squares[TILE_PIXELS]{};
  for (int64_t vector = 0; vector < vectors; ++vector)
#pragma GCC unroll 16
    for (int p = 0; p < TILE_PIXELS; ++p) sums[p] += load(u + (vector * TILE_PIXELS + p) * LANES);
#pragma GCC unroll 16
  for (int p = 0; p < TILE_PIXELS; ++p) mean[p] = reduce_add(sums[p]) * inverse_count;
  for (int64_t vector = 0; vector < vectors; ++vector) {
    const vec_f32 mask = vector == vectors - 1 ? channel_lanes : vec_f32{} + 1;
#pragma GCC unroll 16
    for (int p = 0; p < TILE_PIXELS; ++p) {
      const vec_f32 d = (load(u + (vector * TILE_PIXELS + p) * LANES) - mean[p]) * mask;
      squares[p] += d * d;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < TILE_PIXELS; ++p) rstd[p] = reduce_add(squares[p]) * inverse_count + a.eps;
  for (int p = 0; p < TILE_PIXELS; p += LANES) store(rstd + p, 1.0f / sqrt(load(rstd + p)));
  for (int r = 0; r < t.rows && a.norm_input; ++r)
    for (int p = 0; p < t.columns; ++p) {
      a.mean[first + r * a.width + p] = mean[r * TILE_COLUMNS + p];
      a.rstd[first + r * a.width + p] = rstd[r * TILE_COLUMNS + p];
    }
  const auto store = a.norm_input ? store_tile<T, In, true, true> : store_tile<T, In, true, false>;
  store(a, first, t, u, mean, rstd, gain, offset);
}

// Sums over the pixels of a chunk of rows, for the gradients of gain and offset (Cp) and of the shift (B, Cp), which
// added over B is the bias'. Cp: channels, rounded up to whole blocks.
struct NormGradientSums {
  float *gain, *offset, *shift;
  NormGradientSums(float* memory, int64_t Cp) : gain(memory), offset(gain + Cp), shift(offset + Cp) {}
  static int64_t floats(int64_t Cp, int64_t batch) { return (2 + batch) * Cp; }
};

// One vector of channels on its way through the pixels of a row.
struct NormGradientVector {
  vec_f32 gain, grad_gain, grad_offset, grad_shift;
  vec_f32 step(vec_f32 grad, vec_f32 u, float mean, float rstd, float mean_grad, float mean_grad_n) {
    const vec_f32 n = (u - mean) * rstd, grad_u = (grad * gain - mean_grad - n * mean_grad_n) * rstd;
    grad_gain += grad * n;
    grad_offset += grad;
    grad_shift += grad_u;
    return grad_u;
  }
};

// out (W, Cp) = the gradient at the norm's input, of one row; adds to sums.
template <class T, class In>
void layer_norm_backward(const DepthwiseNormBackward& a, int64_t row, const float* gain, In* out,
                         const NormGradientSums& sums) {
  const int64_t C = channels_of(a), blocks = block_count<In>(C), Cp = blocks * BLOCK_CHANNELS<In>;
  const float inverse_count = 1.0f / float(C);
  float* shift = sums.shift + row / a.height * Cp;
  for (int64_t x = 0; x < a.width; x += TILE_PIXELS, out += TILE_PIXELS * Cp) {
    const int64_t first = row * a.width + x;
    const int count = a.width - x < TILE_PIXELS ? int(a.width - x) : TILE_PIXELS;
    const T *grad = static_cast<const T*>(a.grad_out) + first * C, *u = static_cast<const T*>(a.norm_input) + first * C;
    const float *mean = a.mean + first, *rstd = a.rstd + first;
    float mean_grad[TILE_PIXELS], mean_grad_n[TILE_PIXELS];
    for (int p = 0; p < count; ++p) {
      vec_f32 sum_grad{}, sum_grad_d{};
      const auto add = [&](vec_f32 g, vec_f32 v) {
        sum_grad += g;
        sum_grad_d += g * (v - mean[p]);
      };
      for (int64_t block = 0; block < blocks; ++block) {
        const float* scale = gain + block * BLOCK_CHANNELS<In>;  // 0 in lanes without a channel
        add(load_vector<In, 0>(grad + p * C, C, block) * load(scale), load_vector<In, 0>(u + p * C, C, block));
        if constexpr (BLOCK_VECTORS<In> == 2)
          add(load_vector<In, 1>(grad + p * C, C, block) * load(scale + LANES),
              load_vector<In, 1>(u + p * C, C, block));
      }
      mean_grad[p] = reduce_add(sum_grad) * inverse_count;
      mean_grad_n[p] = reduce_add(sum_grad_d) * rstd[p] * inverse_count;
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t c0 = block * BLOCK_CHANNELS<In>, c1 = c0 + (BLOCK_VECTORS<In> - 1) * LANES;
      NormGradientVector v0{load(gain + c0), load(sums.gain + c0), load(sums.offset + c0), load(shift + c0)};
      NormGradientVector v1{load(gain + c1), load(sums.gain + c1), load(sums.offset + c1), load(shift + c1)};
      for (int p = 0; p < count; ++p) {
        const auto step = [&](NormGradientVector& vector, vec_f32 g, vec_f32 v) {
          return vector.step(g, v, mean[p], rstd[p], mean_grad[p], mean_grad_n[p]);
        };
        const T *g = grad + p * C, *v = u + p * C;
        const vec_f32 grad_u0 = step(v0, load_vector<In, 0>(g, C, block), load_vector<In, 0>(v, C, block));
        if constexpr (BLOCK_VECTORS<In> == 2)
          store_interleaved(out + p * Cp + c0, grad_u0,
                            step(v1, load_vector<In, 1>(g, C, block), load_vector<In, 1>(v, C, block)));
        else
          store(out + p * Cp + c0, grad_u0);
      }
      const auto store_sums = [&](const NormGradientVector& vector, int64_t c) {
        store(sums.gain + c, vector.grad_gain);
        store(sums.offset + c, vector.grad_offset);
        store(shift + c, vector.grad_shift);
      };
      store_sums(v0, c0);
      if constexpr (BLOCK_VECTORS<In> == 2) store_sums(v1, c1);
    }
  }
}

// sums (Cp) += one row of gradients: of the shift, where there is no norm.
template <class In>
void add_row_sums(const In* row, int64_t pixel_stride, int64_t W, int64_t blocks, float* sums) {
  for (int64_t block = 0; block < blocks; ++block, sums += BLOCK_CHANNELS<In>) {
    constexpr int64_t second = (BLOCK_VECTORS<In> - 1) * LANES;
    vec_f32 v0 = load(sums), v1 = load(sums + second);
    for (int64_t x = 0; x < W; ++x) {
      v0 += load_vector<0>(row + x * pixel_stride + block * BLOCK_CHANNELS<In>);
      v1 += load_vector<BLOCK_VECTORS<In> - 1>(row + x * pixel_stride + block * BLOCK_CHANNELS<In>);
    }
    store(sums + second, v1);
    store(sums, v0);
  }
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
