// Compiled once for each instruction set (SINFUSION_ISA_NAMESPACE, SINFUSION_LANES).
//
// Channels are worked on in planes of L, the lanes of one vector. A task owns a band of rows (and, in the backward
// convolutions, a group of planes that stays in cache). It keeps the seven zero-padded fp32 rows that one output row
// needs, converting one new row as it moves down. Bands are fixed by the shape, not by the number of threads, and
// partial sums are added in order, so results do not depend on threads.
//
// The C++ library stays out of this file: its inline functions, compiled here for one instruction set, could be the
// copies that the linker keeps for every machine.
#include "depthwise_norm.h"

#include <string.h>

#include "scratch.h"
#include "vector.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int K = 7, R = 3;
constexpr int P = 8;           // output pixels held in registers at once
constexpr int BANDS = 16;      // of rows, over the whole batch
constexpr int GROUP = 32 / L;  // planes of a backward task: 64 bytes of bf16 a pixel

inline int64_t planes_of(int64_t channels) { return (channels + L - 1) / L; }
inline int lanes_of(int64_t channels, int64_t plane) {
  return channels - plane * L < L ? int(channels - plane * L) : L;
}

inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}
inline int thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Hands out parts of the memory of one call.
struct Memory {
  float* next;
  float* take(int64_t floats) {
    float* part = next;
    next += (floats + 15) / 16 * 16;
    return part;
  }
  static int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }
};

// (rows, C) -> (planes, rows, L), zeros in the lanes left over and for null.
void to_planes(const float* from, float* to, int64_t rows, int64_t C) {
  for (int64_t plane = 0; plane < planes_of(C); ++plane)
    for (int64_t r = 0; r < rows; ++r, to += L)
      store(to, from ? load(from + r * C + plane * L, lanes_of(C, plane)) : vf{});
}

// The padded fp32 rows y-3 .. y+3 of one image, for y moving down, as (planes, W + 6, L) each.
template <class T>
class Rows {
 public:
  static int64_t floats(int64_t W, int64_t planes) { return Memory::rounded(planes * (W + 2 * R) * L) * (K + 1); }
  // Planes first .. first + planes of images with C channels.
  Rows(Memory& memory, int64_t H, int64_t W, int64_t C, int64_t first, int64_t planes)
      : H_(H), W_(W), C_(C), first_(first), planes_(planes), plane_((W + 2 * R) * L) {
    for (int k = 0; k <= K; ++k) {
      data_[k] = memory.take(planes * plane_);
      memset(data_[k], 0, planes * plane_ * sizeof(float));
    }
  }
  void move(const T* image, int64_t y) {
    if (image != image_)
      for (int k = 0; k < K; ++k) held_[k] = -1;
    image_ = image;
    for (int k = 0; k < K; ++k) {
      const int64_t row = y + k - R;
      if (row < 0 || row >= H_) {
        rows_[k] = data_[K];  // zeros
        continue;
      }
      const int slot = int(row % K);
      if (held_[slot] != row) fill(row, data_[slot]), held_[slot] = row;
      rows_[k] = data_[slot];
    }
  }
  const float* row(int k, int64_t plane) const { return rows_[k] + plane * plane_; }  // begins at column -3

 private:
  void fill(int64_t row, float* to) {
    const T* from = image_ + row * W_ * C_ + first_ * L;
    to += R * L;
    for (int64_t x = 0; x < W_; ++x, from += C_, to += L)
      for (int64_t plane = 0; plane < planes_; ++plane)
        store(to + plane * plane_, load(from + plane * L, lanes_of(C_, first_ + plane)));
  }
  int64_t H_, W_, C_, first_, planes_, plane_;
  const T* image_ = nullptr;
  float* data_[K + 1];
  const float* rows_[K];
  int64_t held_[K];
};

// N pixels of one plane: out (N, L) = start + correlation of seven rows with weight (49, L).
template <int N>
inline void convolve_pixels(const float* const* rows, const float* weight, vf start, float* out, int64_t x) {
  vf a[N];
  for (int p = 0; p < N; ++p) a[p] = start;
  for (int i = 0; i < K; ++i) {
    const float *row = rows[i] + x * L, *w = weight + i * K * L;
    vf taps[K];
    for (int j = 0; j < K; ++j) taps[j] = load(w + j * L);
#pragma GCC unroll 16
    for (int q = 0; q < N + K - 1; ++q) {
      const vf in = load(row + q * L);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j)
        if (q - j >= 0 && q - j < N) a[q - j] += in * taps[j];
    }
  }
  for (int p = 0; p < N; ++p) store(out + (x + p) * L, a[p]);
}

// One row of one plane: out (W, L).
template <class T>
void convolve_row(const Rows<T>& inputs, int64_t plane, const float* weight, vf start, float* out, int64_t W) {
  const float* rows[K];
  for (int k = 0; k < K; ++k) rows[k] = inputs.row(k, plane);
  int64_t x = 0;
  for (; x + P <= W; x += P) convolve_pixels<P>(rows, weight, start, out, x);
  for (; x < W; ++x) convolve_pixels<1>(rows, weight, start, out, x);
}

// grad_weight (49, L) of one plane += correlation of one row of gradients with seven rows of inputs.
template <class T>
void weight_gradient_row(const Rows<T>& inputs, int64_t plane, const float* grad, float* grad_weight, int64_t W) {
  for (int i = 0; i < K; ++i, grad_weight += K * L) {
    const float* row = inputs.row(i, plane);
    vf s[K];
    for (int j = 0; j < K; ++j) s[j] = load(grad_weight + j * L);
    int64_t x = 0;
    for (; x + P <= W; x += P) {
      vf g[P];
      for (int p = 0; p < P; ++p) g[p] = load(grad + (x + p) * L);
#pragma GCC unroll 16
      for (int q = 0; q < P + K - 1; ++q) {
        const vf in = load(row + (x + q) * L);
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j)
          if (q - j >= 0 && q - j < P) s[j] += in * g[q - j];
      }
    }
    for (; x < W; ++x) {
      const vf g = load(grad + x * L);
      for (int j = 0; j < K; ++j) s[j] += load(row + (x + j) * L) * g;
    }
    for (int j = 0; j < K; ++j) store(grad_weight + j * L, s[j]);
  }
}

// Calls `row(b, y)` for every row of band `band`.
template <class Row>
void each_row(const DepthwiseNorm& a, int64_t band, Row&& row) {
  const int64_t all = a.batch * a.height, begin = all * band / BANDS, end = all * (band + 1) / BANDS;
  for (int64_t r = begin; r < end; ++r) row(r / a.height, r % a.height);
}

template <class T>
void forward_of(const DepthwiseNormForward& a) {
  const int64_t H = a.height, W = a.width, C = a.channels, planes = planes_of(C), Cp = planes * L;
  const int64_t per_thread = Rows<T>::floats(W, planes) + Memory::rounded(planes * W * L);
  Memory memory{scratch((K * K + 3 + a.batch) * Cp + max_threads() * per_thread + 16 * 8)};
  float *weight = memory.take(K * K * Cp), *bias = memory.take(Cp), *shift = memory.take(a.batch * Cp),
        *gain = memory.take(Cp), *offset = memory.take(Cp), *own = memory.take(0);
  to_planes(a.weight, weight, K * K, C);
  to_planes(a.bias, bias, 1, C);
  for (int64_t b = 0; b < a.batch; ++b) to_planes(a.shift ? a.shift + b * C : nullptr, shift + b * Cp, 1, C);
  to_planes(a.gain, gain, 1, C);
  to_planes(a.offset, offset, 1, C);
  float ones[L];
  for (int i = 0; i < L; ++i) ones[i] = 1;
  const vf last = load(ones, lanes_of(C, planes - 1));  // 1 in the lanes of the last plane that are channels

#pragma omp parallel for schedule(dynamic)
  for (int64_t band = 0; band < BANDS; ++band) {
    Memory mine{own + thread() * per_thread};
    Rows<T> rows(mine, H, W, C, 0, planes);
    float* u = mine.take(planes * W * L);
    each_row(a, band, [&](int64_t b, int64_t y) {
      rows.move(static_cast<const T*>(a.x) + b * H * W * C, y);
      for (int64_t plane = 0; plane < planes; ++plane) {
        const vf start = load(bias + plane * L) + load(shift + b * Cp + plane * L);
        convolve_row(rows, plane, weight + plane * K * K * L, start, u + plane * W * L, W);
      }
      const int64_t first = (b * H + y) * W;
      for (int64_t x = 0; x < W; ++x) {
        float* v = u + x * L;
        const auto write = [&](void* to) {
          T* pixel = static_cast<T*>(to) + (first + x) * C;
          for (int64_t plane = 0; plane < planes; ++plane)
            store(pixel + plane * L, load(v + plane * W * L), lanes_of(C, plane));
        };
        if (a.u) write(a.u);
        if (a.gain) {
          vf total{};
          for (int64_t plane = 0; plane < planes; ++plane) total += load(v + plane * W * L);
          const float mean = sum(total) / float(C);
          vf square{};
          for (int64_t plane = 0; plane < planes; ++plane) {
            vf d = load(v + plane * W * L) - mean;
            if (plane == planes - 1) d *= last;
            square += d * d;
          }
          const float rstd = 1.0f / __builtin_sqrtf(sum(square) / float(C) + a.eps);
          for (int64_t plane = 0; plane < planes; ++plane) {
            float* to = v + plane * W * L;
            store(to, (load(to) - mean) * rstd * load(gain + plane * L) + load(offset + plane * L));
          }
          if (a.mean) a.mean[first + x] = mean, a.rstd[first + x] = rstd;
        }
        write(a.out);
      }
    });
  }
}

// Backward through the norm for one row: grad_u = the gradient at the convolution's output, in the dtype of the
// activations; adds to grad_gain, grad_offset and grad_shift, (Cp) each. means: 2 W floats to work with.
template <class T>
void norm_backward_row(const DepthwiseNormBackward& a, int64_t first, const float* gain, float* means,
                       float* grad_gain, float* grad_offset, float* grad_shift) {
  const int64_t W = a.width, C = a.channels, planes = planes_of(C);
  const T *grad = static_cast<const T*>(a.grad_out) + first * C, *u = static_cast<const T*>(a.u) + first * C;
  T* out = static_cast<T*>(a.grad_u) + first * C;
  for (int64_t x = 0; x < W; ++x) {
    vf s1{}, s2{};
    for (int64_t plane = 0; plane < planes; ++plane) {
      const int n = lanes_of(C, plane);
      const vf g = load(grad + x * C + plane * L, n) * load(gain + plane * L);  // gain is 0 in lanes left over
      s1 += g;
      s2 += g * (load(u + x * C + plane * L, n) - a.mean[first + x]);
    }
    means[2 * x] = sum(s1) / float(C);
    means[2 * x + 1] = sum(s2) * a.rstd[first + x] / float(C);
  }
  for (int64_t plane = 0; plane < planes; ++plane) {
    const int n = lanes_of(C, plane);
    const int64_t c = plane * L;
    const vf scale = load(gain + c);
    vf sum_gain = load(grad_gain + c), sum_offset = load(grad_offset + c), sum_shift = load(grad_shift + c);
    for (int64_t x = 0; x < W; ++x) {
      const float mean = a.mean[first + x], rstd = a.rstd[first + x];
      const vf g = load(grad + x * C + c, n), normed = (load(u + x * C + c, n) - mean) * rstd;
      const vf back = (g * scale - means[2 * x] - normed * means[2 * x + 1]) * rstd;
      sum_gain += g * normed;
      sum_offset += g;
      sum_shift += back;
      store(out + x * C + c, back, n);
    }
    store(grad_gain + c, sum_gain);
    store(grad_offset + c, sum_offset);
    store(grad_shift + c, sum_shift);
  }
}

template <class T>
void backward_of(const DepthwiseNormBackward& a) {
  const int64_t H = a.height, W = a.width, C = a.channels, planes = planes_of(C), Cp = planes * L;
  const int64_t per_band = (K * K + 2 + a.batch) * Cp;  // partial sums: weight, gain, offset, shift
  const int64_t per_thread = 2 * Rows<T>::floats(W, GROUP) + Memory::rounded(W * L > 2 * W ? W * L : 2 * W);
  Memory memory{scratch((K * K + 1) * Cp + BANDS * per_band + max_threads() * per_thread + 16 * 4)};
  float *flipped = memory.take(K * K * Cp), *gain = memory.take(Cp), *partial = memory.take(BANDS * per_band),
        *own = memory.take(0);
  to_planes(a.weight, flipped, K * K, C);
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int t = 0; t < K * K / 2; ++t) {
      float *one = flipped + (plane * K * K + t) * L, *other = flipped + (plane * K * K + K * K - 1 - t) * L;
      const vf kept = load(one);
      store(one, load(other));
      store(other, kept);
    }
  to_planes(a.gain, gain, 1, C);
  memset(partial, 0, BANDS * per_band * sizeof(float));

#pragma omp parallel for schedule(dynamic)
  for (int64_t band = 0; band < BANDS; ++band) {
    float *grad_gain = partial + band * per_band + K * K * Cp, *grad_offset = grad_gain + Cp,
          *grad_shift = grad_offset + Cp;
    each_row(a, band, [&](int64_t b, int64_t y) {
      const int64_t first = (b * H + y) * W;
      if (a.gain) {
        float* means = own + thread() * per_thread;
        norm_backward_row<T>(a, first, gain, means, grad_gain, grad_offset, grad_shift + b * Cp);
        return;
      }
      const T* grad = static_cast<const T*>(a.grad_out) + first * C;
      for (int64_t plane = 0; plane < planes; ++plane) {
        float* to = grad_shift + b * Cp + plane * L;
        vf total = load(to);
        for (int64_t x = 0; x < W; ++x) total += load(grad + x * C + plane * L, lanes_of(C, plane));
        store(to, total);
      }
    });
  }

  const T *inputs = static_cast<const T*>(a.x), *grads = static_cast<const T*>(a.gain ? a.grad_u : a.grad_out);
  const int64_t groups = (planes + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < BANDS * groups; ++task) {
    const int64_t band = task / groups, begin = task % groups * GROUP;
    const int64_t count = planes - begin < GROUP ? planes - begin : GROUP;
    Memory mine{own + thread() * per_thread};
    Rows<T> x_rows(mine, H, W, C, begin, count), g_rows(mine, H, W, C, begin, count);
    float* row_out = mine.take(W * L);
    each_row(a, band, [&](int64_t b, int64_t y) {
      x_rows.move(inputs + b * H * W * C, y);
      g_rows.move(grads + b * H * W * C, y);
      T* grad_x = static_cast<T*>(a.grad_x) + (b * H + y) * W * C;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t plane = begin + k;
        convolve_row(g_rows, k, flipped + plane * K * K * L, vf{}, row_out, W);
        for (int64_t x = 0; x < W; ++x)
          store(grad_x + x * C + plane * L, load(row_out + x * L), lanes_of(C, plane));
        float* grad_weight = partial + band * per_band + plane * K * K * L;
        weight_gradient_row(x_rows, k, g_rows.row(R, k) + R * L, grad_weight, W);
      }
    });
  }

  // (planes, rows, L) of every band, added in order -> (rows, C).
  const auto total = [&](float* to, int64_t at, int64_t rows) {
    for (int64_t plane = 0; to && plane < planes; ++plane)
      for (int64_t r = 0; r < rows; ++r) {
        vf s{};
        for (int64_t band = 0; band < BANDS; ++band) s += load(partial + band * per_band + at + (plane * rows + r) * L);
        store(to + r * C + plane * L, s, lanes_of(C, plane));
      }
  };
  total(a.grad_weight, 0, K * K);
  total(a.grad_gain, K * K * Cp, 1);
  total(a.grad_offset, (K * K + 1) * Cp, 1);
  for (int64_t b = 0; b < a.batch; ++b) total(a.grad_shift + b * C, (K * K + 2 + b) * Cp, 1);
}

}  // namespace

void forward(const DepthwiseNormForward& a) { a.bf16 ? forward_of<uint16_t>(a) : forward_of<float>(a); }
void backward(const DepthwiseNormBackward& a) { a.bf16 ? backward_of<uint16_t>(a) : backward_of<float>(a); }

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
