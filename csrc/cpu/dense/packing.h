// The matrices of a convolution in fp32, and how its weights are packed.
//
// A convolution becomes POINTS matrix products: 36 for a 3x3 kernel (winograd.h), 1 for a 1x1 kernel (pointwise.h). A
// tile is 4x4 pixels or one. For each point f:
//
//     M[f] (tiles x outputs)  =  V[f] (tiles x inputs)  times  U[f] (inputs x outputs)
//
//     V   transformed input of mc tiles      (POINTS, mc, K)            K: inputs, rounded up to whole vectors
//     U   transformed weights, packed        (NR panels, POINTS, K, NR)     NR: 2 vectors of outputs; 1 in a last
//     M   what the microkernel computes      (POINTS, mc, NR)               panel without a second
//
//              K -->                       panel 0                 panel 1
//        tile 0 | v v v v ... |            | NR |  input 0         | NR |
//        tile 1 | v v v v ... |  MR rows   | NR |  input 1         | NR |
//          ...                   at once   | .. |    ...           | .. |
//        tile mc - 1                       | NR |  input K - 1     | NR |
//                                            one such for each point before the next panel's
//
// The loops around them are in ../dense.cpp:
//
//     for each mc tiles                                    (threads)
//       transform their input: V                           stays in L2; of a 1x1 kernel in L1
//       for each NR outputs
//         for each point f
//           for each MR of the mc tiles                    microkernel: MR x K times K x NR
//         transform M to pixels; + bias, GELU, + residual; store
#pragma once
#include "../dense.h"
#include "../threads.h"
#include "../vector.h"
#include "microkernel.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// One tensor (pixels, channels), or two whose channels are concatenated, in vectors of LANES channels. The last vector
// of either may have fewer.
template <class T>
struct ConcatTensor {
  T* data[2];
  int64_t channels[2];

  int64_t vectors(int part) const { return (channels[part] + LANES - 1) / LANES; }
  int64_t vectors() const { return vectors(0) + vectors(1); }
  struct ChannelVector {
    T* data;          // of the first pixel
    int64_t stride;   // from pixel to pixel
    int lanes;        // that are channels
    int64_t channel;  // of the first lane
  };
  ChannelVector vector(int64_t n) const {
    const int part = n >= vectors(0);
    const int64_t first = (n - part * vectors(0)) * LANES, left = channels[part] - first;
    return {data[part] + first, channels[part], int(left < LANES ? left : LANES), part * channels[0] + first};
  }
};

// Vector n of `vectors` in its panel: panels are pairs of vectors, but for a last one alone.
struct PanelPosition {
  int64_t first, width;  // the panel's first vector; its floats in a row
  PanelPosition(int64_t n, int64_t vectors) : first(n & ~int64_t(1)), width(first + 1 < vectors ? NR : LANES) {}
};

template <class Algorithm>
struct PackedWeights {
  static int64_t floats(int64_t in_vectors, int64_t out_vectors) {
    return Algorithm::POINTS * in_vectors * out_vectors * LANES * LANES;
  }
  // weight (O, taps, C). in, out: the tensors that are summed over and computed. transposed: for the input's gradient,
  // where C is computed, O is summed over, and taps are in reverse.
  template <class In, class Out>
  static void pack(const float* weight, int64_t channels, const In& in, const Out& out, bool transposed,
                   float* packed) {
    constexpr int TAPS = Algorithm::TAPS, POINTS = Algorithm::POINTS, VECTORS_PER_CHUNK = POINTS == 1 ? 32 : 4;
    const int64_t K = in.vectors() * LANES;
    const int64_t out_stride = transposed ? 1 : TAPS * channels, in_stride = transposed ? TAPS * channels : 1;
    parallel_for(out.vectors() * in.vectors(), VECTORS_PER_CHUNK, [&](int64_t task) {
      const int64_t p = task / in.vectors(), q = task % in.vectors();
      const auto out_vector = out.vector(p);
      const auto in_vector = in.vector(q);
      const PanelPosition panel(p, out.vectors());
      for (int k = 0; k < LANES; ++k) {
        vec_f32 g[TAPS], u[POINTS];
        for (int tap = 0; tap < TAPS; ++tap) {
          float lanes[LANES];
          for (int n = 0; n < LANES; ++n) {
            const int from_tap = transposed ? TAPS - 1 - tap : tap;
            lanes[n] = n < out_vector.lanes && k < in_vector.lanes
                           ? weight[(out_vector.channel + n) * out_stride + from_tap * channels +
                                    (in_vector.channel + k) * in_stride]
                           : 0.0f;
          }
          g[tap] = load(lanes);
        }
        Algorithm::transform_weight(g, u);
        float* at =
            packed + POINTS * panel.first * LANES * K + (q * LANES + k) * panel.width + (p - panel.first) * LANES;
        for (int f = 0; f < POINTS; ++f) store(at + f * panel.width * K, u[f]);
      }
    });
  }
};

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
