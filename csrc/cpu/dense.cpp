// Compiled once for each instruction set (SINFUSION_ISA_NAMESPACE, SINFUSION_LANES). Arithmetic is fp32, whatever the
// activations are.
//
// A 3x3 convolution is Winograd's F(4x4, 3x3) (Lavin and Gray 2016): a tile of 4x4 outputs, the 6x6 inputs under it
// and the kernel each become 36 numbers, and a product of matrices for each of the 36 takes the place of nine: 36
// multiplications where there were 144. The weight gradient is the transposed algorithm. A 1x1 convolution is the same
// with one number for each pixel. Transformed tiles are made block by block and stay in cache.
//
// Every sum is taken in the order of the tiles, whichever thread adds, so results do not depend on threads.
//
// The C++ library stays out of this file: see depthwise_norm.cpp.
#include "dense.h"

#include <string.h>

#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// A product of matrices holds R x 2 vectors in registers; in the weight gradient G outputs x 2 vectors.
#if defined(__AVX512F__)
constexpr int R = 13;
#elif defined(__aarch64__)
constexpr int R = 9;
#else
constexpr int R = 6;
#endif
constexpr int G = LANES < 8 ? LANES : LANES / 2;
constexpr int BANDS = 16;  // of pixels, for sums over them

inline int64_t rounded_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// One tensor, or two whose channels follow each other, in planes of L channels; the last plane of each may have fewer.
template <class T>
struct Channels {
  T* data[2];
  int64_t count[2];

  int64_t planes(int part) const { return (count[part] + LANES - 1) / LANES; }
  int64_t planes() const { return planes(0) + planes(1); }
  struct Plane {
    T* data;          // of the first pixel
    int64_t stride;   // from pixel to pixel
    int lanes;        // that are channels
    int64_t channel;  // of the first lane
  };
  Plane plane(int64_t p) const {
    const int part = p >= planes(0);
    const int64_t first = (p - part * planes(0)) * LANES, left = count[part] - first;
    return {data[part] + first, count[part], int(left < LANES ? left : LANES), part * count[0] + first};
  }
};

template <int N>
inline vec_f32 polynomial(vec_f32 x, const float (&coefficients)[N]) {  // the highest power first
  vec_f32 sum = vec_f32{} + coefficients[0];
  for (int i = 1; i < N; ++i) sum = sum * x + coefficients[i];
  return sum;
}
constexpr float POWER[] = {1.3276457e-3f, 9.6755412e-3f, 5.5507133e-2f, 0.2402212f, 0.69314697f, 1.0f};  // of 2
constexpr float MILLS[] = {0.11796315f, -0.45063939f, 0.45363367f, 0.066515412f, 0.3502366f, 0.3553686f, 0.36023534f};

// 0.3989 exp(-x^2 / 2) and the normal distribution's mass above x, for x from 0 to 14: the mass is the density times
// Mills' ratio, of which this is a minimax polynomial in 1 / (1 + 0.36 x), off by 9e-7 of it.
inline void normal_tail(vec_f32 x, vec_f32& density, vec_f32& mass) {
  const vec_f32 exponent = x * x * -0.72134752f;
  const vec_i32 whole =
      __builtin_convertvector(exponent - 0.5f, vec_i32);  // rounds to the nearest: the argument is negative
  const vec_f32 f = exponent - __builtin_convertvector(whole, vec_f32);
  const vec_f32 power = polynomial(f, POWER);
  const vec_i32 least = vec_i32{} - 126;
  const vec_i32 clamped = whole > least ? whole : least;
  density = power * (vec_f32)((clamped + 127) << 23) * 0.39894228f;
  const vec_f32 t = 1.0f / (1.0f + 0.36f * x);
  mass = density * polynomial(t, MILLS) * t;
}
inline vec_f32 magnitude(vec_f32 x) {
  const vec_f32 positive = x < 0.0f ? -x : x;
  return positive < 14.0f ? positive : vec_f32{} + 14.0f;
}
inline vec_f32 gelu(vec_f32 x) {
  vec_f32 density, mass;
  const vec_f32 m = magnitude(x);
  normal_tail(m, density, mass);
  return (x < 0.0f ? vec_f32{} : x) - m * mass;
}
inline vec_f32 gelu_gradient(vec_f32 x) {
  vec_f32 density, mass;
  normal_tail(magnitude(x), density, mass);
  return (x < 0.0f ? mass : 1.0f - mass) + (x < 14.0f && x > -14.0f ? x * density : x - x);
}

// c (R, V L) = a (R, depth) b (depth, V L), added to what is there, or in its place.
template <int R, int V>
inline void product(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, int64_t depth,
                    float* c, int64_t c_row, bool add) {
  vec_f32 sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = add ? load(c + r * c_row + v * LANES) : vec_f32{};
  const float* rows[(R + 3) / 4];
  for (int r = 0; r < R; r += 4) rows[r / 4] = a + r * a_row;
  for (int64_t k = 0; k < depth; ++k) {
    vec_f32 line[V];
    for (int v = 0; v < V; ++v) line[v] = load(b + v * LANES), __builtin_prefetch(b + depth * b_step + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] += rows[r / 4][r % 4 * a_row] * line[v];
#pragma GCC unroll 4
    for (int i = 0; i < (R + 3) / 4; ++i) rows[i] += a_step;
    b += b_step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + r * c_row + v * LANES, sum[r][v]);
}

// The points 0, 2/3, -2/3, 3/2, -3/2 and infinity: of those tried the ones with the smallest error, 5 times that of a
// direct convolution in fp32 (0, 1, -1, 2, -2: 11 times).
constexpr float A = 2.0f / 3, B = 3.0f / 2, A2 = A * A, B2 = B * B, A3 = A2 * A, B3 = B2 * B;
constexpr float NA = 0.5f / (A2 * (A2 - B2)), NB = 0.5f / (B2 * (B2 - A2));

struct Winograd {
  static constexpr int F = 36, TAPS = 9, BLOCK = 2 * R;
  static constexpr int GRADIENT_BLOCK = 64, GRADIENT_BANDS = 4;

  struct Grid {
    int64_t height, width, rows, columns, tiles;
    Grid(const Dense& a)
        : height(a.height),
          width(a.width),
          rows((height + 3) / 4),
          columns((width + 3) / 4),
          tiles(a.batch * rows * columns) {}
    struct Tile {
      int64_t image, y, x;  // the first pixel of the image; the corner of the tile in it
    };
    Tile tile(int64_t t) const {
      const int64_t row = t / columns;
      return {row / rows * height * width, row % rows * 4, t % columns * 4};
    }
  };

  static void kernel_to_points(const vec_f32* g, vec_f32* out) {  // 3x3 -> 6x6
    vec_f32 half[6][3];
    const auto line = [](vec_f32 g0, vec_f32 g1, vec_f32 g2, vec_f32* to, int step) {
      const vec_f32 ea = NA * (g0 + A2 * g2), oa = NA * A * g1, eb = NB * (g0 + B2 * g2), ob = NB * B * g1;
      to[0] = g0, to[step] = ea + oa, to[2 * step] = ea - oa, to[3 * step] = eb + ob, to[4 * step] = eb - ob;
      to[5 * step] = g2;
    };
    for (int j = 0; j < 3; ++j) line(g[j], g[3 + j], g[6 + j], &half[0][j], 3);
    for (int i = 0; i < 6; ++i) line(half[i][0], half[i][1], half[i][2], out + 6 * i, 1);
  }
  static void points_to_kernel(const vec_f32* m, vec_f32* out) {  // 6x6 -> 3x3, the transpose
    vec_f32 half[3][6];
    const auto line = [](const vec_f32* m, int step, vec_f32* to, int to_step) {
      const vec_f32 ea = NA * (m[step] + m[2 * step]), oa = NA * (m[step] - m[2 * step]);
      const vec_f32 eb = NB * (m[3 * step] + m[4 * step]), ob = NB * (m[3 * step] - m[4 * step]);
      to[0] = m[0] + ea + eb;
      to[to_step] = A * oa + B * ob;
      to[2 * to_step] = A2 * ea + B2 * eb + m[5 * step];
    };
    for (int j = 0; j < 6; ++j) line(m + j, 6, &half[0][j], 6);
    for (int i = 0; i < 3; ++i) line(half[i], 1, out + 3 * i, 1);
  }

  // The 36 numbers of the 6x6 pixels around a tile, `step` floats apart.
  template <class T>
  static void gather(const Grid& grid, const typename Grid::Tile& tile, const typename Channels<const T>::Plane& plane,
                     float* out, int64_t step) {
    vec_f32 half[6][6];
    const auto line = [](vec_f32 d0, vec_f32 d1, vec_f32 d2, vec_f32 d3, vec_f32 d4, vec_f32 d5, vec_f32* to) {
      constexpr float S = A2 + B2;
      const vec_f32 ea = d4 - B2 * d2, oa = A * d3 - B * d1, eb = d4 - A2 * d2, ob = B * d3 - A * d1;
      to[0] = d0 - S * d2 + d4, to[1] = ea + oa, to[2] = ea - oa, to[3] = eb + ob, to[4] = eb - ob;
      to[5] = d1 - S * d3 + d5;
    };
    const T* corner = plane.data + (tile.image + (tile.y - 1) * grid.width + tile.x - 1) * plane.stride;
    const int64_t right = plane.stride, down = grid.width * plane.stride;
    const bool inside = tile.y > 0 && tile.x > 0 && tile.y + 5 <= grid.height && tile.x + 5 <= grid.width;
    if (inside && plane.lanes == LANES) {
      for (int j = 0; j < 6; ++j) {
        const T* p = corner + j * right;
        line(load(p), load(p + down), load(p + 2 * down), load(p + 3 * down), load(p + 4 * down), load(p + 5 * down),
             half[j]);
      }
    } else {
      for (int j = 0; j < 6; ++j) {
        vec_f32 d[6];
        for (int i = 0; i < 6; ++i) {
          const int64_t y = tile.y - 1 + i, x = tile.x - 1 + j;
          const bool there = y >= 0 && y < grid.height && x >= 0 && x < grid.width;
          d[i] = there ? load(corner + i * down + j * right, plane.lanes) : vec_f32{};
        }
        line(d[0], d[1], d[2], d[3], d[4], d[5], half[j]);
      }
    }
    for (int i = 0; i < 6; ++i) {
      vec_f32 to[6];
      line(half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i], to);
      for (int j = 0; j < 6; ++j) store(out + (6 * i + j) * step, to[j]);
    }
  }

  // The outputs of a tile of the 36 numbers `step` floats apart: calls write(value, pixel) for those in the picture.
  template <class Write>
  static void scatter(const Grid& grid, const typename Grid::Tile& tile, const float* m, int64_t step, Write&& write) {
    vec_f32 half[4][6];
    const auto line = [](vec_f32 m0, vec_f32 m1, vec_f32 m2, vec_f32 m3, vec_f32 m4, vec_f32 m5, vec_f32* to,
                         int to_step) {
      const vec_f32 ea = m1 + m2, oa = m1 - m2, eb = m3 + m4, ob = m3 - m4;
      to[0] = m0 + ea + eb, to[to_step] = A * oa + B * ob, to[2 * to_step] = A2 * ea + B2 * eb;
      to[3 * to_step] = A3 * oa + B3 * ob + m5;
    };
    for (int j = 0; j < 6; ++j, m += step)
      line(load(m), load(m + 6 * step), load(m + 12 * step), load(m + 18 * step), load(m + 24 * step),
           load(m + 30 * step), &half[0][j], 6);
    for (int i = 0; i < 4 && tile.y + i < grid.height; ++i) {
      vec_f32 y[4];
      line(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4], half[i][5], y, 1);
      const int64_t first = tile.image + (tile.y + i) * grid.width + tile.x;
      for (int j = 0; j < 4 && tile.x + j < grid.width; ++j) write(y[j], first + j);
    }
  }

  // The 36 numbers of a tile of 4x4 gradients: what `scatter` would do, transposed.
  template <class T>
  static void spread(const Grid& grid, const typename Grid::Tile& tile, const typename Channels<const T>::Plane& plane,
                     float* out, int64_t step) {
    vec_f32 half[4][6];
    const auto line = [](vec_f32 y0, vec_f32 y1, vec_f32 y2, vec_f32 y3, vec_f32* to) {
      const vec_f32 ea = y0 + A2 * y2, oa = A * y1 + A3 * y3, eb = y0 + B2 * y2, ob = B * y1 + B3 * y3;
      to[0] = y0, to[1] = ea + oa, to[2] = ea - oa, to[3] = eb + ob, to[4] = eb - ob, to[5] = y3;
    };
    const T* corner = plane.data + (tile.image + tile.y * grid.width + tile.x) * plane.stride;
    for (int j = 0; j < 4; ++j) {
      vec_f32 y[4];
      for (int i = 0; i < 4; ++i) {
        const bool there = tile.y + i < grid.height && tile.x + j < grid.width;
        y[i] = there ? load(corner + (i * grid.width + j) * plane.stride, plane.lanes) : vec_f32{};
      }
      line(y[0], y[1], y[2], y[3], half[j]);
    }
    for (int i = 0; i < 6; ++i) {
      vec_f32 to[6];
      line(half[0][i], half[1][i], half[2][i], half[3][i], to);
      for (int j = 0; j < 6; ++j) store(out + (6 * i + j) * step, to[j]);
    }
  }
};

struct Pointwise {
  static constexpr int F = 1, TAPS = 1, BLOCK = 8 * R;
  static constexpr int GRADIENT_BLOCK = 128, GRADIENT_BANDS = 16;

  struct Grid {
    int64_t tiles;
    Grid(const Dense& a) : tiles(a.batch * a.height * a.width) {}
    using Tile = int64_t;
    Tile tile(int64_t t) const { return t; }
  };
  static void kernel_to_points(const vec_f32* g, vec_f32* out) { *out = *g; }
  static void points_to_kernel(const vec_f32* m, vec_f32* out) { *out = *m; }
  template <class T>
  static void gather(const Grid&, int64_t pixel, const typename Channels<const T>::Plane& plane, float* out, int64_t) {
    store(out, load(plane.data + pixel * plane.stride, plane.lanes));
  }
  template <class Write>
  static void scatter(const Grid&, int64_t pixel, const float* m, int64_t, Write&& write) {
    write(load(m), pixel);
  }
  template <class T>
  static void spread(const Grid& grid, int64_t pixel, const typename Channels<const T>::Plane& plane, float* out,
                     int64_t step) {
    gather<T>(grid, pixel, plane, out, step);
  }
};

// (pairs of planes that come out, F, what is summed over, 2 L); a last plane without a pair has L.
template <class Algorithm>
struct Weights {
  static int64_t floats(int64_t input_planes, int64_t output_planes) {
    return Algorithm::F * input_planes * output_planes * LANES * LANES;
  }
  // from, to: what is summed over and what comes out, of which one has a (O, taps, C) weight's channels.
  template <class From, class To>
  static void pack(const float* weight, int64_t channels, const From& from, const To& to, bool transposed,
                   float* packed) {
    constexpr int TAPS = Algorithm::TAPS, F = Algorithm::F;
    const int64_t depth = from.planes() * LANES;
    const int64_t out_step = transposed ? 1 : TAPS * channels, in_step = transposed ? TAPS * channels : 1;
    parallel_for(to.planes() * from.planes(), F == 1 ? 32 : 4, [&](int64_t task) {
      const int64_t p = task / from.planes(), q = task % from.planes();
      const auto out = to.plane(p);
      const auto in = from.plane(q);
      // Planes stand in pairs: the two vectors of a product are neighbours.
      const int64_t pair = p & ~int64_t(1), width = pair + 1 < to.planes() ? 2 * LANES : LANES;
      for (int k = 0; k < LANES; ++k) {
        vec_f32 g[TAPS], u[F];
        for (int tap = 0; tap < TAPS; ++tap) {
          float lanes[LANES];
          for (int n = 0; n < LANES; ++n) {
            const int from_tap = transposed ? TAPS - 1 - tap : tap;
            lanes[n] = n < out.lanes && k < in.lanes
                           ? weight[(out.channel + n) * out_step + from_tap * channels + (in.channel + k) * in_step]
                           : 0.0f;
          }
          g[tap] = load(lanes);
        }
        Algorithm::kernel_to_points(g, u);
        float* at = packed + F * pair * LANES * depth + (q * LANES + k) * width + (p - pair) * LANES;
        for (int f = 0; f < F; ++f) store(at + f * width * depth, u[f]);
      }
    });
  }
};

// out = convolution of `in` with packed weights; write(plane, pixel, value) takes the results.
template <class Algorithm, class T>
struct Convolution {
  static constexpr int F = Algorithm::F, BLOCK = Algorithm::BLOCK;
  static int64_t step(int64_t planes) { return BLOCK * planes * LANES + 16; }  // from one of F to the next
  static int64_t floats(int64_t in_planes) { return F * (step(in_planes) + step(2)); }

  template <class Out, class Write>
  static void run(const Dense& a, const Channels<const T>& in, const float* packed, const Out& out, Write&& write) {
    const typename Algorithm::Grid grid(a);
    const int64_t K = in.planes() * LANES, in_step = step(in.planes()), out_step = step(2);
    constexpr bool in_place = F == 1 && sizeof(T) == sizeof(float);  // rows of a product are pixels as they lie
    parallel_for((grid.tiles + BLOCK - 1) / BLOCK, 1, [&](int64_t block) {
      const int64_t first = block * BLOCK;
      float *v = thread_scratch(floats(in.planes())), *m = v + F * in_step;
      const int64_t count = grid.tiles - first < BLOCK ? grid.tiles - first : BLOCK;
      const int64_t as_they_are = in_place ? count / R * R : 0;
      for (int64_t t = as_they_are; t < count; ++t) {
        const auto tile = grid.tile(first + t);
        for (int64_t p = 0; p < in.planes(); ++p)
          Algorithm::template gather<T>(grid, tile, in.plane(p), v + t * K + p * LANES, in_step);
      }
      for (int64_t p = 0; p < out.planes(); p += 2) {
        const bool both = p + 1 < out.planes();
        const int64_t width = both ? 2 * LANES : LANES;
        const auto multiply = [&](const float* rows, int64_t row, const float* b, int64_t depth, float* to, bool add) {
          both ? product<R, 2>(rows, row, 1, b, 2 * LANES, depth, to, 2 * LANES, add)
               : product<R, 1>(rows, row, 1, b, LANES, depth, to, LANES, add);
        };
        for (int f = 0; f < F; ++f) {
          const float* b = packed + (F * p * LANES + f * width) * K;
          for (int64_t t = 0; t < count; t += R) {  // rows beyond `count` are not read
            float* to = m + f * out_step + t * width;
            if (t >= as_they_are) {
              multiply(v + f * in_step + t * K, K, b, K, to, false);
              continue;
            }
            for (int part = 0; part < 2 && in.count[part]; ++part)
              multiply(reinterpret_cast<const float*>(in.data[part]) + (first + t) * in.count[part], in.count[part],
                       b + part * in.planes(0) * LANES * width, in.count[part], to, part);
          }
        }
        for (int64_t t = 0; t < count; ++t) {
          const auto tile = grid.tile(first + t);
          for (int64_t n = 0; n < width; n += LANES) {
            const auto plane = out.plane(p + n / LANES);
            Algorithm::scatter(grid, tile, m + t * width + n, out_step,
                               [&](vec_f32 value, int64_t pixel) { write(plane, pixel, value); });
          }
        }
      }
    });
  }
};

template <class T>
Channels<const T> inputs_of(const Dense& a) {
  return {{static_cast<const T*>(a.x), static_cast<const T*>(a.skip)}, {a.channels, a.skip_channels}};
}

template <class Algorithm, class T>
void forward_of(const DenseForward& a) {
  const auto in = inputs_of<T>(a);
  const Channels<T> out{{static_cast<T*>(a.out), nullptr}, {a.out_channels, 0}};
  using Run = Convolution<Algorithm, T>;
  const int64_t weights = rounded_up(Weights<Algorithm>::floats(in.planes(), out.planes()), 16);
  float* packed = caller_scratch(weights);
  Weights<Algorithm>::pack(a.weight, a.channels + a.skip_channels, in, out, false, packed);
  T* z = static_cast<T*>(a.z);
  const T* residual = static_cast<const T*>(a.residual);
  Run::run(a, in, packed, out, [&](const auto& plane, int64_t pixel, vec_f32 value) {
    const int64_t at = pixel * a.out_channels + plane.channel;
    if (a.bias) value += load(a.bias + plane.channel, plane.lanes);
    if (z) store(z + at, value, plane.lanes);
    if (a.gelu) value = gelu(value);
    if (residual) value += load(residual + at, plane.lanes);
    store(plane.data + pixel * plane.stride, value, plane.lanes);
  });
}

// grad_z = grad_out * GELU'(z) if there was a GELU, and the gradient of the bias.
template <class T>
void before_convolution(const DenseBackward& a) {
  const int64_t pixels = a.batch * a.height * a.width, O = a.out_channels;
  const Channels<const T> grad{{static_cast<const T*>(a.grad_out), nullptr}, {O, 0}};
  const int64_t N = grad.planes() * LANES;
  const T* z = static_cast<const T*>(a.z);
  T* to = static_cast<T*>(a.grad_z);
  float* partial = caller_scratch(BANDS * N);
  parallel_for(BANDS, 1, [&](int64_t band) {
    float* sums = partial + band * N;
    memset(sums, 0, N * sizeof(float));
    for (int64_t pixel = pixels * band / BANDS; pixel < pixels * (band + 1) / BANDS; ++pixel)
      for (int64_t p = 0; p < grad.planes(); ++p) {
        const auto plane = grad.plane(p);
        const int64_t at = pixel * O + p * LANES;
        vec_f32 value = load(plane.data + pixel * O, plane.lanes);
        if (z) {
          value *= gelu_gradient(load(z + at, plane.lanes));
          store(to + at, value, plane.lanes);
        }
        store(sums + p * LANES, load(sums + p * LANES) + value);
      }
  });
  for (int64_t p = 0; a.grad_bias && p < grad.planes(); ++p) {
    vec_f32 sum{};
    for (int64_t band = 0; band < BANDS; ++band) sum += load(partial + band * N + p * LANES);
    store(a.grad_bias + p * LANES, sum, grad.plane(p).lanes);
  }
}

// A task owns a band of tiles and, where there are more threads than bands, a part of the outputs.
template <class Algorithm, class T>
void weight_gradient(const DenseBackward& a, const Channels<const T>& grad) {
  constexpr int F = Algorithm::F, BLOCK = Algorithm::GRADIENT_BLOCK, BANDS = Algorithm::GRADIENT_BANDS;
  const auto in = inputs_of<T>(a);
  const typename Algorithm::Grid grid(a);
  const int64_t planes = in.planes(), K = planes * LANES, wanted = (num_threads() + BANDS - 1) / BANDS;
  const int64_t outs = (grad.planes() + wanted - 1) / wanted;  // planes of a part
  const int64_t parts = (grad.planes() + outs - 1) / outs;
  const int64_t in_step = BLOCK * K + 16, grad_step = BLOCK * outs * LANES + 16;
  const int64_t per_thread = F * (in_step + grad_step), per_task = F * outs * LANES * K;
  float* sums = caller_scratch(BANDS * parts * per_task);
  parallel_for(BANDS * parts, 1, [&](int64_t task) {
    const int64_t band = task / parts, plane = task % parts * outs;
    const int64_t count = grad.planes() - plane < outs ? grad.planes() - plane : outs;
    // (F, pairs of planes of inputs, tiles, 2 L); (F, planes of outputs, tiles, L); (F, outputs, inputs)
    float *v = thread_scratch(per_thread), *d = v + F * in_step, *to = sums + task * per_task;
    const int64_t begin = grid.tiles * band / BANDS, end = grid.tiles * (band + 1) / BANDS;
    if (begin == end) memset(to, 0, per_task * sizeof(float));
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t tiles = end - first < BLOCK ? end - first : BLOCK;
      for (int64_t t = 0; t < tiles; ++t) {
        const auto tile = grid.tile(first + t);
        for (int64_t p = 0; p < planes; ++p) {
          const int64_t pair = p & ~int64_t(1), width = pair + 1 < planes ? 2 * LANES : LANES;
          float* slot = v + pair * LANES * BLOCK + t * width + (p - pair) * LANES;
          Algorithm::template gather<T>(grid, tile, in.plane(p), slot, in_step);
        }
        for (int64_t p = 0; p < count; ++p)
          Algorithm::template spread<T>(grid, tile, grad.plane(plane + p), d + (p * BLOCK + t) * LANES, grad_step);
      }
      for (int64_t f = 0; f < F; ++f)
        for (int64_t o = 0; o < count * LANES; o += G)
          for (int64_t k = 0; k < K; k += 2 * LANES) {
            const float *left = d + f * grad_step + o / LANES * BLOCK * LANES + o % LANES,
                        *right = v + f * in_step + k * BLOCK;
            float* block = to + (f * outs * LANES + o) * K + k;
            k + LANES < K ? product<G, 2>(left, 1, LANES, right, 2 * LANES, tiles, block, K, first > begin)
                          : product<G, 1>(left, 1, LANES, right, LANES, tiles, block, K, first > begin);
          }
    }
  });
  const int64_t C = a.channels + a.skip_channels;
  parallel_for(a.out_channels, 8, [&](int64_t o) {
    for (int64_t p = 0; p < planes; ++p) {
      const auto plane = in.plane(p);
      const float* from = sums + o / (outs * LANES) * per_task + o % (outs * LANES) * K + p * LANES;
      vec_f32 m[F], g[Algorithm::TAPS];
      for (int f = 0; f < F; ++f) {
        m[f] = load(from + f * outs * LANES * K);
        for (int band = 1; band < BANDS; ++band) m[f] += load(from + band * parts * per_task + f * outs * LANES * K);
      }
      Algorithm::points_to_kernel(m, g);
      for (int tap = 0; tap < Algorithm::TAPS; ++tap)
        store(a.grad_weight + (o * Algorithm::TAPS + tap) * C + plane.channel, g[tap], plane.lanes);
    }
  });
}

template <class Algorithm, class T>
void backward_of(const DenseBackward& a) {
  const T* given = static_cast<const T*>(a.z ? a.grad_z : a.grad_out);
  const Channels<const T> grad{{given, nullptr}, {a.out_channels, 0}};
  if (a.z || a.grad_bias) before_convolution<T>(a);
  if (a.grad_weight) weight_gradient<Algorithm, T>(a, grad);
  if (!a.grad_x) return;
  const Channels<T> out{{static_cast<T*>(a.grad_x), static_cast<T*>(a.grad_skip)}, {a.channels, a.skip_channels}};
  using Run = Convolution<Algorithm, T>;
  const int64_t weights = rounded_up(Weights<Algorithm>::floats(grad.planes(), out.planes()), 16);
  float* packed = caller_scratch(weights);
  Weights<Algorithm>::pack(a.weight, a.channels + a.skip_channels, grad, out, true, packed);
  Run::run(a, grad, packed, out, [&](const auto& plane, int64_t pixel, vec_f32 value) {
    store(plane.data + pixel * plane.stride, value, plane.lanes);
  });
}

}  // namespace

void dense_forward(const DenseForward& a) {
  if (a.kernel_size == 1)
    a.bf16 ? forward_of<Pointwise, bf16_t>(a) : forward_of<Pointwise, float>(a);
  else
    a.bf16 ? forward_of<Winograd, bf16_t>(a) : forward_of<Winograd, float>(a);
}

void dense_backward(const DenseBackward& a) {
  if (a.kernel_size == 1)
    a.bf16 ? backward_of<Pointwise, bf16_t>(a) : backward_of<Pointwise, float>(a);
  else
    a.bf16 ? backward_of<Winograd, bf16_t>(a) : backward_of<Winograd, float>(a);
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
