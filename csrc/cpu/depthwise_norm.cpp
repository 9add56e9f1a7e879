#define STRIP 1
// Compiled once for each instruction set (SINFUSION_ISA_NAMESPACE, SINFUSION_LANES).
//
// Channels are worked on in planes of L, the lanes of one vector; what belongs to channels is laid out by planes first.
// Pixels are worked on in tiles, ROWS x P of one plane in registers, straight from the tensors: both planes of a block
// of 2 L channels of bf16 take one instruction each to widen (vector.h). Where the channels are no whole number of
// blocks, the rows that a tile needs are copied first, as fp32 with zeros behind the last channel.
//
// A task owns a band of rows. Bands are fixed by the shape, not by the number of threads, and partial sums are added in
// order, so results do not depend on threads.
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

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 2;  // 32 registers hold 16 pixels, the taps of two rows, an input
#else
constexpr int ROWS = 1;
#endif
constexpr int K = 7, R = 3;
constexpr int P = 8, TILE = ROWS * P;
constexpr int HELD = ROWS + K - 1;  // rows of inputs that a tile needs
#ifndef STRIP
#define STRIP 2
#endif
constexpr int BANDS = 32;  // of pairs of rows, over the whole batch

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
inline int threads() {
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}

// Hands out parts of the memory of one call.
struct Memory {
  float* next;
  float* take(int64_t floats) {
    float* part = next;
    next += rounded(floats);
    return part;
  }
  static int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }
};

// How activations of type In are cut: a block of PARTS planes is as many bytes as a vector has.
template <class In>
constexpr int PARTS = int(sizeof(float) / sizeof(In));
template <class In>
constexpr int BLOCK = PARTS<In>* L;
template <class In>
int64_t blocks_of(int64_t channels) {
  return (channels + BLOCK<In> - 1) / BLOCK<In>;
}
template <class In>
int lanes_of(int64_t channels, int64_t block) {  // where a block is a plane
  return channels - block * L < L ? int(channels - block * L) : L;
}
template <int part>
inline vf load_part(const float* p) {
  return load(p);
}
template <int part>
inline vf load_part(const uint16_t* p) {
  return load_half<part>(p);
}

// (rows, C) -> (planes, rows, L), zeros in the lanes left over and for null.
template <class In>
void to_planes(const float* from, float* to, int64_t rows, int64_t C) {
  for (int64_t plane = 0; plane < blocks_of<In>(C) * PARTS<In>; ++plane)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t l = 0; l < L; ++l) {
        const int64_t c = plane / PARTS<In> * BLOCK<In> + l * PARTS<In> + plane % PARTS<In>;
        *to++ = from && c < C ? from[r * C + c] : 0.0f;
      }
}

// The rows of a batch of images as tiles read them: where they lie or, for `data` null, the latest of them as
// `fill(row, to)` makes them.
template <class In, class Fill>
class Rows {
 public:
  Rows(Memory& memory, const In* data, int64_t W, int64_t pixel, Fill fill)
      : data_(data), row_(W * pixel), pixel_(pixel), fill_(fill) {
    for (int k = 0; k < HELD && !data; ++k) {
      made_[k] = reinterpret_cast<In*>(memory.take(floats(W, pixel)));
      held_[k] = -1;
    }
  }
  static int64_t floats(int64_t W, int64_t pixel) { return W * pixel * int64_t(sizeof(In)) / 4; }
  int64_t pixel() const { return pixel_; }  // numbers from one to the next
  const In* row(int64_t r) {
    if (data_) return data_ + r * row_;
    const int slot = int(r % HELD);
    if (held_[slot] != r) fill_(r, made_[slot]), held_[slot] = r;
    return made_[slot];
  }

 private:
  const In* data_;
  int64_t row_, pixel_;
  Fill fill_;
  In* made_[HELD];
  int64_t held_[HELD];
};

// The rows y-3 .. y+ROWS+2 of an image, null outside of it.
template <class In>
struct Window {
  const In* rows[HELD];
  int64_t pixel;
  template <class Fill>
  Window(Rows<In, Fill>& from, const DepthwiseNorm& a, int64_t b, int64_t y) : pixel(from.pixel()) {
    for (int i = 0; i < HELD; ++i) {
      const int64_t row = y + i - R;
      rows[i] = row < 0 || row >= a.height ? nullptr : from.row(b * a.height + row);
    }
  }
  // Columns x .. x+count of ROWS of the rows, to come into the cache.
  void fetch(int first, int64_t x, int64_t count) const {
    for (int i = first; i < first + ROWS; ++i)
      for (int64_t k = 0; rows[i] && k < count * pixel; k += 64 / int64_t(sizeof(In)))
        __builtin_prefetch(rows[i] + x * pixel + k);
  }
};

// One row of inputs times the taps of the upper and of the lower row of pixels.
template <class In, int part, bool upper, bool lower, bool inner>
inline __attribute__((always_inline)) void convolve_row(const In* in, int64_t stride, int first, int last,
                                                        const float* taps, vf* a) {
  vf u[K], v[K];
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    if (upper) u[j] = load(taps + j * L);
    if (lower) v[j] = load(taps + (j - K) * L);
  }
#pragma GCC unroll 16
  for (int q = 0; q < P + K - 1; ++q) {
    if (!inner && (q < first || q >= last)) continue;
    const vf value = load_part<part>(in + q * stride);
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j)
      if (q - j >= 0 && q - j < P) {
        if (upper) a[q - j] += value * u[j];
        if (lower) a[P + q - j] += value * v[j];
      }
  }
}

// A tile of one plane: out (rows, P, L) = start + correlation with weight (49, L). The columns of inputs first .. last
// lie in the image.
template <class In, int part, int rows, bool inner>
void convolve_tile(const In* const* in, int64_t at, int64_t stride, int first, int last, const float* weight, vf start,
                   float* out) {
  vf a[rows * P];
#pragma GCC unroll 16
  for (int p = 0; p < rows * P; ++p) a[p] = start;
  if (in[0]) convolve_row<In, part, true, false, inner>(in[0] + at, stride, first, last, weight, a);
  for (int i = 1; i < K; ++i)
    if (in[i])
      convolve_row<In, part, true, rows == 2, inner>(in[i] + at, stride, first, last, weight + i * K * L, a);
  if (rows == 2 && in[K])
    convolve_row<In, part, false, true, inner>(in[K] + at, stride, first, last, weight + K * K * L, a);
#pragma GCC unroll 16
  for (int p = 0; p < rows * P; ++p) store(out + p * L, a[p]);
}

// One row of gradients times the pixels of the upper and of the lower row: adds to their taps.
template <class In, int part, bool upper, bool lower, bool inner>
inline __attribute__((always_inline)) void correlate_row(const In* grad, int64_t stride, int first, int last,
                                                         float* taps, const vf* x) {
  vf u[K], v[K];
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    if (upper) u[j] = load(taps + j * L);
    if (lower) v[j] = load(taps + (j - K) * L);
  }
#pragma GCC unroll 16
  for (int q = 0; q < P + K - 1; ++q) {
    if (!inner && (q < first || q >= last)) continue;
    const vf value = load_part<part>(grad + q * stride);
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j)
      if (q - j >= 0 && q - j < P) {
        if (upper) u[j] += value * x[q - j];
        if (lower) v[j] += value * x[P + q - j];
      }
  }
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    if (upper) store(taps + j * L, u[j]);
    if (lower) store(taps + (j - K) * L, v[j]);
  }
}

// taps (49, L), flipped, += correlation of a tile of x, (rows, P) pixels of which `count` columns lie in the image,
// with gradients.
template <class In, int part, int rows, bool inner>
void correlate_tile(const In* const* grad, int64_t at, int64_t stride, int first, int last, const In* const* x,
                    int64_t x_at, int64_t x_stride, int count, float* taps) {
  vf v[rows * P];
#pragma GCC unroll 16
  for (int p = 0; p < rows * P; ++p)
    v[p] = inner || p % P < count ? load_part<part>(x[p / P] + x_at + p % P * x_stride) : vf{};
  if (grad[0]) correlate_row<In, part, true, false, inner>(grad[0] + at, stride, first, last, taps, v);
  for (int i = 1; i < K; ++i)
    if (grad[i])
      correlate_row<In, part, true, rows == 2, inner>(grad[i] + at, stride, first, last, taps + i * K * L, v);
  if (rows == 2 && grad[K])
    correlate_row<In, part, false, true, inner>(grad[K] + at, stride, first, last, taps + K * K * L, v);
}

// Where a tile lies in its image.
struct Tile {
  int64_t x;
  int rows, columns;  // of it in the image
  int first, last;    // columns of the inputs in the image, of x-3 .. x+P+3
  bool inner;
  Tile(int64_t x, int64_t W, int rows) : x(x), rows(rows) {
    columns = W - x < P ? int(W - x) : P;
    first = x < R ? int(R - x) : 0;
    last = W - x + R < P + K - 1 ? int(W - x + R) : P + K - 1;
    inner = first == 0 && last == P + K - 1;
  }
};

// The planes of one block: out (PARTS, TILE, L).
template <class In, int part, int rows>
void convolve_part(const Window<In>& in, const Tile& t, int64_t block, const float* weight, vf start, float* out) {
  const int64_t at = (t.x - R) * in.pixel + block * BLOCK<In>;
  (t.inner ? convolve_tile<In, part, rows, true> : convolve_tile<In, part, rows, false>)(
      in.rows, at, in.pixel, t.first, t.last, weight, start, out);
}
template <class In, int part>
void convolve(const Window<In>& in, const Tile& t, int64_t block, const float* weight, vf start, float* out) {
  if (t.rows == ROWS) convolve_part<In, part, ROWS>(in, t, block, weight, start, out);
  else convolve_part<In, part, 1>(in, t, block, weight, start, out);
}
template <class In, int part, int rows>
void correlate_part(const Window<In>& grad, const Window<In>& x, const Tile& t, int64_t block, float* taps) {
  const int64_t at = (t.x - R) * grad.pixel + block * BLOCK<In>, x_at = t.x * x.pixel + block * BLOCK<In>;
  (t.inner ? correlate_tile<In, part, rows, true> : correlate_tile<In, part, rows, false>)(
      grad.rows, at, grad.pixel, t.first, t.last, x.rows + R, x_at, x.pixel, t.columns, taps);
}
template <class In, int part>
void correlate(const Window<In>& grad, const Window<In>& x, const Tile& t, int64_t block, float* taps) {
  if (t.rows == ROWS) correlate_part<In, part, ROWS>(grad, x, t, block, taps);
  else correlate_part<In, part, 1>(grad, x, t, block, taps);
}

// Calls `pair(band, b, y, rows)` for every ROWS rows of bands begin .. end, fewer at the end of an image.
template <class Pair>
void each_pair(const DepthwiseNorm& a, int64_t begin, int64_t end, Pair&& pair) {
  const int64_t high = (a.height + ROWS - 1) / ROWS, all = a.batch * high;
  for (int64_t band = begin; band < end; ++band)
    for (int64_t r = all * band / BANDS; r < all * (band + 1) / BANDS; ++r) {
      const int64_t y = r % high * ROWS;
      pair(band, r / high, y, a.height - y < ROWS ? 1 : ROWS);
    }
}
inline int64_t band_of(const DepthwiseNorm& a, int64_t row) {
  const int64_t high = (a.height + ROWS - 1) / ROWS, r = row / a.height * high + row % a.height / ROWS;
  return ((r + 1) * BANDS - 1) / (a.batch * high);
}

template <class T, class In>
inline void write_block(T* pixel, int64_t C, int64_t block, vf even, vf odd) {
  if constexpr (PARTS<In> == 2)
    store_halves(pixel + block * BLOCK<In>, even, odd);
  else
    store(pixel + block * L, even, lanes_of<In>(C, block));
}
template <class In, int part, class T>
inline vf read_part(const T* pixel, int64_t C, int64_t block) {
  if constexpr (PARTS<In> == 2)
    return load_half<part>(pixel + block * BLOCK<In>);
  else
    return load(pixel + block * L, lanes_of<In>(C, block));
}

template <class T, class In, bool normed, bool kept>
void finish(const DepthwiseNormForward& a, int64_t first, const Tile& t, const float* u, const float* mean,
            const float* rstd, const float* gain, const float* offset) {
  const int64_t W = a.width, C = a.channels, blocks = blocks_of<In>(C);
  constexpr int64_t other = (PARTS<In> - 1) * TILE * L, next = (PARTS<In> - 1) * L;
  const int rows = t.rows, columns = t.columns;
  for (int64_t block = 0; block < blocks; ++block, u += PARTS<In> * TILE * L, gain += BLOCK<In>, offset += BLOCK<In>) {
    const vf scale[2] = {load(gain), load(gain + next)}, start[2] = {load(offset), load(offset + next)};
    for (int r = 0; r < rows; ++r) {
      T *out = static_cast<T*>(a.out) + (first + r * W) * C, *keep = static_cast<T*>(a.u) + (first + r * W) * C;
      for (int p = r * P; p < r * P + columns; ++p, out += C, keep += C) {
        vf even = load(u + p * L), odd = load(u + other + p * L);
        if (kept) write_block<T, In>(keep, C, block, even, odd);
        if (normed) {
          even = (even - mean[p]) * rstd[p] * scale[0] + start[0];
          odd = (odd - mean[p]) * rstd[p] * scale[1] + start[1];
        }
        write_block<T, In>(out, C, block, even, odd);
      }
    }
  }
}

// A tile of the convolution's output, u (planes, TILE, L), to the tensors: normalized if there is a gain. `last` is 1 in
// the lanes of the last plane that are channels.
template <class T, class In>
void norm(const DepthwiseNormForward& a, int64_t first, const Tile& t, const float* u, const float* gain,
          const float* offset, vf last, float share) {
  const int64_t C = a.channels, blocks = blocks_of<In>(C), planes = blocks * PARTS<In>;
  float mean[TILE], rstd[TILE];
  if (a.gain) {
    vf totals[TILE]{}, squares[TILE]{};
    for (int64_t plane = 0; plane < planes; ++plane)
#pragma GCC unroll 16
      for (int p = 0; p < TILE; ++p) totals[p] += load(u + (plane * TILE + p) * L);
#pragma GCC unroll 16
    for (int p = 0; p < TILE; ++p) mean[p] = sum(totals[p]) * share;
    for (int64_t plane = 0; plane < planes; ++plane) {
      const vf real = plane == planes - 1 ? last : vf{} + 1;
#pragma GCC unroll 16
      for (int p = 0; p < TILE; ++p) {
        const vf d = (load(u + (plane * TILE + p) * L) - mean[p]) * real;
        squares[p] += d * d;
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < TILE; ++p) rstd[p] = sum(squares[p]) * share + a.eps;
    for (int p = 0; p < TILE; p += L) store(rstd + p, 1.0f / root(load(rstd + p)));
  }
  for (int r = 0; r < t.rows && a.mean; ++r)
    for (int p = 0; p < t.columns; ++p) {
      a.mean[first + r * a.width + p] = mean[r * P + p];
      a.rstd[first + r * a.width + p] = rstd[r * P + p];
    }
  if (!a.gain) return finish<T, In, false, false>(a, first, t, u, mean, rstd, gain, offset);
  (a.u ? finish<T, In, true, true> : finish<T, In, true, false>)(a, first, t, u, mean, rstd, gain, offset);
}

// Calls `work(memory, begin, end)` in every thread, for its share of the bands and with its part of the memory.
template <class Work>
void each_thread(float* memory, int64_t per_thread, Work&& work) {
#pragma omp parallel
  {
    const int64_t n = threads(), k = thread();
    work(Memory{memory + k * per_thread}, BANDS * k / n, BANDS * (k + 1) / n);
  }
}

// Copies a row of T as In, with zeros behind the last channel; for rows that are not read where they lie.
template <class T, class In>
struct Copy {
  const T* data;
  int64_t W, C;
  void operator()(int64_t r, In* to) const {
    const int64_t blocks = blocks_of<In>(C);
    const T* from = data + r * W * C;
    for (int64_t x = 0; x < W; ++x, from += C)
      for (int64_t block = 0; block < blocks; ++block, to += L)
        if constexpr (PARTS<In> == 1) store(to, load(from + block * L, lanes_of<In>(C, block)));
  }
};
template <class T, class In>
const In* in_place(const void* data, int64_t C) {
  return sizeof(T) == sizeof(In) && C % BLOCK<In> == 0 ? static_cast<const In*>(data) : nullptr;
}

template <class T, class In>
void forward_of(const DepthwiseNormForward& a) {
  const int64_t W = a.width, C = a.channels, blocks = blocks_of<In>(C), planes = blocks * PARTS<In>, Cp = planes * L;
  using Inputs = Rows<In, Copy<T, In>>;
  const In* x = in_place<T, In>(a.x, C);
  const int64_t per_thread = (x ? 0 : HELD * Memory::rounded(Inputs::floats(W, Cp))) + STRIP * planes * TILE * L;
  Memory memory{scratch((K * K + 3 + a.batch) * Cp + max_threads() * per_thread)};
  float *weight = memory.take(K * K * Cp), *start = memory.take(a.batch * Cp), *bias = memory.take(Cp),
        *gain = memory.take(Cp), *offset = memory.take(Cp), *own = memory.take(0);
  to_planes<In>(a.weight, weight, K * K, C);
  to_planes<In>(a.bias, bias, 1, C);
  for (int64_t b = 0; b < a.batch; ++b) {
    to_planes<In>(a.shift ? a.shift + b * C : nullptr, start + b * Cp, 1, C);
    for (int64_t c = 0; c < Cp; ++c) start[b * Cp + c] += bias[c];
  }
  to_planes<In>(a.gain, gain, 1, C);
  to_planes<In>(a.offset, offset, 1, C);
  float ones[L];
  for (int i = 0; i < L; ++i) ones[i] = 1;
  const vf last = load(ones, PARTS<In> == 1 ? lanes_of<In>(C, planes - 1) : L);  // 1 in lanes that are channels
  const float share = 1.0f / float(C);

  each_thread(own, per_thread, [&](Memory mine, int64_t begin, int64_t end) {
    Inputs inputs(mine, x, W, x ? C : Cp, {static_cast<const T*>(a.x), W, C});
    float* u = mine.take(STRIP * planes * TILE * L);
    each_pair(a, begin, end, [&](int64_t, int64_t b, int64_t y, int rows) {
      const Window<In> in(inputs, a, b, y);
      for (int64_t x0 = 0; x0 < W; x0 += STRIP * P) {
        in.fetch(K - 1, x0 + STRIP * P + R, STRIP * P);
        for (int r = 0; r < rows; ++r) {
          const int64_t at = ((b * a.height + y + r) * W + x0) * C, n = (W - x0 < STRIP * P ? W - x0 : STRIP * P) * C;
          for (int64_t k = 0; k < n; k += 64 / int64_t(sizeof(T))) {
            __builtin_prefetch(static_cast<T*>(a.out) + at + k, 1, 3);
            if (a.u) __builtin_prefetch(static_cast<T*>(a.u) + at + k, 1, 3);
          }
        }
        for (int64_t block = 0; block < blocks; ++block) {
          const float *w = weight + block * PARTS<In> * K * K * L, *s = start + b * Cp + block * BLOCK<In>;
          for (int k = 0; k < STRIP && x0 + k * P < W; ++k) {
            const Tile t(x0 + k * P, W, rows);
            float* to = u + (k * planes + block * PARTS<In>) * TILE * L;
            convolve<In, 0>(in, t, block, w, load(s), to);
            if constexpr (PARTS<In> == 2)
              convolve<In, 1>(in, t, block, w + K * K * L, load(s + L), to + TILE * L);
          }
        }
        for (int k = 0; k < STRIP && x0 + k * P < W; ++k) {
          const Tile t(x0 + k * P, W, rows);
          norm<T, In>(a, (b * a.height + y) * W + t.x, t, u + k * planes * TILE * L, gain, offset, last, share);
        }
      }
    });
  });
}

// Backward through the norm for one row: out (W, Cp) = the gradient at the convolution's output; adds to grad_gain,
// grad_offset and grad_shift, (Cp) each.
template <class T, class In>
void norm_backward(const DepthwiseNormBackward& a, int64_t row, const float* gain, In* out, float* grad_gain,
                   float* grad_offset, float* grad_shift) {
  const int64_t C = a.channels, blocks = blocks_of<In>(C), Cp = blocks * BLOCK<In>;
  const float share = 1.0f / float(C);
  for (int64_t x = 0; x < a.width; x += TILE, out += TILE * Cp) {
    const int64_t first = row * a.width + x;
    const int count = a.width - x < TILE ? int(a.width - x) : TILE;
    const T *grad = static_cast<const T*>(a.grad_out) + first * C, *u = static_cast<const T*>(a.u) + first * C;
    const float *mean = a.mean + first, *rstd = a.rstd + first;
    float means[TILE], parallels[TILE];
    for (int p = 0; p < count; ++p) {
      vf s1{}, s2{};
      const auto add = [&](vf g, vf v) {
        s1 += g;
        s2 += g * (v - mean[p]);
      };
      for (int64_t block = 0; block < blocks; ++block) {
        const float* scale = gain + block * BLOCK<In>;  // 0 in lanes left over
        add(read_part<In, 0>(grad + p * C, C, block) * load(scale), read_part<In, 0>(u + p * C, C, block));
        if constexpr (PARTS<In> == 2)
          add(read_part<In, 1>(grad + p * C, C, block) * load(scale + L), read_part<In, 1>(u + p * C, C, block));
      }
      means[p] = sum(s1) * share;
      parallels[p] = sum(s2) * rstd[p] * share;
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t c = block * BLOCK<In>, d = c + (PARTS<In> - 1) * L;
      struct Sums {
        vf scale, gain, offset, shift;
        vf back(vf g, vf v, float mean, float rstd, float m, float parallel) {
          const vf normed = (v - mean) * rstd, result = (g * scale - m - normed * parallel) * rstd;
          gain += g * normed;
          offset += g;
          shift += result;
          return result;
        }
      };
      Sums even{load(gain + c), load(grad_gain + c), load(grad_offset + c), load(grad_shift + c)};
      Sums odd{load(gain + d), load(grad_gain + d), load(grad_offset + d), load(grad_shift + d)};
      for (int p = 0; p < count; ++p) {
        const vf e = even.back(read_part<In, 0>(grad + p * C, C, block), read_part<In, 0>(u + p * C, C, block),
                               mean[p], rstd[p], means[p], parallels[p]);
        if constexpr (PARTS<In> == 2) {
          const vf o = odd.back(read_part<In, 1>(grad + p * C, C, block), read_part<In, 1>(u + p * C, C, block),
                                mean[p], rstd[p], means[p], parallels[p]);
          store_halves(out + p * Cp + c, e, o);
        } else {
          store(out + p * Cp + c, e);
        }
      }
      if constexpr (PARTS<In> == 2) {
        store(grad_gain + d, odd.gain);
        store(grad_offset + d, odd.offset);
        store(grad_shift + d, odd.shift);
      }
      store(grad_gain + c, even.gain);
      store(grad_offset + c, even.offset);
      store(grad_shift + c, even.shift);
    }
  }
}

// sums (Cp) += one row.
template <class In>
void add_row(const In* row, int64_t pixel, int64_t W, int64_t blocks, float* sums) {
  for (int64_t block = 0; block < blocks; ++block, sums += BLOCK<In>) {
    constexpr int64_t other = (PARTS<In> - 1) * L;
    vf even = load(sums), odd = load(sums + other);
    for (int64_t x = 0; x < W; ++x) {
      even += load_part<0>(row + x * pixel + block * BLOCK<In>);
      odd += load_part<PARTS<In> - 1>(row + x * pixel + block * BLOCK<In>);
    }
    store(sums + other, odd);
    store(sums, even);
  }
}

template <class T, class In>
void backward_of(const DepthwiseNormBackward& a) {
  const int64_t H = a.height, W = a.width, C = a.channels, blocks = blocks_of<In>(C), planes = blocks * PARTS<In>,
                Cp = planes * L;
  const int64_t per_band = (K * K + 2 + a.batch) * Cp;  // partial sums: taps, flipped; gain, offset, shift
  using Inputs = Rows<In, Copy<T, In>>;
  const In *x = in_place<T, In>(a.x, C), *g = a.gain ? nullptr : in_place<T, In>(a.grad_out, C);
  const int64_t held = HELD * Memory::rounded(Inputs::floats(W, Cp));
  const int64_t per_thread = (x ? 0 : held) + (g ? 0 : held) + (2 + a.batch) * Cp;
  Memory memory{scratch((K * K + 1) * Cp + BANDS * per_band + max_threads() * per_thread)};
  float *flipped = memory.take(K * K * Cp), *gain = memory.take(Cp), *partial = memory.take(BANDS * per_band),
        *own = memory.take(0);
  to_planes<In>(a.weight, flipped, K * K, C);
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int t = 0; t < K * K / 2; ++t) {
      float *one = flipped + (plane * K * K + t) * L, *other = flipped + (plane * K * K + K * K - 1 - t) * L;
      const vf kept = load(one);
      store(one, load(other));
      store(other, kept);
    }
  to_planes<In>(a.gain, gain, 1, C);

  each_thread(own, per_thread, [&](Memory mine, int64_t begin, int64_t end) {
    memset(partial + begin * per_band, 0, (end - begin) * per_band * sizeof(float));
    Inputs inputs(mine, x, W, x ? C : Cp, {static_cast<const T*>(a.x), W, C});
    const Copy<T, In> copy{static_cast<const T*>(a.grad_out), W, C};
    float* unused = mine.take((2 + a.batch) * Cp);
    memset(unused, 0, (2 + a.batch) * Cp * sizeof(float));
    const auto fill = [&](int64_t row, In* to) {
      if (!a.gain) return copy(row, to);
      const int64_t band = band_of(a, row);  // the rows that border on another thread's are made by both
      float* sums = band >= begin && band < end ? partial + band * per_band + K * K * Cp : unused;
      norm_backward<T, In>(a, row, gain, to, sums, sums + Cp, sums + (2 + row / H) * Cp);
    };
    Rows<In, decltype(fill)> grads(mine, g, W, g ? C : Cp, fill);
    each_pair(a, begin, end, [&](int64_t band, int64_t b, int64_t y, int rows) {
      const Window<In> in(inputs, a, b, y), grad(grads, a, b, y);
      float *taps = partial + band * per_band, *sums = taps + (K * K + 2 + b) * Cp;
      for (int r = 0; r < rows && !a.gain; ++r) add_row(grad.rows[R + r], grad.pixel, W, blocks, sums);
      for (int64_t x0 = 0; x0 < W; x0 += STRIP * P) {
        in.fetch(R, x0 + STRIP * P, STRIP * P);
        if (g) grad.fetch(K - 1, x0 + STRIP * P + R, STRIP * P);
        for (int r = 0; r < rows; ++r) {
          const int64_t at = ((b * a.height + y + r) * W + x0) * C, n = (W - x0 < STRIP * P ? W - x0 : STRIP * P) * C;
          for (int64_t k = 0; k < n; k += 64 / int64_t(sizeof(T)))
            __builtin_prefetch(static_cast<T*>(a.grad_x) + at + k, 1, 3);
        }
        for (int64_t block = 0; block < blocks; ++block)
          for (int k = 0; k < STRIP && x0 + k * P < W; ++k) {
            const Tile t(x0 + k * P, W, rows);
            constexpr int64_t other = (PARTS<In> - 1) * TILE * L;
            alignas(64) float out[PARTS<In> * TILE * L];
            const int64_t w = block * PARTS<In> * K * K * L;
            convolve<In, 0>(grad, t, block, flipped + w, vf{}, out);
            correlate<In, 0>(grad, in, t, block, taps + w);
            if constexpr (PARTS<In> == 2) {
              convolve<In, 1>(grad, t, block, flipped + w + K * K * L, vf{}, out + other);
              correlate<In, 1>(grad, in, t, block, taps + w + K * K * L);
            }
            for (int r = 0; r < rows; ++r) {
              T* to = static_cast<T*>(a.grad_x) + ((b * H + y + r) * W + t.x) * C;
              const float* v = out + r * P * L;
              for (int p = 0; p < t.columns; ++p, to += C, v += L)
                write_block<T, In>(to, C, block, load(v), load(v + other));
            }
          }
      }
    });
  });

  // (planes, rows, L) of every band, added in order -> (rows, C).
  const auto total = [&](float* to, int64_t at, int64_t rows) {
    for (int64_t plane = 0; to && plane < planes; ++plane)
      for (int64_t r = 0; r < rows; ++r) {
        vf s{};
        for (int64_t band = 0; band < BANDS; ++band) s += load(partial + band * per_band + at + (plane * rows + r) * L);
        float lanes[L];
        store(lanes, s);
        for (int64_t l = 0; l < L; ++l) {
          const int64_t c = plane / PARTS<In> * BLOCK<In> + l * PARTS<In> + plane % PARTS<In>;
          if (c < C) to[(rows - 1 - r) * C + c] = lanes[l];
        }
      }
  };
  total(a.grad_weight, 0, K * K);
  total(a.grad_gain, K * K * Cp, 1);
  total(a.grad_offset, (K * K + 1) * Cp, 1);
  for (int64_t b = 0; b < a.batch; ++b) total(a.grad_shift + b * C, (K * K + 2 + b) * Cp, 1);
}

}  // namespace

void forward(const DepthwiseNormForward& a) {
  if (!a.bf16) return forward_of<float, float>(a);
  a.channels % BLOCK<uint16_t> ? forward_of<uint16_t, float>(a) : forward_of<uint16_t, uint16_t>(a);
}
void backward(const DepthwiseNormBackward& a) {
  if (!a.bf16) return backward_of<float, float>(a);
  a.channels % BLOCK<uint16_t> ? backward_of<uint16_t, float>(a) : backward_of<uint16_t, uint16_t>(a);
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
