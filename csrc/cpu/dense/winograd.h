// Winograd's F(4x4, 3x3) (Lavin and Gray 2016): a tile of 4x4 outputs Y of a 3x3 convolution with g takes 36
// multiplications, where direct sums take 144. d are the 6x6 inputs under the tile:
//
//     Y  = A^T [ (G g G^T) * (B^T d B) ] A         * elementwise: the 36 points of the matrix products in packing.h
//     dg = G^T [ (A dY A^T) * (B^T d B) ] G        the weight gradient, summed over tiles before G
//
// The input's gradient is the same convolution of dY with the reversed kernel. Each transform is a 1-D transform of the
// columns, then of the rows; `partial` is what is in between.
#pragma once
#include "microkernel.h"
#include "packing.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// The interpolation points 0, P, -P, Q, -Q and infinity. Of those tried these have the smallest error, 5 times that of
// a direct convolution in fp32 (0, 1, -1, 2, -2 have 11 times). What P and -P share is computed once: the even and the
// odd part of a polynomial there; likewise for Q.
constexpr float P = 2.0f / 3, Q = 3.0f / 2, P2 = P * P, Q2 = Q * Q, P3 = P2 * P, Q3 = Q2 * Q;
constexpr float NP = 0.5f / (P2 * (P2 - Q2)), NQ = 0.5f / (Q2 * (Q2 - P2));

struct Winograd {
  static constexpr int POINTS = 36, TAPS = 9;
  static constexpr int GRADIENT_KC = 64, SPLIT_K = 4;  // tiles that a weight gradient packs at once; parts of its sum
  static int64_t mc(int64_t) { return 2 * MR; }        // tiles of a block: V, and a panel of U, stay in L2

  struct Tiles {
    int64_t height, width, rows, columns, count;
    explicit Tiles(const Dense& a)
        : height(a.height),
          width(a.width),
          rows((height + 3) / 4),
          columns((width + 3) / 4),
          count(a.batch * rows * columns) {}
    struct Tile {
      int64_t image, y, x;  // the image's first pixel; the tile's upper left corner
    };
    Tile tile(int64_t t) const {
      const int64_t row = t / columns;
      return {row / rows * height * width, row % rows * 4, t % columns * 4};
    }
  };

  static void transform_weight(const vec_f32* g, vec_f32* out) {  // G g G^T: 3x3 to 6x6
    vec_f32 partial[6][3];
    const auto transform_1d = [](vec_f32 g0, vec_f32 g1, vec_f32 g2, vec_f32* to, int stride) {
      const vec_f32 even_p = NP * (g0 + P2 * g2), odd_p = NP * P * g1, even_q = NQ * (g0 + Q2 * g2),
                    odd_q = NQ * Q * g1;
      to[0] = g0, to[stride] = even_p + odd_p, to[2 * stride] = even_p - odd_p, to[3 * stride] = even_q + odd_q,
      to[4 * stride] = even_q - odd_q;
      to[5 * stride] = g2;
    };
    for (int j = 0; j < 3; ++j) transform_1d(g[j], g[3 + j], g[6 + j], &partial[0][j], 3);
    for (int i = 0; i < 6; ++i) transform_1d(partial[i][0], partial[i][1], partial[i][2], out + 6 * i, 1);
  }
  static void transform_weight_gradient(const vec_f32* m, vec_f32* out) {  // G^T m G: 6x6 to 3x3
    vec_f32 partial[3][6];
    const auto transform_1d = [](const vec_f32* m, int stride, vec_f32* to, int to_stride) {
      const vec_f32 even_p = NP * (m[stride] + m[2 * stride]), odd_p = NP * (m[stride] - m[2 * stride]);
      const vec_f32 even_q = NQ * (m[3 * stride] + m[4 * stride]), odd_q = NQ * (m[3 * stride] - m[4 * stride]);
      to[0] = m[0] + even_p + even_q;
      to[to_stride] = P * odd_p + Q * odd_q;
      to[2 * to_stride] = P2 * even_p + Q2 * even_q + m[5 * stride];
    };
    for (int j = 0; j < 6; ++j) transform_1d(m + j, 6, &partial[0][j], 6);
    for (int i = 0; i < 3; ++i) transform_1d(partial[i], 1, out + 3 * i, 1);
  }

  // B^T d B of the 6x6 pixels under a tile; the 36 results are `stride` floats apart.
  template <class T>
  static void transform_input(const Tiles& tiles, const typename Tiles::Tile& tile,
                              const typename ConcatTensor<const T>::ChannelVector& vector, float* out, int64_t stride) {
    vec_f32 partial[6][6];
    const auto transform_1d = [](vec_f32 d0, vec_f32 d1, vec_f32 d2, vec_f32 d3, vec_f32 d4, vec_f32 d5, vec_f32* to) {
      constexpr float S = P2 + Q2;
      const vec_f32 even_p = d4 - Q2 * d2, odd_p = P * d3 - Q * d1, even_q = d4 - P2 * d2, odd_q = Q * d3 - P * d1;
      to[0] = d0 - S * d2 + d4, to[1] = even_p + odd_p, to[2] = even_p - odd_p, to[3] = even_q + odd_q,
      to[4] = even_q - odd_q;
      to[5] = d1 - S * d3 + d5;
    };
    const T* corner = vector.data + (tile.image + (tile.y - 1) * tiles.width + tile.x - 1) * vector.stride;
    const int64_t right = vector.stride, down = tiles.width * vector.stride;
    const bool inside = tile.y > 0 && tile.x > 0 && tile.y + 5 <= tiles.height && tile.x + 5 <= tiles.width;
    if (inside && vector.lanes == LANES) {
      for (int j = 0; j < 6; ++j) {
        const T* p = corner + j * right;
        transform_1d(load(p), load(p + down), load(p + 2 * down), load(p + 3 * down), load(p + 4 * down),
                     load(p + 5 * down), partial[j]);
      }
    } else {
      for (int j = 0; j < 6; ++j) {
        vec_f32 d[6];
        for (int i = 0; i < 6; ++i) {
          const int64_t y = tile.y - 1 + i, x = tile.x - 1 + j;
          const bool in_image = y >= 0 && y < tiles.height && x >= 0 && x < tiles.width;
          d[i] = in_image ? load(corner + i * down + j * right, vector.lanes) : vec_f32{};
        }
        transform_1d(d[0], d[1], d[2], d[3], d[4], d[5], partial[j]);
      }
    }
    for (int i = 0; i < 6; ++i) {
      vec_f32 to[6];
      transform_1d(partial[0][i], partial[1][i], partial[2][i], partial[3][i], partial[4][i], partial[5][i], to);
      for (int j = 0; j < 6; ++j) store(out + (6 * i + j) * stride, to[j]);
    }
  }

  // A^T m A; the 36 numbers of m are `stride` floats apart. Calls write(value, pixel) for each output in the image.
  template <class Write>
  static void transform_output(const Tiles& tiles, const typename Tiles::Tile& tile, const float* m, int64_t stride,
                               Write&& write) {
    vec_f32 partial[4][6];
    const auto transform_1d = [](vec_f32 m0, vec_f32 m1, vec_f32 m2, vec_f32 m3, vec_f32 m4, vec_f32 m5, vec_f32* to,
                                 int to_stride) {
      const vec_f32 even_p = m1 + m2, odd_p = m1 - m2, even_q = m3 + m4, odd_q = m3 - m4;
      to[0] = m0 + even_p + even_q, to[to_stride] = P * odd_p + Q * odd_q,
      to[2 * to_stride] = P2 * even_p + Q2 * even_q;
      to[3 * to_stride] = P3 * odd_p + Q3 * odd_q + m5;
    };
    for (int j = 0; j < 6; ++j, m += stride)
      transform_1d(load(m), load(m + 6 * stride), load(m + 12 * stride), load(m + 18 * stride), load(m + 24 * stride),
                   load(m + 30 * stride), &partial[0][j], 6);
    for (int i = 0; i < 4 && tile.y + i < tiles.height; ++i) {
      vec_f32 y[4];
      transform_1d(partial[i][0], partial[i][1], partial[i][2], partial[i][3], partial[i][4], partial[i][5], y, 1);
      const int64_t first = tile.image + (tile.y + i) * tiles.width + tile.x;
      for (int j = 0; j < 4 && tile.x + j < tiles.width; ++j) write(y[j], first + j);
    }
  }

  // A dY A^T of a tile of 4x4 gradients; the 36 results are `stride` floats apart.
  template <class T>
  static void transform_gradient(const Tiles& tiles, const typename Tiles::Tile& tile,
                                 const typename ConcatTensor<const T>::ChannelVector& vector, float* out,
                                 int64_t stride) {
    vec_f32 partial[4][6];
    const auto transform_1d = [](vec_f32 y0, vec_f32 y1, vec_f32 y2, vec_f32 y3, vec_f32* to) {
      const vec_f32 even_p = y0 + P2 * y2, odd_p = P * y1 + P3 * y3, even_q = y0 + Q2 * y2, odd_q = Q * y1 + Q3 * y3;
      to[0] = y0, to[1] = even_p + odd_p, to[2] = even_p - odd_p, to[3] = even_q + odd_q, to[4] = even_q - odd_q,
      to[5] = y3;
    };
    const T* corner = vector.data + (tile.image + tile.y * tiles.width + tile.x) * vector.stride;
    for (int j = 0; j < 4; ++j) {
      vec_f32 y[4];
      for (int i = 0; i < 4; ++i) {
        const bool in_image = tile.y + i < tiles.height && tile.x + j < tiles.width;
        y[i] = in_image ? load(corner + (i * tiles.width + j) * vector.stride, vector.lanes) : vec_f32{};
      }
      transform_1d(y[0], y[1], y[2], y[3], partial[j]);
    }
    for (int i = 0; i < 6; ++i) {
      vec_f32 to[6];
      transform_1d(partial[0][i], partial[1][i], partial[2][i], partial[3][i], to);
      for (int j = 0; j < 6; ++j) store(out + (6 * i + j) * stride, to[j]);
    }
  }
};

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
