// A 1x1 convolution with the interface of winograd.h: a tile is a pixel, and nothing is transformed.
#pragma once
#include "microkernel.h"
#include "packing.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

struct Pointwise {
  static constexpr int POINTS = 1, TAPS = 1;
  static constexpr int64_t L1_INPUT_BYTES = 14 << 10;  // of a block; the panel of weights and the next need as much
  static constexpr int GRADIENT_KC = 128,
                       SPLIT_K = 16;  // pixels that a weight gradient packs at once; parts of its sum

  // Pixels of a block: so many that their inputs stay in L1 from panel to panel.
  static int64_t mc(int64_t K) {
    const int64_t fit = L1_INPUT_BYTES / (K * int64_t(sizeof(float))) / MR * MR;
    return fit < 2 * MR ? 2 * MR : fit > 8 * MR ? 8 * MR : fit;
  }

  struct Tiles {
    int64_t count;
    explicit Tiles(const Dense& a) : count(a.batch * a.height * a.width) {}
    using Tile = int64_t;
    Tile tile(int64_t t) const { return t; }
  };
  static void transform_weight(const vec_f32* g, vec_f32* out) { *out = *g; }
  static void transform_weight_gradient(const vec_f32* m, vec_f32* out) { *out = *m; }
  template <class T>
  static void transform_input(const Tiles&, int64_t pixel, const typename ConcatTensor<const T>::ChannelVector& vector,
                              float* out, int64_t) {
    store(out, load(vector.data + pixel * vector.stride, vector.lanes));
  }
  template <class Write>
  static void transform_output(const Tiles&, int64_t pixel, const float* m, int64_t, Write&& write) {
    write(load(m), pixel);
  }
  template <class T>
  static void transform_gradient(const Tiles& tiles, int64_t pixel,
                                 const typename ConcatTensor<const T>::ChannelVector& vector, float* out,
                                 int64_t stride) {
    transform_input<T>(tiles, pixel, vector, out, stride);
  }
};

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
