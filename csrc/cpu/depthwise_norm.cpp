// Compiled once for each instruction set (SINFUSION_ISA_NAMESPACE, SINFUSION_LANES).
//
// A thread owns a band of rows. It keeps the seven input rows that one output row needs as zero-padded fp32, converting
// one new row as it moves down, and writes each activation once. Bands are fixed by the shape, not by the number of
// threads, and partial sums are added in order, so results do not depend on threads.
#include "depthwise_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int L = SINFUSION_LANES;
constexpr int K = 7, R = 3;
constexpr int P = 8;       // output pixels held in registers at once
constexpr int BANDS = 16;  // of rows, over the whole batch

typedef float vf __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(L * 2), aligned(2), may_alias));

inline vf splat(float s) { return vf{} + s; }
inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf*>(p) = v; }
inline vf load(const uint16_t* p) {
  const vu wide = __builtin_convertvector(*reinterpret_cast<const vh*>(p), vu) << 16;
  return (vf)wide;
}
inline void store(uint16_t* p, vf v) {  // round to nearest even; NaN stays NaN
  const vu bits = (vu)v;
  const vi nan = (vi)((bits & 0x7fffffffu) > 0x7f800000u);
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu chosen = ((vu)nan & 0x7fc0u) | (~(vu)nan & rounded);
  *reinterpret_cast<vh*>(p) = __builtin_convertvector(chosen, vh);
}
inline float sum(vf v) {  // by halves
  for (int half = L / 2; half > 0; half /= 2) {
    vi other{};
    for (int i = 0; i < L; ++i) other[i] = i ^ half;
    v += __builtin_shuffle(v, other);
  }
  return v[0];
}

// Working memory of a thread, kept between calls: fresh pages would cost more than the arithmetic.
class Scratch {
 public:
  explicit Scratch(size_t floats) {
    if (arena().size() < floats) arena().resize(floats);
  }
  float* take(size_t floats) {
    used_ += floats;
    return arena().data() + used_ - floats;
  }

 private:
  static std::vector<float>& arena() {
    thread_local std::vector<float> memory;
    return memory;
  }
  size_t used_ = 0;
};

// One row of C channels a pixel to fp32 with channels padded to Cp with zeros.
template <class T>
void widen(const T* from, float* to, int64_t pixels, int64_t C, int64_t Cp) {
  if (C == Cp) {
    for (int64_t i = 0; i < pixels * C; i += L) store(to + i, load(from + i));
    return;
  }
  T tail[L];
  for (int64_t p = 0; p < pixels; ++p) {
    int64_t c = 0;
    for (; c + L <= C; c += L) store(to + p * Cp + c, load(from + p * C + c));
    std::memset(tail, 0, sizeof tail);
    std::memcpy(tail, from + p * C + c, (C - c) * sizeof(T));
    store(to + p * Cp + c, load(tail));
  }
}

template <class T>
void narrow(const float* from, T* to, int64_t pixels, int64_t C, int64_t Cp) {
  if (C == Cp) {
    for (int64_t i = 0; i < pixels * C; i += L) store(to + i, load(from + i));
    return;
  }
  T tail[L];
  for (int64_t p = 0; p < pixels; ++p) {
    int64_t c = 0;
    for (; c + L <= C; c += L) store(to + p * C + c, load(from + p * Cp + c));
    store(tail, load(from + p * Cp + c));
    std::memcpy(to + p * C + c, tail, (C - c) * sizeof(T));
  }
}

// The padded fp32 rows y-3 .. y+3 of one image, for y moving down.
class Rows {
 public:
  static size_t floats(int64_t W, int64_t Cp) { return (W + 2 * R) * Cp * (K + 1); }
  Rows(Scratch& scratch, int64_t W, int64_t Cp)
      : stride_((W + 2 * R) * Cp), inset_(R * Cp), data_(scratch.take(stride_ * K)), zero_(scratch.take(stride_)) {
    std::fill_n(zero_, stride_, 0.0f);
    for (int k = 0; k < K; ++k) {
      std::fill_n(data_ + k * stride_, inset_, 0.0f);
      std::fill_n(data_ + (k + 1) * stride_ - inset_, inset_, 0.0f);
    }
  }
  void reset() { std::fill(held_, held_ + K, int64_t(-1)); }
  // `fill(row, to)` writes row `row` (W pixels, Cp channels, fp32).
  template <class Fill>
  void move(int64_t y, int64_t H, Fill&& fill) {
    for (int k = 0; k < K; ++k) {
      const int64_t row = y + k - R;
      if (row < 0 || row >= H) {
        rows_[k] = zero_;
        continue;
      }
      const int slot = int(row % K);
      float* to = data_ + slot * stride_;
      if (held_[slot] != row) fill(row, to + inset_), held_[slot] = row;
      rows_[k] = to;
    }
  }
  const float* operator[](int k) const { return rows_[k]; }  // its pixel 0 is at column -3
 private:
  int64_t stride_, inset_;
  float *data_, *zero_;
  const float* rows_[K];
  int64_t held_[K];
};

template <int N>
inline void convolve_pixels(const Rows& rows, int64_t c, const float* weight, vf start, float* out, int64_t x,
                            int64_t Cp) {
  vf a[N];
  for (int p = 0; p < N; ++p) a[p] = start;
  for (int i = 0; i < K; ++i) {
    const float* row = rows[i] + x * Cp + c;
    const float* w = weight + i * K * Cp;
    vf taps[K];
    for (int j = 0; j < K; ++j) taps[j] = load(w + j * Cp);
#pragma GCC unroll 16
    for (int q = 0; q < N + K - 1; ++q) {
      const vf in = load(row + q * Cp);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j)
        if (q - j >= 0 && q - j < N) a[q - j] += in * taps[j];
    }
  }
  for (int p = 0; p < N; ++p) store(out + (x + p) * Cp, a[p]);
}

// out (W, Cp) = start + correlation of seven rows with weight (49, Cp).
void convolve_row(const Rows& rows, const float* weight, const float* start, float* out, int64_t W, int64_t Cp) {
  for (int64_t c = 0; c < Cp; c += L) {
    int64_t x = 0;
    for (; x + P <= W; x += P) convolve_pixels<P>(rows, c, weight + c, load(start + c), out + c, x, Cp);
    for (; x < W; ++x) convolve_pixels<1>(rows, c, weight + c, load(start + c), out + c, x, Cp);
  }
}

struct Padded {  // channel vectors with zeros up to Cp
  std::vector<float> v;
  Padded(const float* from, int64_t rows, int64_t C, int64_t Cp) : v(rows * Cp) {
    for (int64_t r = 0; from && r < rows; ++r) std::memcpy(&v[r * Cp], from + r * C, C * sizeof(float));
  }
  const float* data() const { return v.data(); }
};

inline int64_t padded(int64_t C) { return (C + L - 1) / L * L; }

// Calls `row(b, y, first)` for every row of band `band`; `first` where the rows held so far are of no use.
template <class Row>
void each_row(const DepthwiseNorm& a, int64_t band, Row&& row) {
  const int64_t all = a.batch * a.height, begin = all * band / BANDS, end = all * (band + 1) / BANDS;
  for (int64_t r = begin; r < end; ++r) row(r / a.height, r % a.height, r == begin || r % a.height == 0);
}

template <class T>
void forward_of(const DepthwiseNormForward& a) {
  const int64_t H = a.height, W = a.width, C = a.channels, Cp = padded(C);
  const Padded weight(a.weight, K * K, C, Cp), bias(a.bias, 1, C, Cp), shift(a.shift, a.batch, C, Cp),
      gain(a.gain, 1, C, Cp), offset(a.offset, 1, C, Cp);
  const T* x = static_cast<const T*>(a.x);
#pragma omp parallel for schedule(dynamic)
  for (int64_t band = 0; band < BANDS; ++band) {
    Scratch scratch(Rows::floats(W, Cp) + (W + 1) * Cp);
    Rows rows(scratch, W, Cp);
    float *u = scratch.take(W * Cp), *start = scratch.take(Cp);
    each_row(a, band, [&](int64_t b, int64_t y, bool first) {
      if (first) {
        rows.reset();
        for (int64_t c = 0; c < Cp; c += L) store(&start[c], load(bias.data() + c) + load(shift.data() + b * Cp + c));
      }
      const T* image = x + b * H * W * C;
      rows.move(y, H, [&](int64_t row, float* to) { widen(image + row * W * C, to, W, C, Cp); });
      convolve_row(rows, weight.data(), start, u, W, Cp);
      const int64_t pixel = (b * H + y) * W;
      if (a.u) narrow(u, static_cast<T*>(a.u) + pixel * C, W, C, Cp);
      if (a.gain) {
        for (int64_t p = 0; p < W; ++p) {
          float* v = &u[p * Cp];
          vf total{};
          for (int64_t c = 0; c < Cp; c += L) total += load(v + c);
          const float mean = sum(total) / float(C);
          vf square{};
          for (int64_t c = 0; c < Cp; c += L) {
            const vf d = load(v + c) - mean;
            square += d * d;
          }
          // The padding channels are zero, so each adds mean^2 to the sum of squares.
          const float variance = (sum(square) - float(Cp - C) * mean * mean) / float(C);
          const float rstd = 1.0f / std::sqrt(std::max(variance, 0.0f) + a.eps);
          for (int64_t c = 0; c < Cp; c += L)
            store(v + c, (load(v + c) - mean) * rstd * load(gain.data() + c) + load(offset.data() + c));
          if (a.mean) a.mean[pixel + p] = mean, a.rstd[pixel + p] = rstd;
        }
      }
      narrow(u, static_cast<T*>(a.out) + pixel * C, W, C, Cp);
    });
  }
}

// The gradient at the norm's input for one row, fp32 (W, Cp), from saved u and statistics.
template <class T>
void norm_backward_row(const DepthwiseNormBackward& a, int64_t pixel, const float* gain, float* u, float* to,
                       int64_t Cp) {
  const int64_t W = a.width, C = a.channels;
  widen(static_cast<const T*>(a.grad_out) + pixel * C, to, W, C, Cp);
  if (!a.gain) return;
  widen(static_cast<const T*>(a.u) + pixel * C, u, W, C, Cp);
  for (int64_t p = 0; p < W; ++p) {
    const float mean = a.mean[pixel + p], rstd = a.rstd[pixel + p];
    float *g = to + p * Cp, *v = u + p * Cp;
    vf s1{}, s2{};
    for (int64_t c = 0; c < Cp; c += L) {
      const vf gg = load(g + c) * load(gain + c), xhat = (load(v + c) - mean) * rstd;
      s1 += gg;
      s2 += gg * xhat;
      store(v + c, xhat);
    }
    const float m1 = sum(s1) / float(C), m2 = sum(s2) / float(C);
    for (int64_t c = 0; c < Cp; c += L)
      store(g + c, (load(g + c) * load(gain + c) - m1 - load(v + c) * m2) * rstd);
    for (int64_t c = C; c < Cp; ++c) g[c] = 0;
  }
}

// grad_weight (49, Cp) += correlation of one row of gradients with seven input rows.
void weight_gradient_row(const Rows& rows, const float* grad, float* grad_weight, int64_t W, int64_t Cp) {
  for (int64_t c = 0; c < Cp; c += L)
    for (int i = 0; i < K; ++i) {
      const float *row = rows[i] + c, *g = grad + c;
      float* w = grad_weight + i * K * Cp + c;
      vf s[K];
      for (int j = 0; j < K; ++j) s[j] = load(w + j * Cp);
      int64_t x = 0;
      for (; x + P <= W; x += P) {
        vf gs[P];
        for (int p = 0; p < P; ++p) gs[p] = load(g + (x + p) * Cp);
#pragma GCC unroll 16
        for (int q = 0; q < P + K - 1; ++q) {
          const vf in = load(row + (x + q) * Cp);
#pragma GCC unroll 8
          for (int j = 0; j < K; ++j)
            if (q - j >= 0 && q - j < P) s[j] += in * gs[q - j];
        }
      }
      for (; x < W; ++x) {
        const vf gv = load(g + x * Cp);
        for (int j = 0; j < K; ++j) s[j] += load(row + (x + j) * Cp) * gv;
      }
      for (int j = 0; j < K; ++j) store(w + j * Cp, s[j]);
    }
}

template <class T>
void backward_of(const DepthwiseNormBackward& a) {
  const int64_t H = a.height, W = a.width, C = a.channels, Cp = padded(C);
  const Padded weight(a.weight, K * K, C, Cp), gain(a.gain, 1, C, Cp);
  std::vector<float> flipped(K * K * Cp);
  for (int t = 0; t < K * K; ++t) std::copy_n(weight.data() + t * Cp, Cp, &flipped[(K * K - 1 - t) * Cp]);
  const std::vector<float> nothing(Cp);
  // Partial sums of each band: weight (49), gain, offset; and shift for each image.
  const int64_t per_band = (K * K + 2 + a.batch) * Cp;
  std::vector<float> partial(BANDS * per_band);
  const T* x = static_cast<const T*>(a.x);
#pragma omp parallel for schedule(dynamic)
  for (int64_t band = 0; band < BANDS; ++band) {
    float* grad_weight = &partial[band * per_band];
    float *grad_gain = grad_weight + K * K * Cp, *grad_offset = grad_gain + Cp, *grad_shift = grad_offset + Cp;
    Scratch scratch(2 * Rows::floats(W, Cp) + 3 * W * Cp);
    Rows inputs(scratch, W, Cp), grads(scratch, W, Cp);
    float *u = scratch.take(W * Cp), *row_out = scratch.take(W * Cp), *raw = scratch.take(W * Cp);
    each_row(a, band, [&](int64_t b, int64_t y, bool first) {
      if (first) inputs.reset(), grads.reset();
      const T* image = x + b * H * W * C;
      inputs.move(y, H, [&](int64_t row, float* to) { widen(image + row * W * C, to, W, C, Cp); });
      grads.move(y, H, [&](int64_t row, float* to) {
        norm_backward_row<T>(a, (b * H + row) * W, gain.data(), u, to, Cp);
      });
      const float* du = grads[R] + R * Cp;
      convolve_row(grads, flipped.data(), nothing.data(), row_out, W, Cp);
      const int64_t pixel = (b * H + y) * W;
      narrow(row_out, static_cast<T*>(a.grad_x) + pixel * C, W, C, Cp);
      weight_gradient_row(inputs, du, grad_weight, W, Cp);
      for (int64_t p = 0; p < W; ++p)
        for (int64_t c = 0; c < Cp; c += L)
          store(grad_shift + b * Cp + c, load(grad_shift + b * Cp + c) + load(du + p * Cp + c));
      if (!a.gain) return;
      widen(static_cast<const T*>(a.grad_out) + pixel * C, raw, W, C, Cp);
      widen(static_cast<const T*>(a.u) + pixel * C, u, W, C, Cp);
      for (int64_t p = 0; p < W; ++p) {
        const float mean = a.mean[pixel + p], rstd = a.rstd[pixel + p];
        for (int64_t c = 0; c < Cp; c += L) {
          const vf g = load(&raw[p * Cp + c]);
          store(grad_gain + c, load(grad_gain + c) + g * (load(&u[p * Cp + c]) - mean) * rstd);
          store(grad_offset + c, load(grad_offset + c) + g);
        }
      }
    });
  }
  const auto total = [&](float* to, int64_t at, int64_t rows) {
    for (int64_t r = 0; to && r < rows; ++r)
      for (int64_t c = 0; c < C; ++c) {
        float s = 0;
        for (int64_t band = 0; band < BANDS; ++band) s += partial[band * per_band + at + r * Cp + c];
        to[r * C + c] = s;
      }
  };
  total(a.grad_weight, 0, K * K);
  total(a.grad_gain, K * K * Cp, 1);
  total(a.grad_offset, (K * K + 1) * Cp, 1);
  total(a.grad_shift, (K * K + 2) * Cp, a.batch);
}

}  // namespace

void forward(const DepthwiseNormForward& a) { a.bf16 ? forward_of<uint16_t>(a) : forward_of<float>(a); }
void backward(const DepthwiseNormBackward& a) { a.bf16 ? backward_of<uint16_t>(a) : backward_of<float>(a); }

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
