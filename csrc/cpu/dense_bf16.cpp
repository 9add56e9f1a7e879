// Dense convolutions of bf16 activations on machines with products of bf16: AMX tiles, or the lanes of AVX512-BF16.
// Products are of bf16 numbers, the weights to_bf16 to bf16; sums are fp32.
//
// An image is a sequence of positions: row after row of `pitch` = width + pad, where the pad, one zero pixel, stands
// before a row and so also after the row above. A tap of the kernel is then an offset in positions, wherever a block of
// positions begins, and a block may run across the ends of rows: what is computed at pads is thrown away.
//
// Forward and for the gradient of the input, positions pass through a ring of memory that stays in cache, channels
// padded to whole lines of 32. A block of positions times 32 outputs is summed over all taps and channels in registers.
// AMX works beside the vector units: while it multiplies one block, they write what the last one made (bias, GELU,
// residual) and fill the ring for the next, piece by piece between the products (`meanwhile`).
//
// For the gradient of the weight, strips of rows are laid out as (channels, positions) and the gradients in pairs of
// positions, so that positions are what a product sums over. Bands of strips are fixed by the shape and their sums are
// added in order, so results do not depend on threads.
//
// The C++ library stays out of this file: see depthwise_norm.cpp.
#include <immintrin.h>
#include <string.h>

#include "../common/bf16.h"
#include "dense.h"
#include "scratch.h"
#include "threads.h"

#define INLINE inline __attribute__((always_inline))

namespace sinfusion {
namespace {

constexpr int64_t LINE = 32;  // bf16 numbers in a line of 64 bytes
constexpr int64_t TILE = 16;  // lines of a tile; numbers of fp32 in a line
constexpr int64_t TILE_ELEMENTS = TILE * LINE;
constexpr int64_t BANDS = 4;          // of a weight gradient
constexpr int64_t BAND = 512;         // positions, at most, of a band of rows that a thread convolves at once
constexpr int64_t LEAST_BANDS = 8;    // of a batch
constexpr int64_t PACKED = 64;        // tiles of weights that a thread packs at once
constexpr int64_t AHEAD = 32;         // pixels from what is read or written to what is fetched for later
constexpr int64_t NEAR = 40 << 10;    // bytes that stay in the first cache
constexpr int64_t STRIP = 640 << 10;  // bytes of a strip of rows, which stays in the second
constexpr int64_t RUN = 6;            // lines of positions that a weight gradient sums for one tap, then for the next

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }
INLINE __mmask32 first_halves(int64_t n) { return _bzhi_u32(~0u, unsigned(most(0, least(n, LINE)))); }
INLINE __mmask16 first_floats(int64_t n) { return __mmask16(_bzhi_u32(0xffff, unsigned(most(0, least(n, TILE))))); }

// What a compiler writes before stays before; the intrinsics of AMX do not say that they read memory.
INLINE void written() { asm volatile("" ::: "memory"); }

// Hands out parts of one block, or counts them where there is none yet.
struct Memory {
  char* block;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(block + used);
    used += parts(count * int64_t(sizeof(T)), 64) * 64;
    return part;
  }
};

// --- GELU ---

// A function of |z| on 0 .. 31 / SCALE as cubics, each of which holds for a unit of SCALE |z| around a whole number.
struct Cubics {
  static constexpr float SCALE = 5.5f;
  alignas(64) float coefficients[4][32];  // the highest power first; the last function is 0

  explicit Cubics(double (*function)(double)) {
    memset(coefficients, 0, sizeof coefficients);
    constexpr double x[4] = {-0.46193977, -0.19134172, 0.19134172, 0.46193977};  // Chebyshev's
    for (int n = 0; n < 31; ++n) {
      double d[4];  // divided differences
      for (int i = 0; i < 4; ++i) d[i] = function((n + x[i]) / SCALE);
      for (int order = 1; order < 4; ++order)
        for (int i = 3; i >= order; --i) d[i] = (d[i] - d[i - 1]) / (x[i] - x[i - order]);
      double c[4] = {d[3], 0, 0, 0};  // Newton's form, multiplied out
      for (int i = 2, degree = 0; i >= 0; --i) {
        ++degree;
        for (int k = degree; k > 0; --k) c[k] = c[k] - x[i] * c[k - 1];
        c[degree] += d[i];
      }
      for (int i = 0; i < 4; ++i) coefficients[i][n] = float(c[i]);
    }
  }
};

double mass_above(double z) { return 0.5 * __builtin_erfc(z * 0.70710678118654752); }  // of the normal distribution
double gelu_gradient_below(double z) {                                                 // at -z
  return mass_above(z) - z * __builtin_exp(-0.5 * z * z) * 0.39894228040143268;
}

enum class Function { none, gelu, gelu_gradient };

const Cubics& cubics(Function f) {
  static const Cubics mass{mass_above}, gradient{gelu_gradient_below};
  return f == Function::gelu_gradient ? gradient : mass;
}

// A function with what it needs in registers.
template <Function F>
class Evaluator {
 public:
  Evaluator() {
    for (int i = 0; i < 4; ++i) {
      low_[i] = _mm512_load_ps(cubics(F).coefficients[i]);
      high_[i] = _mm512_load_ps(cubics(F).coefficients[i] + 16);
    }
  }
  INLINE __m512 operator()(__m512 z) const {
    const __m512 magnitude = _mm512_min_ps(_mm512_set1_ps(31 / Cubics::SCALE), _mm512_abs_ps(z));  // NaN stays
    const __m512 whole_bits = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: the sum's last bits are the whole number
    const __m512 u = magnitude * _mm512_set1_ps(Cubics::SCALE), shifted = u + whole_bits;
    const __m512 f = u - (shifted - whole_bits);
    const auto coefficient = [&](int i) {
      return _mm512_permutex2var_ps(low_[i], _mm512_castps_si512(shifted), high_[i]);
    };
    __m512 v = coefficient(0);
    for (int i = 1; i < 4; ++i) v = _mm512_fmadd_ps(v, f, coefficient(i));
    if (F == Function::gelu) return _mm512_fnmadd_ps(magnitude, v, _mm512_max_ps(_mm512_setzero_ps(), z));
    const __mmask16 above = ~_mm512_movepi32_mask(_mm512_castps_si512(z));
    return _mm512_mask_sub_ps(v, above, _mm512_set1_ps(1), v);
  }

 private:
  __m512 low_[4], high_[4];
};
template <>
class Evaluator<Function::none> {};

// --- lines of bf16 ---

struct Pair {
  __m512 low, high;
};
INLINE Pair to_fp32(__m512i line) {  // 32 numbers in their order
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(line)), 16)),
          _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(line, 1)), 16))};
}
INLINE __m512i to_bf16(Pair v) { return (__m512i)_mm512_cvtne2ps_pbh(v.high, v.low); }

// a0 b0 a1 b1 .. a15 b15, and a16 b16 .. a31 b31.
struct Lines {
  __m512i low, high;
};
INLINE Lines interleaved(__m512i a, __m512i b) {
  const __v16si low = __v16si{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x10001 + 0x200000;
  return {_mm512_permutex2var_epi16(a, (__m512i)low, b), _mm512_permutex2var_epi16(a, (__m512i)(low + 0x100010), b)};
}

// 16 lines of 16 numbers of 32 bits; take(row, line) gets the lines of the transpose.
template <class Take>
INLINE void transpose(const void* from, Take&& take) {
  const char* block = static_cast<const char*>(from);
#pragma GCC unroll 4
  for (int column = 0; column < 4; ++column) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m128i* at = reinterpret_cast<const __m128i*>(block + i * 64 + column * 16);
      v[i] = _mm512_castsi128_si512(_mm_load_si128(at));
      v[i] = _mm512_inserti32x4(v[i], _mm_load_si128(at + 16), 1);
      v[i] = _mm512_inserti32x4(v[i], _mm_load_si128(at + 32), 2);
      v[i] = _mm512_inserti32x4(v[i], _mm_load_si128(at + 48), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    take(4 * column, _mm512_unpacklo_epi64(a, c));
    take(4 * column + 1, _mm512_unpackhi_epi64(a, c));
    take(4 * column + 2, _mm512_unpacklo_epi64(b, d));
    take(4 * column + 3, _mm512_unpackhi_epi64(b, d));
  }
}

// --- pixels ---

struct Grid {
  int64_t height, width, kernel, pad, pitch;
  explicit Grid(const Dense& a)
      : height(a.height), width(a.width), kernel(a.kernel_size), pad(a.kernel_size / 2), pitch(a.width + pad) {}
  int64_t taps() const { return kernel * kernel; }
  int64_t reach() const { return (kernel - 1) * (pitch + 1); }  // the offset of the last tap
};

// What a convolution reads: pixels of one tensor or of two, whose channels follow each other; or, with z, a gradient
// that is multiplied with GELU'(z), and then also written.
struct Source {
  const bf16_t *first, *second;
  int64_t channels, second_channels;
  const bf16_t* z;
  bf16_t* product;

  int64_t lines() const { return parts(channels + second_channels, LINE); }
  struct Line {
    int64_t first, second;  // where it begins in a pixel of either
    __mmask32 of_first, of_second;
  };
  Line line(int64_t n) const {
    const int64_t begin = n * LINE, left = channels - begin;  // of the first
    const __mmask32 of_first = first_halves(left);
    return {of_first ? begin : 0, -left, of_first, first_halves(left + second_channels) & ~of_first};
  }
  INLINE __m512i read(int64_t pixel, const Line& line) const {
    const bf16_t* from = first + pixel * channels + line.first;
    __builtin_prefetch(from + AHEAD * channels);
    __m512i v = _mm512_maskz_loadu_epi16(line.of_first, from);
    if (line.of_second) {
      from = second + pixel * second_channels + line.second;
      __builtin_prefetch(from + AHEAD * second_channels);
      v |= _mm512_maskz_loadu_epi16(line.of_second, from);
    }
    return v;
  }
  INLINE __m512i multiplied(int64_t pixel, const Line& line, const Evaluator<Function::gelu_gradient>& gradient,
                            bool write) const {
    const int64_t at = pixel * channels + line.first, ahead = at + AHEAD * channels;
    __builtin_prefetch(first + ahead);
    __builtin_prefetch(z + ahead);
    const Pair grad = to_fp32(_mm512_maskz_loadu_epi16(line.of_first, first + at));
    const Pair value = to_fp32(_mm512_maskz_loadu_epi16(line.of_first, z + at));
    const __m512i v = to_bf16({grad.low * gradient(value.low), grad.high * gradient(value.high)});
    if (write) {
      __builtin_prefetch(product + ahead, 1);
      _mm512_mask_storeu_epi16(product + at, line.of_first, v);
    }
    return v;
  }
};

// --- products ---

// A kernel has
// BLOCK: the positions of a product;
// product: c (BLOCK, 32) = the sum over taps and lines of a (positions, lines, 32), at the taps' offsets, times b
//   (taps, lines, 2 tiles of 16 pairs of inputs x 16 outputs x 2); calls meanwhile() after each step, or never;
// accumulate: c (2, 2, 16, 16) += a (32 channels, `row` positions) times b0 and b1 (pairs of positions, 16 outputs, 2),
//   over `count` lines of positions.

struct alignas(64) TileConfiguration {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];  // of a row
  uint8_t rows[16];
};
constexpr TileConfiguration TILES{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

struct Tiles {
  static constexpr int64_t BLOCK = 2 * TILE;
  Tiles() { _tile_loadconfig(&TILES); }
  ~Tiles() { _tile_release(); }

  template <class Meanwhile>
  static INLINE void product(const bf16_t* a, int64_t depth, const int64_t* offsets, int64_t taps, int64_t lines,
                             const bf16_t* b, float* c, Meanwhile&& meanwhile) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const bf16_t* at = a + offsets[tap] * depth;
      for (int64_t line = 0; line < lines; ++line, at += LINE, b += 2 * TILE_ELEMENTS) {
        _tile_loadd(4, at, depth * 2);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE_ELEMENTS, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, at + TILE * depth, depth * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        meanwhile();
      }
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + TILE, 128);
    _tile_stored(2, c + TILE * LINE, 128);
    _tile_stored(3, c + TILE * LINE + TILE, 128);
  }
  static INLINE void accumulate(const bf16_t* a, int64_t row, const bf16_t* b0, const bf16_t* b1, int64_t count,
                                float* c) {
    _tile_loadd(0, c, 64);
    _tile_loadd(1, c + 256, 64);
    _tile_loadd(2, c + 512, 64);
    _tile_loadd(3, c + 768, 64);
    for (int64_t n = 0; n < count; ++n, a += LINE, b0 += TILE_ELEMENTS, b1 += TILE_ELEMENTS) {
      _tile_loadd(4, a, row * 2);
      _tile_loadd(6, b0, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b1, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + TILE * row, row * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 64);
    _tile_stored(1, c + 256, 64);
    _tile_stored(2, c + 512, 64);
    _tile_stored(3, c + 768, 64);
  }
};

struct Lanes {
  static constexpr int64_t ROWS = 14, BLOCK = 2 * ROWS;  // ROWS x 2 sums, two of b and one of a: 31 registers
  Lanes() {}

  static INLINE __m512bh pair(const bf16_t* p) {  // of numbers, in every lane
    int32_t bits;
    memcpy(&bits, p, 4);
    return (__m512bh)_mm512_set1_epi32(bits);
  }
  template <class Meanwhile>
  static INLINE void product(const bf16_t* a, int64_t depth, const int64_t* offsets, int64_t taps, int64_t lines,
                             const bf16_t* b, float* c, Meanwhile&&) {
    for (int64_t r = 0; r < BLOCK; r += ROWS) rows(a + r * depth, depth, offsets, taps, lines, b, c + r * LINE);
  }
  static void rows(const bf16_t* a, int64_t depth, const int64_t* offsets, int64_t taps, int64_t lines, const bf16_t* b,
                   float* c) {
    __m512 sum[ROWS][2];
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t tap = 0; tap < taps; ++tap) {
      const bf16_t* at = a + offsets[tap] * depth;
      for (int64_t line = 0; line < lines; ++line, at += LINE, b += 2 * TILE_ELEMENTS)
        for (int64_t k = 0; k < TILE; ++k) {
          const __m512bh b0 = (__m512bh)_mm512_load_si512(b + k * LINE);
          const __m512bh b1 = (__m512bh)_mm512_load_si512(b + TILE_ELEMENTS + k * LINE);
#pragma GCC unroll 16
          for (int r = 0; r < ROWS; ++r) {
            const __m512bh value = pair(at + r * depth + 2 * k);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], value, b0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], value, b1);
          }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
      _mm512_store_ps(c + r * LINE, sum[r][0]);
      _mm512_store_ps(c + r * LINE + TILE, sum[r][1]);
    }
  }
  static void accumulate(const bf16_t* a, int64_t row, const bf16_t* b0, const bf16_t* b1, int64_t count, float* c) {
    constexpr int64_t CHANNELS = 8;  // at once
    for (int64_t first = 0; first < LINE; first += CHANNELS) {
      float* to = c + first / TILE * 512 + first % TILE * TILE;
      __m512 sum[CHANNELS][2];
      for (int r = 0; r < CHANNELS; ++r)
        for (int i = 0; i < 2; ++i) sum[r][i] = _mm512_load_ps(to + i * 256 + r * TILE);
      for (int64_t k = 0; k < count * TILE; ++k) {
        const __m512bh line0 = (__m512bh)_mm512_load_si512(b0 + k * LINE);
        const __m512bh line1 = (__m512bh)_mm512_load_si512(b1 + k * LINE);
#pragma GCC unroll 8
        for (int r = 0; r < CHANNELS; ++r) {
          const __m512bh value = pair(a + (first + r) * row + 2 * k);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], value, line0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], value, line1);
        }
      }
      for (int r = 0; r < CHANNELS; ++r)
        for (int i = 0; i < 2; ++i) _mm512_store_ps(to + i * 256 + r * TILE, sum[r][i]);
    }
  }
};

// --- forward, and the gradient of the input ---

// The positions of a band of rows pass through a ring. Behind its end are the positions at its beginning once more, so
// that a block and its taps are read without a break.
template <Function F>
class Ring {
 public:
  Ring(Memory& memory, const Grid& grid, const Source& source, int64_t positions, int64_t block)
      : grid_(grid),
        source_(source),
        lines_(source.lines()),
        depth_(lines_ * LINE),
        slots_(parts(positions, grid.pitch)),
        size_(slots_ * grid.pitch),
        table_(memory.take<Source::Line>(lines_)),
        begin_(memory.take<bf16_t>((size_ + grid.reach() + block) * depth_)),
        end_(begin_ + size_ * depth_),
        twice_(begin_ + (grid.reach() + block) * depth_) {}

  void clear() {
    for (int64_t n = 0; n < lines_; ++n) table_[n] = source_.line(n);
    for (int64_t slot = 0; slot < slots_ && grid_.pad; ++slot) {
      bf16_t* pad = begin_ + slot * grid_.pitch * depth_;
      memset(pad, 0, depth_ * sizeof(bf16_t));
      if (pad < twice_) memset(pad + size_ * depth_, 0, depth_ * sizeof(bf16_t));
    }
  }
  // Rows y .. y + rows of an image, and those that the kernel reaches around them.
  void start(int64_t image, int64_t y, int64_t rows) {
    first_ = y, last_ = y + rows, image_ = image * grid_.height * grid_.width;
    position_ = line_ = 0;
    to_ = end_;
    row(y - grid_.pad);
  }
  const bf16_t* at(int64_t position) const { return begin_ + position % size_ * depth_; }
  int64_t depth() const { return depth_; }
  int64_t lines() const { return lines_; }

  // How many pieces are left to have all positions before `end`.
  int64_t want(int64_t end) {
    want_ = least(end, (last_ - first_ + 2 * grid_.pad) * grid_.pitch);
    return most(0, want_ - position_) * lines_;
  }
  INLINE void some(int64_t count, const Evaluator<F>& function) {
    for (; count > 0 && position_ < want_; --count) chunk(function);
  }

 private:
  INLINE void row(int64_t y) {  // to the first pixel of a row, behind its pad
    y_ = y, x_ = 0;
    inside_ = y >= 0 && y < grid_.height;
    pixel_ = image_ + y * grid_.width;
    position_ += grid_.pad;
    if (to_ == end_) to_ = begin_;
    to_ += grid_.pad * depth_;
  }
  INLINE void chunk(const Evaluator<F>& function) {
    __m512i v = _mm512_setzero_si512();
    if (inside_) {
      if constexpr (F == Function::gelu_gradient)
        v = source_.multiplied(pixel_, table_[line_], function, y_ >= first_ && y_ < last_);
      else
        v = source_.read(pixel_, table_[line_]);
    }
    bf16_t* to = to_ + line_ * LINE;
    _mm512_store_si512(to, v);
    if (to_ < twice_) _mm512_store_si512(to + size_ * depth_, v);
    if (++line_ < lines_) return;
    line_ = 0;
    ++pixel_, ++position_, to_ += depth_;
    if (++x_ == grid_.width) row(y_ + 1);
  }

  const Grid grid_;
  const Source source_;
  const int64_t lines_, depth_, slots_, size_;
  Source::Line* const table_;
  bf16_t *const begin_, *const end_, *const twice_;
  int64_t first_, last_, image_;  // rows; the image's first pixel
  int64_t y_, x_, pixel_, line_;  // of the next piece
  int64_t position_, want_ = 0;
  bool inside_;
  bf16_t* to_;
};

struct Target {
  bf16_t* to;
  int64_t channels;
  bf16_t* z;
  const bf16_t* residual;
};

// Writes the products of blocks of positions, position after position.
template <Function F>
class Writer {
 public:
  explicit Writer(const Grid& grid) : width_(grid.width), pitch_(grid.pitch) {}
  // c (count, 32) are channels `channel` .. of positions that begin at column x, in the row of pixel - x.
  void start(const float* c, int64_t count, int64_t x, int64_t pixel, const Target& target, int64_t channel,
             const float* bias) {
    c_ = c, left_ = count, x_ = x, target_ = target, bias_ = bias;
    at_ = pixel * target.channels + channel;
    mask_ = first_halves(target.channels - channel);
  }
  INLINE void some(int64_t count, const Evaluator<F>& function) {
    for (; count > 0 && left_ > 0; --count, --left_) {
      if (x_ < width_) pixel(function);
      c_ += LINE;
      if (++x_ == pitch_) x_ = 0;
    }
  }
  void finish(const Evaluator<F>& function) { some(left_, function); }

 private:
  INLINE void pixel(const Evaluator<F>& function) {
    Pair v{_mm512_load_ps(c_) + _mm512_load_ps(bias_), _mm512_load_ps(c_ + TILE) + _mm512_load_ps(bias_ + TILE)};
    const int64_t ahead = at_ + AHEAD * target_.channels;
    __builtin_prefetch(target_.to + ahead, 1);
    if (target_.z) {
      __builtin_prefetch(target_.z + ahead, 1);
      _mm512_mask_storeu_epi16(target_.z + at_, mask_, to_bf16(v));
    }
    if constexpr (F == Function::gelu) v = {function(v.low), function(v.high)};
    if (target_.residual) {
      __builtin_prefetch(target_.residual + ahead);
      const Pair residual = to_fp32(_mm512_maskz_loadu_epi16(mask_, target_.residual + at_));
      v = {v.low + residual.low, v.high + residual.high};
    }
    _mm512_mask_storeu_epi16(target_.to + at_, mask_, to_bf16(v));
    at_ += target_.channels;
  }
  const int64_t width_, pitch_;
  const float *c_, *bias_;
  int64_t left_ = 0, x_, at_;
  __mmask32 mask_;
  Target target_;
};

struct Convolution {
  int64_t batch;
  Grid grid;
  Source source;
  Target targets[2];  // channels behind each other
  const float* weight;
  bool transposed;    // the weight is that of the convolution whose input's gradient this is
  const float* bias;  // or null

  int64_t blocks(int target) const { return parts(targets[target].channels, LINE); }  // of 32 outputs
  int64_t blocks() const { return blocks(0) + blocks(1); }
  int64_t out_channels() const { return targets[0].channels + targets[1].channels; }
  int64_t inputs() const { return source.channels + source.second_channels; }
};

// The tile of 16 pairs of inputs x 16 outputs x 2 for a tap: inputs from 32 line, outputs out .. out + count.
void pack_tile(const Convolution& v, int64_t tap, int64_t line, int64_t out, int64_t count, bf16_t* to) {
  const int64_t taps = v.grid.taps(), inputs = v.inputs(), out_channels = v.out_channels(), begin = line * LINE;
  if (!v.transposed) {
    alignas(64) __m512i lines[TILE];
    for (int64_t n = 0; n < TILE; ++n) {
      const float* from = v.weight + ((out + n) * taps + tap) * inputs + begin;
      const __mmask16 low = n < count ? first_floats(inputs - begin) : 0;
      const __mmask16 high = n < count ? first_floats(inputs - begin - TILE) : 0;
      lines[n] = to_bf16({_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + TILE)});
    }
    transpose(lines, [&](int row, __m512i value) { _mm512_store_si512(to + row * LINE, value); });
    return;
  }
  const __mmask16 mask = first_floats(count);
  for (int64_t k = 0; k < TILE; ++k) {
    const int64_t in = begin + 2 * k;
    const float* from = v.weight + (in * taps + taps - 1 - tap) * out_channels + out;
    const __m512i both = to_bf16({_mm512_maskz_loadu_ps(in < inputs ? mask : 0, from),
                                  _mm512_maskz_loadu_ps(in + 1 < inputs ? mask : 0, from + taps * out_channels)});
    const __v16si order = __v16si{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x10001 + 0x100000;
    _mm512_store_si512(to + k * LINE, _mm512_permutexvar_epi16((__m512i)order, both));
  }
}

// So many that few positions of the last product of a band are behind its end.
int64_t rows_of_band(const Grid& grid, int64_t batch, int64_t block) {
  const int64_t limit = least(BAND / grid.pitch, batch * grid.height / LEAST_BANDS);
  int64_t best = most(1, grid.kernel - 1);  // which are read again for the next band
  for (int64_t rows = best + 1; rows <= limit; ++rows)
    if (parts(rows * grid.pitch, block) * best < parts(best * grid.pitch, block) * rows) best = rows;
  return best;
}

// F: GELU of what is written, or GELU'(z) that is multiplied with what is read.
template <class Kernel, Function F>
void convolve(const Convolution& v) {
  constexpr int64_t BLOCK = Kernel::BLOCK;
  const Grid& grid = v.grid;
  const int64_t taps = grid.taps(), lines = v.source.lines(), steps = taps * lines, blocks = v.blocks();
  // Weights of 32 outputs that stay in the first cache meet about a row of positions; of others, a block's inputs stay.
  const bool near = steps * 2 * TILE_ELEMENTS * int64_t(sizeof(bf16_t)) <= NEAR;
  const int64_t group = near ? parts(grid.pitch, BLOCK) * BLOCK : BLOCK;
  const int64_t band_rows = rows_of_band(grid, v.batch, BLOCK), bands = parts(grid.height, band_rows);  // of an image
  struct Own {
    Ring<F> ring;
    float* c[2];
    Own(Memory& memory, const Convolution& v, int64_t group)
        : ring(memory, v.grid, v.source, 2 * group + v.grid.reach(), BLOCK),
          c{memory.take<float>(BLOCK * LINE), memory.take<float>(BLOCK * LINE)} {}
  };
  struct Shared {
    bf16_t* weight;
    float* bias;
    Shared(Memory& memory, int64_t steps, int64_t blocks)
        : weight(memory.take<bf16_t>(blocks * steps * 2 * TILE_ELEMENTS)), bias(memory.take<float>(blocks * LINE)) {}
  };
  Memory count{nullptr};
  Shared(count, steps, blocks);
  const int64_t shared_bytes = count.used;
  Own(count, v, group);
  const int64_t own_bytes = count.used - shared_bytes;
  Memory memory{reinterpret_cast<char*>(caller_scratch(shared_bytes / sizeof(float)))};
  const Shared shared(memory, steps, blocks);
  memset(shared.bias, 0, blocks * LINE * sizeof(float));
  if (v.bias) memcpy(shared.bias, v.bias, v.out_channels() * sizeof(float));
  const int64_t pixels = parts(BLOCK, steps);  // that are written for each step of the next product
  int64_t offsets[9];
  for (int64_t tap = 0; tap < taps; ++tap) offsets[tap] = tap / grid.kernel * grid.pitch + tap % grid.kernel;

  parallel_for(blocks * steps * 2, PACKED, [&](int64_t n) {
    const int64_t block = n / (steps * 2), half = n % 2, step = n / 2 % steps;
    const int target = block >= v.blocks(0);
    const int64_t channel = (block - target * v.blocks(0)) * LINE + half * TILE;
    pack_tile(v, step / lines, step % lines, target * v.targets[0].channels + channel,
              v.targets[target].channels - channel, shared.weight + n * TILE_ELEMENTS);
  });
  parallel_chunks(v.batch * bands, [&](Chunks& chunks) {
    const Kernel kernel;
    Memory mine{reinterpret_cast<char*>(thread_scratch(own_bytes / sizeof(float)))};
    Own own(mine, v, group);
    Ring<F>& ring = own.ring;
    Writer<F> writer(grid);
    const Evaluator<F> function;
    ring.clear();
    for (int64_t band; chunks.next(band);) {
      const int64_t image = band / bands, part = band % bands;
      const int64_t y = part * band_rows, rows = least(band_rows, grid.height - y);
      const int64_t all = rows * grid.pitch;
      int flip = 0;
      ring.start(image, y, rows);
      ring.some(ring.want(least(group, all) + grid.reach()), function);
      for (int64_t first = 0; first < all; first += group) {
        const int64_t end = least(first + group, all), products = parts(end - first, BLOCK) * blocks;
        const int64_t ahead = parts(ring.want(end + group + grid.reach()), products * steps);
        const auto meanwhile = [&]() __attribute__((always_inline)) {
          writer.some(pixels, function);
          ring.some(ahead, function);
        };
        written();
        for (int64_t block = 0; block < blocks; ++block) {
          const int target = block >= v.blocks(0);
          for (int64_t p = first; p < end; p += BLOCK) {
            const bf16_t* weight = shared.weight + block * steps * 2 * TILE_ELEMENTS;
            kernel.product(ring.at(p), ring.depth(), offsets, taps, lines, weight, own.c[flip], meanwhile);
            writer.finish(function);
            const int64_t x = p % grid.pitch, row = image * grid.height + y + p / grid.pitch;
            writer.start(own.c[flip], least(BLOCK, end - p), x, row * grid.width + least(x, grid.width),
                         v.targets[target], (block - target * v.blocks(0)) * LINE, shared.bias + block * LINE);
            flip ^= 1;
          }
        }
        ring.some(ahead * products * steps, function);
      }
      writer.finish(function);
    }
  });
}

// --- the gradient of the weight ---

// A strip of rows of an image, as both operands of a product that sums over positions.
class Strip {
 public:
  // Lines of channels of x and of the gradient from .. to.
  Strip(Memory& memory, const Grid& grid, const Source& x, int64_t x_from, int64_t x_to, const Source& grad,
        int64_t grad_from, int64_t grad_to, int64_t rows)
      : grid_(grid),
        x_(x),
        grad_(grad),
        x_from_(x_from),
        x_to_(x_to),
        grad_from_(grad_from),
        grad_to_(grad_to),
        most_(parts(rows * grid.pitch, LINE) * LINE),
        row_((parts(most_ + grid.reach(), LINE) | 1) * LINE),  // odd: 16 rows are in 16 sets of the cache
        a_(memory.take<bf16_t>((x_to - x_from) * LINE * row_)),
        b_(memory.take<bf16_t>((grad_to - grad_from) * LINE * most_)) {}

  // Rows y .. y + rows; `follows`: those before them were here last. Adds to sums (channels of the gradient).
  void make(int64_t image, int64_t y, int64_t rows, bool follows, float* sums) {
    const int64_t first_pixel = image * grid_.height * grid_.width;
    lines_ = parts(rows * grid_.pitch, LINE);
    int64_t kept = 0;
    if (follows && grid_.pad) {
      kept = 2 * grid_.pad * grid_.pitch / LINE * LINE;
      for (int64_t c = 0; c < (x_to_ - x_from_) * LINE; ++c)
        memmove(a_ + c * row_, a_ + c * row_ + rows_ * grid_.pitch, kept * sizeof(bf16_t));
    }
    rows_ = rows;
    int64_t pixels[LINE];
    for (int64_t p = kept; p < parts(lines_ * LINE + grid_.reach(), LINE) * LINE; p += LINE) {
      locate(p, grid_.pad, y - grid_.pad, 0, grid_.height, pixels);
      for (int64_t n = x_from_; n < x_to_; ++n) {
        const Source::Line line = x_.line(n);
        alignas(64) __m512i low[TILE], high[TILE];
        for (int64_t k = 0; k < TILE; ++k) {
          const Lines both =
              interleaved(read(x_, pixels[2 * k], first_pixel, line), read(x_, pixels[2 * k + 1], first_pixel, line));
          low[k] = both.low, high[k] = both.high;
        }
        bf16_t* to = a_ + (n - x_from_) * LINE * row_ + p;
        transpose(low, [&](int c, __m512i v) { _mm512_store_si512(to + c * row_, v); });
        transpose(high, [&](int c, __m512i v) { _mm512_store_si512(to + (TILE + c) * row_, v); });
      }
    }
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (int64_t p = 0; p < lines_ * LINE; p += LINE) {
      locate(p, 0, y, y, y + rows, pixels);
      for (int64_t n = grad_from_; n < grad_to_; ++n) {
        const Source::Line line = grad_.line(n);
        bf16_t* to = b_ + (n - grad_from_) * LINE * most_ + p * TILE;
        __m512 low = _mm512_load_ps(sums + n * LINE), high = _mm512_load_ps(sums + n * LINE + TILE);
        for (int64_t k = 0; k < TILE; ++k, to += LINE) {
          const Lines both = interleaved(read(grad_, pixels[2 * k], first_pixel, line),
                                         read(grad_, pixels[2 * k + 1], first_pixel, line));
          _mm512_store_si512(to, both.low);
          _mm512_store_si512(to + TILE * most_, both.high);
          low = _mm512_dpbf16_ps(low, (__m512bh)both.low, ones);
          high = _mm512_dpbf16_ps(high, (__m512bh)both.high, ones);
        }
        _mm512_store_ps(sums + n * LINE, low);
        _mm512_store_ps(sums + n * LINE + TILE, high);
      }
    }
  }
  int64_t lines() const { return lines_; }  // of positions
  int64_t row() const { return row_; }      // positions from one channel to the next
  const bf16_t* x(int64_t line, int64_t position) const { return a_ + (line - x_from_) * LINE * row_ + position; }
  const bf16_t* grad(int64_t line, int64_t half, int64_t position) const {
    return b_ + (2 * (line - grad_from_) + half) * TILE * most_ + position * TILE;
  }

 private:
  // Pixels of an image at 32 positions, -1 at pads; before: positions of pad before a row that is `y` at position 0.
  void locate(int64_t position, int64_t before, int64_t y, int64_t begin, int64_t end, int64_t* pixels) const {
    int64_t row = y + position / grid_.pitch, x = position % grid_.pitch - before;
    for (int64_t n = 0; n < LINE; ++n) {
      const bool there = row >= begin && row < end && x >= 0 && x < grid_.width;
      pixels[n] = there ? row * grid_.width + x : -1;
      if (++x == grid_.pitch - before) x = -before, ++row;
    }
  }
  static INLINE __m512i read(const Source& source, int64_t pixel, int64_t first, const Source::Line& line) {
    return pixel < 0 ? _mm512_setzero_si512() : source.read(first + pixel, line);
  }

  const Grid grid_;
  const Source x_, grad_;
  const int64_t x_from_, x_to_, grad_from_, grad_to_, most_, row_;
  bf16_t *const a_, *const b_;  // (channels, row_); (tiles of outputs, pairs of positions, 16, 2)
  int64_t rows_ = 0, lines_ = 0;
};

template <class Kernel>
void weight_gradient(const DenseBackward& a, const Source& x, const Source& grad) {
  const Grid grid(a);
  const int64_t k = grid.kernel, taps = grid.taps(), x_lines = x.lines(), grad_lines = grad.lines();
  const int64_t most_rows = most(1, STRIP / ((x_lines + grad_lines) * LINE * int64_t(sizeof(bf16_t)) * grid.pitch));
  const int64_t strips_of_image = parts(grid.height, most_rows), strips = a.batch * strips_of_image;
  const int64_t bands = least(BANDS, strips);
  // Threads beyond the bands share the channels of x or those of the gradient, of which there are more.
  const bool share_x = x_lines > grad_lines;
  const int64_t shares = least(share_x ? x_lines : grad_lines, parts(num_threads(), bands));
  const int64_t block = taps * 4 * TILE * TILE, per_band = x_lines * grad_lines * block, bias = grad_lines * LINE;

  const auto strip_of = [&](Memory& memory, int64_t share) {
    const int64_t lines = share_x ? x_lines : grad_lines;
    const int64_t from = lines * share / shares, to = lines * (share + 1) / shares;
    return share_x ? Strip(memory, grid, x, from, to, grad, 0, grad_lines, most_rows)
                   : Strip(memory, grid, x, 0, x_lines, grad, from, to, most_rows);
  };
  Memory count{nullptr};
  strip_of(count, shares - 1);  // none is larger
  const int64_t own_bytes = count.used, sum_bytes = bands * (per_band + shares * bias) * int64_t(sizeof(float));
  Memory memory{reinterpret_cast<char*>(caller_scratch(sum_bytes / sizeof(float)))};
  float *sums = memory.take<float>(bands * per_band), *bias_sums = memory.take<float>(bands * shares * bias);

  parallel_chunks(bands * shares, [&](Chunks& chunks) {
    const Kernel kernel;
    for (int64_t task; chunks.next(task);) {
      const int64_t band = task / shares, share = task % shares;
      const int64_t x_from = share_x ? x_lines * share / shares : 0;
      const int64_t x_to = share_x ? x_lines * (share + 1) / shares : x_lines;
      const int64_t grad_from = share_x ? 0 : grad_lines * share / shares;
      const int64_t grad_to = share_x ? grad_lines : grad_lines * (share + 1) / shares;
      Memory mine{reinterpret_cast<char*>(thread_scratch(own_bytes / sizeof(float)))};
      Strip strip = strip_of(mine, share);
      for (int64_t xl = x_from; xl < x_to; ++xl)
        memset(sums + band * per_band + (xl * grad_lines + grad_from) * block, 0,
               (grad_to - grad_from) * block * sizeof(float));
      float* own_bias = bias_sums + task * bias;
      memset(own_bias, 0, bias * sizeof(float));
      const int64_t begin = strips * band / bands, end = strips * (band + 1) / bands;
      for (int64_t n = begin; n < end; ++n) {
        const int64_t image = n / strips_of_image, part = n % strips_of_image;
        const int64_t y = grid.height * part / strips_of_image;
        const int64_t rows = grid.height * (part + 1) / strips_of_image - y;
        strip.make(image, y, rows, n > begin && part > 0, own_bias);
        written();
        for (int64_t i = 0; i < k; ++i)
          for (int64_t xl = x_from; xl < x_to; ++xl)
            for (int64_t gl = grad_from; gl < grad_to; ++gl)
              for (int64_t line = 0; line < strip.lines(); line += RUN)
                for (int64_t j = 0; j < k; ++j)
                  kernel.accumulate(
                      strip.x(xl, line * LINE + i * grid.pitch + j), strip.row(), strip.grad(gl, 0, line * LINE),
                      strip.grad(gl, 1, line * LINE), least(RUN, strip.lines() - line),
                      sums + band * per_band + (xl * grad_lines + gl) * block + (i * k + j) * 4 * TILE * TILE);
      }
    }
  });
  const int64_t C = a.channels + a.skip_channels;
  parallel_for(x_lines * grad_lines * taps * 4, PACKED, [&](int64_t n) {
    const int64_t tile = n % 4, tap = n / 4 % taps, line = n / (4 * taps);
    const int64_t c = line / grad_lines * LINE + tile / 2 * TILE, o = line % grad_lines * LINE + tile % 2 * TILE;
    alignas(64) __m512 total[TILE];
    for (int64_t r = 0; r < TILE; ++r) {
      total[r] = _mm512_setzero_ps();
      for (int64_t band = 0; band < bands; ++band)
        total[r] += _mm512_load_ps(sums + band * per_band + (n * TILE + r) * TILE);
    }
    const __mmask16 mask = first_floats(C - c);
    transpose(total, [&](int r, __m512i v) {
      if (o + r < a.out_channels)
        _mm512_mask_storeu_ps(a.grad_weight + ((o + r) * taps + tap) * C + c, mask, _mm512_castsi512_ps(v));
    });
  });
  // Where the channels of x are shared, each thread has seen all of the gradient.
  for (int64_t o = 0; a.grad_bias && o < a.out_channels; ++o) {
    float total = 0;
    for (int64_t band = 0; band < bands; ++band)
      for (int64_t share = 0; share < (share_x ? 1 : shares); ++share)
        total += bias_sums[(band * shares + share) * bias + o];
    a.grad_bias[o] = total;
  }
}

// product = grad_out * GELU'(z), where nobody else makes it.
void make_product(const Source& grad, int64_t pixels) {
  parallel_chunks(parts(pixels, BAND), [&](Chunks& chunks) {
    const Evaluator<Function::gelu_gradient> gradient;
    for (int64_t chunk; chunks.next(chunk);)
      for (int64_t pixel = chunk * BAND; pixel < least(pixels, (chunk + 1) * BAND); ++pixel)
        for (int64_t n = 0; n < grad.lines(); ++n) grad.multiplied(pixel, grad.line(n), gradient, true);
  });
}

template <class Kernel>
void forward_of(const DenseForward& a) {
  const Source source{static_cast<const bf16_t*>(a.x),
                      static_cast<const bf16_t*>(a.skip),
                      a.channels,
                      a.skip_channels,
                      nullptr,
                      nullptr};
  const Target out{static_cast<bf16_t*>(a.out), a.out_channels, static_cast<bf16_t*>(a.z),
                   static_cast<const bf16_t*>(a.residual)};
  const Convolution v{a.batch, Grid(a), source, {out, {}}, a.weight, false, a.bias};
  a.gelu ? convolve<Kernel, Function::gelu>(v) : convolve<Kernel, Function::none>(v);
}

template <class Kernel>
void backward_of(const DenseBackward& a) {
  const Source x{static_cast<const bf16_t*>(a.x),
                 static_cast<const bf16_t*>(a.skip),
                 a.channels,
                 a.skip_channels,
                 nullptr,
                 nullptr};
  const Source grad{static_cast<const bf16_t*>(a.grad_out), nullptr, a.out_channels, 0, static_cast<const bf16_t*>(a.z),
                    static_cast<bf16_t*>(a.grad_z)};
  const Source grad_after_gelu{
      static_cast<const bf16_t*>(a.z ? a.grad_z : a.grad_out), nullptr, a.out_channels, 0, nullptr, nullptr};
  if (a.grad_x) {
    const Target to{static_cast<bf16_t*>(a.grad_x), a.channels, nullptr, nullptr};
    const Target to_skip{static_cast<bf16_t*>(a.grad_skip), a.skip_channels, nullptr, nullptr};
    const Convolution v{a.batch, Grid(a), grad, {to, to_skip}, a.weight, true, nullptr};
    a.z ? convolve<Kernel, Function::gelu_gradient>(v) : convolve<Kernel, Function::none>(v);
  } else if (a.z) {
    make_product(grad, a.batch * a.height * a.width);
  }
  weight_gradient<Kernel>(a, x, grad_after_gelu);
}

}  // namespace

namespace amx {
void dense_forward(const DenseForward& a) { forward_of<Tiles>(a); }
void dense_backward(const DenseBackward& a) { backward_of<Tiles>(a); }
}  // namespace amx
namespace avx512_bf16 {
void dense_forward(const DenseForward& a) { forward_of<Lanes>(a); }
void dense_backward(const DenseBackward& a) { backward_of<Lanes>(a); }
}  // namespace avx512_bf16

}  // namespace sinfusion
