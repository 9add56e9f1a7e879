// Compiled once for each instruction set (SINFUSION_ISA_NAMESPACE, SINFUSION_LANES).
//
// Channels are worked on in planes of L, the lanes of one vector; what belongs to channels is laid out by planes first.
// Pixels are worked on in tiles, ROWS x P of one plane in registers, straight from the tensors: of a block of 2 L
// channels of bf16, the even ones are a plane and the odd ones another, each widened by one instruction. Where the
// channels of x or of skip are no whole number of blocks, the rows that a tile needs are copied first: fp32, x and skip
// one behind the other, zeros behind the last channel.
//
// The backward makes the gradient at the norm's input row by row, when a tile first needs it, and a thread that claims
// bands of rows that follow each other makes each once. Bands are fixed by the shape, not by the number of threads, and
// partial sums are added in order, so results do not depend on threads.
//
// The C++ library stays out of this file: its inline functions, compiled here for one instruction set, could be the
// copies that the linker keeps for every machine.
#include "depthwise_norm.h"

#include <string.h>

#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 2;  // 32 registers: 16 pixels, the taps of two rows, an input
#else
constexpr int ROWS = 1;
#endif
constexpr int K = 7, R = 3;
constexpr int P = 8, TILE = ROWS * P;
constexpr int HELD = ROWS + K - 1;  // rows of inputs that a tile needs
constexpr int BANDS = 32;           // of rows, over the whole batch

// Hands out parts of the memory of one call, each aligned as a vector is.
struct Memory {
  float* next;
  float* take(int64_t floats) {
    float* part = next;
    next += rounded(floats);
    return part;
  }
  static int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }
};

// How activations read as In are cut: a block is as many bytes as a vector has, and PARTS planes.
template <class In>
constexpr int PARTS = int(sizeof(float) / sizeof(In));
template <class In>
constexpr int BLOCK = PARTS<In> * LANES;
template <class In>
inline int64_t blocks_of(int64_t channels) {
  return (channels + BLOCK<In> - 1) / BLOCK<In>;
}
template <class In>
inline int64_t channel_of(int64_t plane, int64_t lane) {
  return plane / PARTS<In> * BLOCK<In> + lane * PARTS<In> + plane % PARTS<In>;
}
inline int lanes_of(int64_t channels, int64_t plane) {  // of fp32
  return channels - plane * LANES < LANES ? int(channels - plane * LANES) : LANES;
}
inline int64_t channels_of(const DepthwiseNorm& a) { return a.channels + a.skip_channels; }

// The planes of a block.
template <int part>
inline vec_f32 load_part(const float* p) {
  return load(p);
}
template <int part>
inline vec_f32 load_part(const bf16_t* p) {
  return load_deinterleaved<part>(p);
}
template <class In, int part, class T>
inline vec_f32 read_part(const T* pixel, int64_t C, int64_t block) {
  if constexpr (PARTS<In> == 2)
    return load_deinterleaved<part>(pixel + block * BLOCK<In>);
  else
    return load(pixel + block * LANES, lanes_of(C, block));
}
template <class In, class T>
inline void write_block(T* pixel, int64_t C, int64_t block, vec_f32 even, vec_f32 odd) {
  if constexpr (PARTS<In> == 2)
    store_interleaved(pixel + block * BLOCK<In>, even, odd);
  else
    store(pixel + block * LANES, even, lanes_of(C, block));
}

// (C, rows) -> (planes, rows, L), zeros in the lanes left over and for null; the last row first if flipped.
template <class In>
void to_planes(const float* from, float* to, int64_t rows, int64_t C, bool flipped = false) {
  for (int64_t plane = 0; plane < blocks_of<In>(C) * PARTS<In>; ++plane)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const int64_t c = channel_of<In>(plane, lane);
        *to++ = from && c < C ? from[c * rows + (flipped ? rows - 1 - r : r)] : 0.0f;
      }
}

// The rows of a batch of images: where they lie, or the latest of them, made when they are asked for.
template <class In>
class Rows {
 public:
  Rows(const In* data, int64_t W, int64_t pixel) : data_(data), W_(W), pixel_(pixel) {}
  Rows(Memory& memory, int64_t W, int64_t pixel) : data_(nullptr), W_(W), pixel_(pixel) {
    for (int k = 0; k < HELD; ++k) {
      made_[k] = reinterpret_cast<In*>(memory.take(W * pixel / PARTS<In>));
      claimed_ahead_[k] = -1;
    }
  }
  void drop_pool() {
    for (int k = 0; k < HELD; ++k) claimed_ahead_[k] = -1;
  }
  static int64_t floats(int64_t W, int64_t pixel) { return HELD * Memory::rounded(W * pixel / PARTS<In>); }
  int64_t pixel() const { return pixel_; }  // numbers from one to the next
  template <class Make>
  const In* row(int64_t r, Make&& make) {  // make(r, to)
    if (data_) return data_ + r * W_ * pixel_;
    const int slot = int(r % HELD);
    if (claimed_ahead_[slot] != r) make(r, made_[slot]);
    claimed_ahead_[slot] = r;
    return made_[slot];
  }

 private:
  const In* data_;
  int64_t W_, pixel_;
  In* made_[HELD];
  int64_t claimed_ahead_[HELD];
};

inline void fetch(const void* data, int64_t bytes) {  // to the cache: there are more streams than a core follows
  for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(static_cast<const char*>(data) + k);
}

// The rows y-3 .. y+ROWS+2 of an image, null outside of it, whose first block is number `first`.
template <class In>
struct Window {
  const In* rows[HELD];
  int64_t pixel, first;
  template <class Make>
  void move(Rows<In>& from, const DepthwiseNorm& a, int64_t b, int64_t y, Make&& make) {
    pixel = from.pixel();
    for (int i = 0; i < HELD; ++i) {
      const int64_t row = y + i - R;
      rows[i] = row < 0 || row >= a.height ? nullptr : from.row(b * a.height + row, make);
    }
  }
  int64_t at(int64_t x, int64_t block) const { return x * pixel + (block - first) * BLOCK<In>; }
  void ahead(int row, int64_t x) const {  // what the next tile is the first to read, and perhaps a bit more
    for (int i = row; i < row + ROWS; ++i)
      if (rows[i]) fetch(rows[i] + x * pixel, P * pixel * int64_t(sizeof(In)));
  }
};

// A row of x and, behind its channels, of skip, as fp32.
template <class T>
void copy_row(const T* x, int64_t C, const T* skip, int64_t skip_C, int64_t W, float* to) {
  const int64_t all = blocks_of<float>(C + skip_C) * LANES;
  for (int64_t p = 0; p < W; ++p, x += C, skip += skip_C, to += all) {
    store(to + all - LANES, vec_f32{});
    for (int64_t c = 0; c < C; c += LANES) store(to + c, load(x + c, lanes_of(C, c / LANES)));
    for (int64_t c = 0; c < skip_C; c += LANES) {
      const int n = lanes_of(skip_C, c / LANES);
      store(to + C + c, load(skip + c, n), n);
    }
  }
}

// Whether tensors of T can be read as In where they lie.
template <class T, class In>
bool in_place(int64_t channels, int64_t skip_channels) {
  return sizeof(T) == sizeof(In) && channels % BLOCK<In> == 0 && skip_channels % BLOCK<In> == 0;
}

// x and, behind its channels, skip: what lies where, and the rows around y.
template <class T, class In>
class Inputs {
 public:
  const bool whole;     // blocks are of x or of skip
  const int64_t split;  // the first block of skip
  Inputs(Memory& memory, const DepthwiseNorm& a)
      : whole(in_place<T, In>(a.channels, a.skip_channels)),
        split(whole ? a.channels / BLOCK<In> : blocks_of<In>(channels_of(a))),
        a_(a),
        x_(whole ? Rows<In>(static_cast<const In*>(a.x), a.width, a.channels)
                 : Rows<In>(memory, a.width, split * BLOCK<In>)),
        skip_(static_cast<const In*>(a.skip), a.width, a.skip_channels) {
    of_x_.first = 0;
    of_skip_.first = split;
  }
  static int64_t floats(const DepthwiseNorm& a) {
    const int64_t C = channels_of(a);
    return in_place<T, In>(a.channels, a.skip_channels) ? 0 : Rows<In>::floats(a.width, blocks_of<In>(C) * BLOCK<In>);
  }
  void move(int64_t b, int64_t y) {
    const auto copy = [&](int64_t row, In* to) {
      const int64_t first = row * a_.width;
      const T *x = static_cast<const T*>(a_.x), *skip = static_cast<const T*>(a_.skip);
      if constexpr (PARTS<In> == 1)
        copy_row(x + first * a_.channels, a_.channels, skip + first * a_.skip_channels, a_.skip_channels, a_.width, to);
    };
    of_x_.move(x_, a_, b, y, copy);
    if (whole && a_.skip) of_skip_.move(skip_, a_, b, y, copy);
  }
  const Window<In>& window(int64_t block) const { return block < split ? of_x_ : of_skip_; }
  void ahead(int row, int64_t x) const {
    of_x_.ahead(row, x);
    if (whole && a_.skip) of_skip_.ahead(row, x);
  }

 private:
  const DepthwiseNorm& a_;
  Rows<In> x_, skip_;
  Window<In> of_x_, of_skip_;
};

// One row of inputs times the taps of the upper and of the lower row of pixels.
template <class In, int part, bool upper, bool lower, bool inner>
inline __attribute__((always_inline)) void convolve_row(const In* in, int64_t stride, int first, int last,
                                                        const float* taps, vec_f32* a) {
  vec_f32 u[K], v[K];
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    if (upper) u[j] = load(taps + j * LANES);
    if (lower) v[j] = load(taps + (j - K) * LANES);
  }
#pragma GCC unroll 16
  for (int q = 0; q < P + K - 1; ++q) {
    if (!inner && (q < first || q >= last)) continue;
    const vec_f32 value = load_part<part>(in + q * stride);
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
void convolve_tile(const In* const* in, int64_t at, int64_t stride, int first, int last, const float* weight,
                   vec_f32 start, float* out) {
  vec_f32 a[rows * P];
#pragma GCC unroll 16
  for (int p = 0; p < rows * P; ++p) a[p] = start;
  if (in[0]) convolve_row<In, part, true, false, inner>(in[0] + at, stride, first, last, weight, a);
  for (int i = 1; i < K; ++i)
    if (in[i])
      convolve_row<In, part, true, rows == 2, inner>(in[i] + at, stride, first, last, weight + i * K * LANES, a);
  if (rows == 2 && in[K])
    convolve_row<In, part, false, true, inner>(in[K] + at, stride, first, last, weight + K * K * LANES, a);
#pragma GCC unroll 16
  for (int p = 0; p < rows * P; ++p) store(out + p * LANES, a[p]);
}

// One row of gradients times the pixels of the upper and of the lower row: adds to their taps.
template <class In, int part, bool upper, bool lower, bool inner>
inline __attribute__((always_inline)) void correlate_row(const In* grad, int64_t stride, int first, int last,
                                                         float* taps, const vec_f32* x) {
  vec_f32 u[K], v[K];
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    if (upper) u[j] = load(taps + j * LANES);
    if (lower) v[j] = load(taps + (j - K) * LANES);
  }
#pragma GCC unroll 16
  for (int q = 0; q < P + K - 1; ++q) {
    if (!inner && (q < first || q >= last)) continue;
    const vec_f32 value = load_part<part>(grad + q * stride);
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j)
      if (q - j >= 0 && q - j < P) {
        if (upper) u[j] += value * x[q - j];
        if (lower) v[j] += value * x[P + q - j];
      }
  }
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    if (upper) store(taps + j * LANES, u[j]);
    if (lower) store(taps + (j - K) * LANES, v[j]);
  }
}

// taps (49, L), flipped, += correlation of a tile of x, (rows, P) pixels of which `count` columns lie in the image,
// with gradients.
template <class In, int part, int rows, bool inner>
void correlate_tile(const In* const* grad, int64_t at, int64_t stride, int first, int last, const In* const* x,
                    int64_t x_at, int64_t x_stride, int count, float* taps) {
  vec_f32 v[rows * P];
#pragma GCC unroll 16
  for (int p = 0; p < rows * P; ++p)
    v[p] = inner || p % P < count ? load_part<part>(x[p / P] + x_at + p % P * x_stride) : vec_f32{};
  if (grad[0]) correlate_row<In, part, true, false, inner>(grad[0] + at, stride, first, last, taps, v);
  for (int i = 1; i < K; ++i)
    if (grad[i])
      correlate_row<In, part, true, rows == 2, inner>(grad[i] + at, stride, first, last, taps + i * K * LANES, v);
  if (rows == 2 && grad[K])
    correlate_row<In, part, false, true, inner>(grad[K] + at, stride, first, last, taps + K * K * LANES, v);
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

template <class In, int part, int rows>
void convolve_rows(const Window<In>& in, const Tile& t, int64_t block, const float* weight, vec_f32 start, float* out) {
  (t.inner ? convolve_tile<In, part, rows, true> : convolve_tile<In, part, rows, false>)(in.rows, in.at(t.x - R, block),
                                                                                         in.pixel, t.first, t.last,
                                                                                         weight, start, out);
}
template <class In, int part>
void convolve_part(const Window<In>& in, const Tile& t, int64_t block, const float* weight, vec_f32 start, float* out) {
  (t.rows == ROWS ? convolve_rows<In, part, ROWS> : convolve_rows<In, part, 1>)(in, t, block, weight, start, out);
}
// A block: out (PARTS, TILE, L) = start (PARTS, L) + convolution with weight (PARTS, 49, L).
template <class In>
void convolve(const Window<In>& in, const Tile& t, int64_t block, const float* weight, const float* start, float* out) {
  convolve_part<In, 0>(in, t, block, weight, load(start), out);
  if constexpr (PARTS<In> == 2)
    convolve_part<In, 1>(in, t, block, weight + K * K * LANES, load(start + LANES), out + TILE * LANES);
}

template <class In, int part, int rows>
void correlate_rows(const Window<In>& grad, const Window<In>& x, const Tile& t, int64_t block, float* taps) {
  (t.inner ? correlate_tile<In, part, rows, true>
           : correlate_tile<In, part, rows, false>)(grad.rows, grad.at(t.x - R, block), grad.pixel, t.first, t.last,
                                                    x.rows + R, x.at(t.x, block), x.pixel, t.columns, taps);
}
template <class In, int part>
void correlate_part(const Window<In>& grad, const Window<In>& x, const Tile& t, int64_t block, float* taps) {
  (t.rows == ROWS ? correlate_rows<In, part, ROWS> : correlate_rows<In, part, 1>)(grad, x, t, block, taps);
}
// A block: adds to taps (PARTS, 49, L), flipped.
template <class In>
void correlate(const Window<In>& grad, const Window<In>& x, const Tile& t, int64_t block, float* taps) {
  correlate_part<In, 0>(grad, x, t, block, taps);
  if constexpr (PARTS<In> == 2) correlate_part<In, 1>(grad, x, t, block, taps + K * K * LANES);
}

// Calls `strip(b, y, rows)` for every ROWS rows of a band, fewer at the end of an image.
template <class Strip>
void each_strip(const DepthwiseNorm& a, int64_t band, Strip&& strip) {
  const int64_t high = (a.height + ROWS - 1) / ROWS, all = a.batch * high;
  for (int64_t r = all * band / BANDS; r < all * (band + 1) / BANDS; ++r) {
    const int64_t y = r % high * ROWS;
    strip(r / high, y, a.height - y < ROWS ? 1 : ROWS);
  }
}
struct Place {  // of a row: its band, and whether it is the first there
  int64_t band;
  bool first;
  Place(const DepthwiseNorm& a, int64_t row) {
    const int64_t high = (a.height + ROWS - 1) / ROWS, all = a.batch * high, y = row % a.height;
    const int64_t r = row / a.height * high + y / ROWS;
    band = ((r + 1) * BANDS - 1) / all;
    first = r == all * band / BANDS && y % ROWS == 0;
  }
};

// A tile of the norm's input, u (planes, TILE, L), to the tensors; without a norm it is the output.
template <class T, class In, bool normed, bool kept>
void write_tile(const DepthwiseNormForward& a, int64_t first, const Tile& t, const float* u, const float* mean,
                const float* rstd, const float* gain, const float* offset) {
  const int64_t W = a.width, C = channels_of(a), blocks = blocks_of<In>(C);
  constexpr int64_t other = (PARTS<In> - 1) * TILE * LANES, next = (PARTS<In> - 1) * LANES;
  const int rows = t.rows, columns = t.columns;
  for (int64_t block = 0; block < blocks;
       ++block, u += PARTS<In> * TILE * LANES, gain += BLOCK<In>, offset += BLOCK<In>) {
    const vec_f32 scale[] = {load(gain), load(gain + next)}, start[] = {load(offset), load(offset + next)};
    for (int r = 0; r < rows; ++r) {
      T *out = static_cast<T*>(a.out) + (first + r * W) * C,
        *keep = static_cast<T*>(a.norm_input) + (first + r * W) * C;
      for (int p = r * P; p < r * P + columns; ++p, out += C, keep += C) {
        vec_f32 even = load(u + p * LANES), odd = load(u + other + p * LANES);
        if (kept) write_block<In>(keep, C, block, even, odd);
        if (normed) {
          even = (even - mean[p]) * rstd[p] * scale[0] + start[0];
          odd = (odd - mean[p]) * rstd[p] * scale[1] + start[1];
        }
        write_block<In>(out, C, block, even, odd);
      }
    }
  }
}

// The norm of a tile. `last` is 1 in the lanes of the last plane that are channels.
template <class T, class In>
void norm(const DepthwiseNormForward& a, int64_t first, const Tile& t, const float* u, const float* gain,
          const float* offset, vec_f32 last) {
  const int64_t C = channels_of(a), planes = blocks_of<In>(C) * PARTS<In>;
  const float inverse_count = 1.0f / float(C);
  float mean[TILE], rstd[TILE];
  vec_f32 totals[TILE]{}, squares[TILE]{};
  for (int64_t plane = 0; plane < planes; ++plane)
#pragma GCC unroll 16
    for (int p = 0; p < TILE; ++p) totals[p] += load(u + (plane * TILE + p) * LANES);
#pragma GCC unroll 16
  for (int p = 0; p < TILE; ++p) mean[p] = reduce_add(totals[p]) * inverse_count;
  for (int64_t plane = 0; plane < planes; ++plane) {
    const vec_f32 real = plane == planes - 1 ? last : vec_f32{} + 1;
#pragma GCC unroll 16
    for (int p = 0; p < TILE; ++p) {
      const vec_f32 d = (load(u + (plane * TILE + p) * LANES) - mean[p]) * real;
      squares[p] += d * d;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < TILE; ++p) rstd[p] = reduce_add(squares[p]) * inverse_count + a.eps;
  for (int p = 0; p < TILE; p += LANES) store(rstd + p, 1.0f / sqrt(load(rstd + p)));
  for (int r = 0; r < t.rows && a.norm_input; ++r)
    for (int p = 0; p < t.columns; ++p) {
      a.mean[first + r * a.width + p] = mean[r * P + p];
      a.rstd[first + r * a.width + p] = rstd[r * P + p];
    }
  (a.norm_input ? write_tile<T, In, true, true> : write_tile<T, In, true, false>)(a, first, t, u, mean, rstd, gain,
                                                                                  offset);
}

template <class T, class In>
void forward_of(const DepthwiseNormForward& a) {
  const int64_t W = a.width, C = channels_of(a), blocks = blocks_of<In>(C), planes = blocks * PARTS<In>;
  const int64_t Cp = planes * LANES;
  const int64_t per_thread = Inputs<T, In>::floats(a) + Memory::rounded(planes * TILE * LANES);
  Memory memory{caller_scratch((K * K + 3 + a.batch) * Cp + 5 * 16)};
  float *weight = memory.take(K * K * Cp), *start = memory.take(a.batch * Cp), *bias = memory.take(Cp),
        *gain = memory.take(Cp), *offset = memory.take(Cp);
  to_planes<In>(a.weight, weight, K * K, C);
  to_planes<In>(a.bias, bias, 1, C);
  for (int64_t b = 0; b < a.batch; ++b) {
    to_planes<In>(a.shift ? a.shift + b * a.shift_stride : nullptr, start + b * Cp, 1, C);
    for (int64_t c = 0; c < Cp; ++c) start[b * Cp + c] += bias[c];
  }
  to_planes<In>(a.gain, gain, 1, C);
  to_planes<In>(a.offset, offset, 1, C);
  float ones[LANES];
  for (int i = 0; i < LANES; ++i) ones[i] = 1;
  const vec_f32 last = load(ones, PARTS<In> == 1 && C ? lanes_of(C, planes - 1) : LANES);

  parallel_chunks(BANDS, [&](Chunks& bands) {
    Memory mine{thread_scratch(per_thread)};
    Inputs<T, In> inputs(mine, a);
    float* u = mine.take(planes * TILE * LANES);
    const auto strip = [&](int64_t b, int64_t y, int rows) {
      inputs.move(b, y);
      for (int64_t x = 0; x < W; x += P) {
        const Tile t(x, W, rows);
        const int64_t first = (b * a.height + y) * W + x;
        inputs.ahead(K - 1, x + P + R);
        for (int r = 0; r < rows; ++r) {
          const int64_t at = (first + r * W) * C, bytes = t.columns * C * int64_t(sizeof(T));
          fetch(static_cast<T*>(a.out) + at, bytes);
          if (a.norm_input) fetch(static_cast<T*>(a.norm_input) + at, bytes);
        }
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t plane = block * PARTS<In>;
          convolve(inputs.window(block), t, block, weight + plane * K * K * LANES, start + b * Cp + plane * LANES,
                   u + plane * TILE * LANES);
        }
        if (a.gain)
          norm<T, In>(a, first, t, u, gain, offset, last);
        else
          write_tile<T, In, false, false>(a, first, t, u, nullptr, nullptr, gain, offset);
      }
    };
    for (int64_t band; bands.next(band);) each_strip(a, band, strip);
  });
}

// Sums over the pixels of one band: (Cp) each; (B, Cp).
struct Sums {
  float *gain, *offset, *shift;
  Sums(float* memory, int64_t Cp) : gain(memory), offset(gain + Cp), shift(offset + Cp) {}
  static int64_t floats(int64_t Cp, int64_t batch) { return (2 + batch) * Cp; }
};

// Backward through the norm, in one plane.
struct Plane {
  vec_f32 gain, grad_gain, grad_offset, grad_shift;
  vec_f32 back(vec_f32 grad, vec_f32 u, float mean, float rstd, float mean_grad, float parallel) {
    const vec_f32 normed = (u - mean) * rstd, result = (grad * gain - mean_grad - normed * parallel) * rstd;
    grad_gain += grad * normed;
    grad_offset += grad;
    grad_shift += result;
    return result;
  }
};

// Backward through the norm for one row: out (W, Cp) = the gradient at the convolution's output.
template <class T, class In>
void norm_backward(const DepthwiseNormBackward& a, int64_t row, const float* gain, In* out, const Sums& sums) {
  const int64_t C = channels_of(a), blocks = blocks_of<In>(C), Cp = blocks * BLOCK<In>;
  const float inverse_count = 1.0f / float(C);
  float* shift = sums.shift + row / a.height * Cp;
  for (int64_t x = 0; x < a.width; x += TILE, out += TILE * Cp) {
    const int64_t first = row * a.width + x;
    const int count = a.width - x < TILE ? int(a.width - x) : TILE;
    const T *grad = static_cast<const T*>(a.grad_out) + first * C, *u = static_cast<const T*>(a.norm_input) + first * C;
    const float *mean = a.mean + first, *rstd = a.rstd + first;
    float means[TILE], parallels[TILE];
    for (int p = 0; p < count; ++p) {
      vec_f32 s1{}, s2{};
      const auto add = [&](vec_f32 g, vec_f32 v) {
        s1 += g;
        s2 += g * (v - mean[p]);
      };
      for (int64_t block = 0; block < blocks; ++block) {
        const float* scale = gain + block * BLOCK<In>;  // 0 in lanes left over
        add(read_part<In, 0>(grad + p * C, C, block) * load(scale), read_part<In, 0>(u + p * C, C, block));
        if constexpr (PARTS<In> == 2)
          add(read_part<In, 1>(grad + p * C, C, block) * load(scale + LANES), read_part<In, 1>(u + p * C, C, block));
      }
      means[p] = reduce_add(s1) * inverse_count;
      parallels[p] = reduce_add(s2) * rstd[p] * inverse_count;
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t c = block * BLOCK<In>, d = c + (PARTS<In> - 1) * LANES;
      Plane even{load(gain + c), load(sums.gain + c), load(sums.offset + c), load(shift + c)};
      Plane odd{load(gain + d), load(sums.gain + d), load(sums.offset + d), load(shift + d)};
      for (int p = 0; p < count; ++p) {
        const auto back = [&](Plane& plane, vec_f32 g, vec_f32 v) {
          return plane.back(g, v, mean[p], rstd[p], means[p], parallels[p]);
        };
        const T *g = grad + p * C, *v = u + p * C;
        const vec_f32 e = back(even, read_part<In, 0>(g, C, block), read_part<In, 0>(v, C, block));
        if constexpr (PARTS<In> == 2)
          store_interleaved(out + p * Cp + c, e,
                            back(odd, read_part<In, 1>(g, C, block), read_part<In, 1>(v, C, block)));
        else
          store(out + p * Cp + c, e);
      }
      const auto keep = [&](const Plane& plane, int64_t at) {
        store(sums.gain + at, plane.grad_gain);
        store(sums.offset + at, plane.grad_offset);
        store(shift + at, plane.grad_shift);
      };
      keep(even, c);
      if constexpr (PARTS<In> == 2) keep(odd, d);
    }
  }
}

// sums (Cp) += one row.
template <class In>
void add_row(const In* row, int64_t pixel, int64_t W, int64_t blocks, float* sums) {
  for (int64_t block = 0; block < blocks; ++block, sums += BLOCK<In>) {
    constexpr int64_t other = (PARTS<In> - 1) * LANES;
    vec_f32 even = load(sums), odd = load(sums + other);
    for (int64_t x = 0; x < W; ++x) {
      even += load_part<0>(row + x * pixel + block * BLOCK<In>);
      odd += load_part<PARTS<In> - 1>(row + x * pixel + block * BLOCK<In>);
    }
    store(sums + other, odd);
    store(sums, even);
  }
}

// A block of a tile, v (PARTS, TILE, L), to the gradient of x, of skip, or of both.
template <class T, class In>
void write_gradient(const DepthwiseNormBackward& a, const Inputs<T, In>& inputs, const Tile& t, int64_t first,
                    int64_t block, const float* v) {
  const int64_t C = a.channels, skip_C = a.skip_channels;
  T *x = static_cast<T*>(a.grad_x) + first * C, *skip = static_cast<T*>(a.grad_skip) + first * skip_C;
  const int rows = t.rows, columns = t.columns;
  if (inputs.whole) {
    constexpr int64_t other = (PARTS<In> - 1) * TILE * LANES;
    const int64_t pixel = block < inputs.split ? C : skip_C;
    T* to = block < inputs.split ? x + block * BLOCK<In> : skip + (block - inputs.split) * BLOCK<In>;
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < columns; ++p) {
        const float* from = v + (r * P + p) * LANES;
        write_block<In>(to + (r * a.width + p) * pixel, BLOCK<In>, 0, load(from), load(from + other));
      }
    return;
  }
  const int64_t c = block * LANES;
  const int n = lanes_of(C + skip_C, block), of_x = C < c ? 0 : C - c < n ? int(C - c) : n;
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < columns; ++p) {
      const int64_t pixel = r * a.width + p;
      float lanes[2 * LANES]{};
      store(lanes, load(v + (r * P + p) * LANES));
      if (of_x) store(x + pixel * C + c, load(lanes), of_x);
      if (of_x < n) store(skip + pixel * skip_C + c + of_x - C, load(lanes + of_x), n - of_x);
    }
}

template <class T, class In>
void backward_of(const DepthwiseNormBackward& a) {
  const int64_t W = a.width, C = channels_of(a), blocks = blocks_of<In>(C), planes = blocks * PARTS<In>;
  const int64_t Cp = planes * LANES;
  const int64_t of_sums = Sums::floats(Cp, a.batch), per_band = K * K * Cp + of_sums;  // taps (planes, 49, L), flipped
  const bool as_given = !a.gain && in_place<T, In>(C, 0);  // the gradient at the convolution's output is grad_out
  const int64_t per_thread =
      Inputs<T, In>::floats(a) + (as_given ? 0 : Rows<In>::floats(W, Cp)) + Memory::rounded(BANDS * of_sums);
  Memory memory{caller_scratch((K * K + 2) * Cp + BANDS * per_band + 4 * 16)};
  float *flipped = memory.take(K * K * Cp), *gain = memory.take(Cp), *zero = memory.take(Cp),
        *partial = memory.take(BANDS * per_band);
  to_planes<In>(a.weight, flipped, K * K, C, true);
  to_planes<In>(a.gain, gain, 1, C);
  to_planes<In>(nullptr, zero, 1, C);

  parallel_chunks(BANDS, [&](Chunks& bands) {
    Memory mine{thread_scratch(per_thread)};
    float* sums = mine.take(BANDS * of_sums);
    memset(sums, 0, BANDS * of_sums * sizeof(float));
    Inputs<T, In> inputs(mine, a);
    Rows<In> grads = as_given ? Rows<In>(static_cast<const In*>(a.grad_out), W, C) : Rows<In>(mine, W, Cp);
    Window<In> grad;
    grad.first = 0;
    const auto make = [&](int64_t row, In* to) {
      if (!a.gain) {
        const T* from = static_cast<const T*>(a.grad_out) + row * W * C;
        if constexpr (PARTS<In> == 1) copy_row<T>(from, C, nullptr, 0, W, to);
        return;
      }
      // Rows around a band are made, too: those behind it are the first of the next, if this thread claims that.
      const Place place(a, row);
      float* of_band = sums + place.band * of_sums;
      if (place.first) memset(of_band, 0, of_sums * sizeof(float));
      norm_backward<T, In>(a, row, gain, to, Sums(of_band, Cp));
    };
    float *taps = nullptr, *of_band = nullptr;  // of the band that is worked on
    const auto strip = [&](int64_t b, int64_t y, int rows) {
      inputs.move(b, y);
      grad.move(grads, a, b, y, make);
      float* shift = Sums(of_band, Cp).shift + b * Cp;
      for (int r = 0; r < rows && !a.gain; ++r) add_row(grad.rows[R + r], grad.pixel, W, blocks, shift);
      for (int64_t x = 0; x < W; x += P) {
        const Tile t(x, W, rows);
        const int64_t first = (b * a.height + y) * W + x;
        inputs.ahead(R, x + P);
        if (as_given) grad.ahead(K - 1, x + P + R);
        for (int r = 0; r < rows && a.grad_x; ++r) {
          fetch(static_cast<T*>(a.grad_x) + (first + r * W) * a.channels, t.columns * a.channels * int64_t(sizeof(T)));
          if (a.grad_skip)
            fetch(static_cast<T*>(a.grad_skip) + (first + r * W) * a.skip_channels,
                  t.columns * a.skip_channels * int64_t(sizeof(T)));
        }
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t plane = block * PARTS<In> * K * K * LANES;
          if (a.grad_weight) correlate(grad, inputs.window(block), t, block, taps + plane);
          if (!a.grad_x) continue;
          alignas(64) float out[PARTS<In> * TILE * LANES];
          convolve(grad, t, block, flipped + plane, zero, out);
          write_gradient(a, inputs, t, first, block, out);
        }
      }
    };
    for (int64_t band, last = -1; bands.next(band); last = band) {
      if (band != last + 1 && !as_given) grads.drop_pool();
      taps = partial + band * per_band, of_band = sums + band * of_sums;
      memset(taps, 0, K * K * Cp * sizeof(float));
      each_strip(a, band, strip);
      memcpy(taps + K * K * Cp, of_band, of_sums * sizeof(float));
    }
  });

  // Bands are added in order.
  parallel_for(planes, 1, [&](int64_t plane) {
    const auto total = [&](int64_t at) {
      vec_f32 all{};
      for (int64_t band = 0; band < BANDS; ++band) all += load(partial + band * per_band + at);
      return all;
    };
    const auto write = [&](float* to, int64_t step, vec_f32 value) {  // to (C), `step` numbers from one to the next
      float lanes[LANES];
      store(lanes, value);
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const int64_t c = channel_of<In>(plane, lane);
        if (c < C) to[c * step] = lanes[lane];
      }
    };
    for (int t = 0; a.grad_weight && t < K * K; ++t)
      write(a.grad_weight + K * K - 1 - t, K * K, total((plane * K * K + t) * LANES));
    const int64_t after = K * K * Cp + plane * LANES;
    if (a.grad_gain) write(a.grad_gain, 1, total(after));
    if (a.grad_offset) write(a.grad_offset, 1, total(after + Cp));
    vec_f32 bias{};
    for (int64_t b = 0; b < a.batch; ++b) {
      const vec_f32 shift = total(after + (2 + b) * Cp);
      bias += shift;
      if (a.grad_shift) write(a.grad_shift + b * a.grad_shift_stride, 1, shift);
    }
    if (a.grad_bias) write(a.grad_bias, 1, bias);
  });
}

}  // namespace

void forward(const DepthwiseNormForward& a) {
  if (!a.bf16) return forward_of<float, float>(a);
  const bool whole = in_place<bf16_t, bf16_t>(a.channels, a.skip_channels);
  whole ? forward_of<bf16_t, bf16_t>(a) : forward_of<bf16_t, float>(a);
}
void backward(const DepthwiseNormBackward& a) {
  if (!a.bf16) return backward_of<float, float>(a);
  const bool whole = in_place<bf16_t, bf16_t>(a.channels, a.skip_channels);
  whole ? backward_of<bf16_t, bf16_t>(a) : backward_of<bf16_t, float>(a);
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
