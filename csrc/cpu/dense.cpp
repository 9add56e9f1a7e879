// Convolutions in fp32 arithmetic, whatever the activations are. Compiled once for each instruction set
// (SINFUSION_ISA_NAMESPACE, SINFUSION_LANES).
//
//   dense/packing.h      the matrices of a convolution, with a drawing; the weights' panels
//   dense/winograd.h     the transforms of a 3x3 convolution
//   dense/pointwise.h    a 1x1 convolution
//   dense/microkernel.h  the innermost product
//   dense/gelu.h         GELU and its gradient
//
// This file has the loops around the microkernel: forward and input gradient, then the weight gradient. Every sum is
// taken in an order that the shape fixes, so results do not depend on the number of threads.
//
// The C++ library stays out of this file: see depthwise_norm.cpp.
#include "dense.h"

#include <string.h>

#include "dense/gelu.h"
#include "dense/microkernel.h"
#include "dense/packing.h"
#include "dense/pointwise.h"
#include "dense/winograd.h"
#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int BIAS_SPLIT_K = 16;  // parts of the bias gradient's sum over pixels

// Floats between the matrices of two points, beyond what they need: else the same rows of all of them would be in the
// same sets of the cache.
constexpr int64_t POINT_PADDING = 16;

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The forward, and the input's gradient.
template <class Algorithm, class T>
struct Convolution {
  static constexpr int POINTS = Algorithm::POINTS;

  // write(vector, pixel, value) takes the results.
  template <class Out, class Write>
  static void run(const Dense& a, const ConcatTensor<const T>& in, const float* packed, const Out& out, Write&& write) {
    const typename Algorithm::Tiles tiles(a);
    const int64_t K = in.vectors() * LANES, mc = Algorithm::mc(K);
    const int64_t v_stride = mc * K + POINT_PADDING, m_stride = mc * NR + POINT_PADDING;  // from point to point
    constexpr bool unpacked = POINTS == 1 && sizeof(T) == sizeof(float);  // rows of V are the pixels in the tensors
    parallel_for((tiles.count + mc - 1) / mc, 1, [&](int64_t block) {
      const int64_t first = block * mc;
      float *v = thread_scratch(POINTS * (v_stride + m_stride)), *m = v + POINTS * v_stride;
      const int64_t count = tiles.count - first < mc ? tiles.count - first : mc;
      const int64_t unpacked_count = unpacked ? count / MR * MR : 0;  // MR rows that begin in the tensor end there, too
      for (int64_t t = unpacked_count; t < count; ++t) {
        const auto tile = tiles.tile(first + t);
        for (int64_t n = 0; n < in.vectors(); ++n)
          Algorithm::template transform_input<T>(tiles, tile, in.vector(n), v + t * K + n * LANES, v_stride);
      }
      for (int64_t n = 0; n < out.vectors(); n += 2) {
        const PanelPosition panel(n, out.vectors());
        for (int f = 0; f < POINTS; ++f) {
          const float* b = packed + (POINTS * n * LANES + f * panel.width) * K;
          for (int64_t t = 0; t < count; t += MR) {  // rows of V beyond `count` are garbage, and so are those of M
            float* c = m + f * m_stride + t * panel.width;
            t < unpacked_count ? multiply_pixels(in, first + t, b, panel.width, c)
                               : multiply(v + f * v_stride + t * K, K, b, panel.width, K, c, false);
          }
        }
        for (int64_t t = 0; t < count; ++t) {
          const auto tile = tiles.tile(first + t);
          for (int64_t offset = 0; offset < panel.width; offset += LANES) {
            const auto vector = out.vector(n + offset / LANES);
            Algorithm::transform_output(tiles, tile, m + t * panel.width + offset, m_stride,
                                        [&](vec_f32 value, int64_t pixel) { write(vector, pixel, value); });
          }
        }
      }
    });
  }

 private:
  static ALWAYS_INLINE void multiply(const float* a, int64_t lda, const float* b, int64_t width, int64_t k, float* c,
                                     bool accumulate) {
    width == NR ? gemm_microkernel<MR, 2>(a, lda, 1, b, NR, k, c, NR, accumulate)
                : gemm_microkernel<MR, 1>(a, lda, 1, b, LANES, k, c, LANES, accumulate);
  }
  // MR pixels as they lie in one tensor or two.
  static ALWAYS_INLINE void multiply_pixels(const ConcatTensor<const T>& in, int64_t pixel, const float* b,
                                            int64_t width, float* c) {
    for (int part = 0; part < 2 && in.channels[part]; ++part)
      multiply(reinterpret_cast<const float*>(in.data[part]) + pixel * in.channels[part], in.channels[part],
               b + part * in.vectors(0) * LANES * width, width, in.channels[part], c, part);
  }
};

template <class T>
ConcatTensor<const T> input_of(const Dense& a) {
  return {{static_cast<const T*>(a.x), static_cast<const T*>(a.skip)}, {a.channels, a.skip_channels}};
}

template <class Algorithm, class In, class Out>
const float* packed_weights(const Dense& a, const In& in, const Out& out, bool transposed) {
  float* packed = caller_scratch(round_up(PackedWeights<Algorithm>::floats(in.vectors(), out.vectors()), 16));
  PackedWeights<Algorithm>::pack(a.weight, a.channels + a.skip_channels, in, out, transposed, packed);
  return packed;
}

template <class Algorithm, class T>
void forward_with(const DenseForward& a) {
  const auto in = input_of<T>(a);
  const ConcatTensor<T> out{{static_cast<T*>(a.out), nullptr}, {a.out_channels, 0}};
  const float* packed = packed_weights<Algorithm>(a, in, out, false);
  T* z = static_cast<T*>(a.z);
  const T* residual = static_cast<const T*>(a.residual);
  Convolution<Algorithm, T>::run(a, in, packed, out, [&](const auto& vector, int64_t pixel, vec_f32 value) {
    const int64_t at = pixel * a.out_channels + vector.channel;
    if (a.bias) value += load(a.bias + vector.channel, vector.lanes);
    if (z) store(z + at, value, vector.lanes);
    if (a.gelu) value = gelu(value);
    if (residual) value += load(residual + at, vector.lanes);
    store(vector.data + pixel * vector.stride, value, vector.lanes);
  });
}

// grad_z = grad_out * GELU'(z) if there was a GELU; the gradient of the bias.
template <class T>
void gelu_and_bias_gradient(const DenseBackward& a) {
  const int64_t pixels = a.batch * a.height * a.width, O = a.out_channels;
  const ConcatTensor<const T> grad{{static_cast<const T*>(a.grad_out), nullptr}, {O, 0}};
  const int64_t N = grad.vectors() * LANES;
  const T* z = static_cast<const T*>(a.z);
  T* grad_z = static_cast<T*>(a.grad_z);
  float* sums = caller_scratch(BIAS_SPLIT_K * N);
  parallel_for(BIAS_SPLIT_K, 1, [&](int64_t part) {
    float* part_sums = sums + part * N;
    memset(part_sums, 0, N * sizeof(float));
    for (int64_t pixel = pixels * part / BIAS_SPLIT_K; pixel < pixels * (part + 1) / BIAS_SPLIT_K; ++pixel)
      for (int64_t n = 0; n < grad.vectors(); ++n) {
        const auto vector = grad.vector(n);
        const int64_t at = pixel * O + n * LANES;
        vec_f32 value = load(vector.data + pixel * O, vector.lanes);
        if (z) {
          value *= gelu_gradient(load(z + at, vector.lanes));
          store(grad_z + at, value, vector.lanes);
        }
        store(part_sums + n * LANES, load(part_sums + n * LANES) + value);
      }
  });
  for (int64_t n = 0; a.grad_bias && n < grad.vectors(); ++n) {
    vec_f32 sum{};
    for (int64_t part = 0; part < BIAS_SPLIT_K; ++part) sum += load(sums + part * N + n * LANES);
    store(a.grad_bias + n * LANES, sum, grad.vector(n).lanes);
  }
}

// The weight gradient: for each point, (outputs, inputs) = the transformed gradient (tiles, outputs), transposed, times
// the transformed input (tiles, inputs). The sum over tiles is cut into SPLIT_K parts; where there are more threads
// than these, the outputs are cut as well.
template <class Algorithm, class T>
class WeightGradient {
 public:
  WeightGradient(const DenseBackward& a, const ConcatTensor<const T>& grad)
      : a_(a),
        in_(input_of<T>(a)),
        grad_(grad),
        tiles_(a),
        K_(in_.vectors() * LANES),
        part_vectors_(ceil_div(grad.vectors(), ceil_div(num_threads(), SPLIT_K))),
        parts_(ceil_div(grad.vectors(), part_vectors_)),
        in_stride_(KC * K_ + POINT_PADDING),
        grad_stride_(KC * part_vectors_ * LANES + POINT_PADDING),
        task_floats_(POINTS * part_vectors_ * LANES * K_) {}

  void run() const {
    float* sums = caller_scratch(SPLIT_K * parts_ * task_floats_);  // (SPLIT_K, parts, POINTS, outputs, K)
    parallel_for(SPLIT_K * parts_, 1, [&](int64_t task) { sum_part(task, sums + task * task_floats_); });
    reduce(sums);
  }

 private:
  static constexpr int POINTS = Algorithm::POINTS, KC = Algorithm::GRADIENT_KC, SPLIT_K = Algorithm::SPLIT_K;
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

  void sum_part(int64_t task, float* sums) const {
    const int64_t k_part = task / parts_, first_vector = task % parts_ * part_vectors_;
    const int64_t left = grad_.vectors() - first_vector, vectors = left < part_vectors_ ? left : part_vectors_;
    // v (POINTS, pairs of input vectors, KC, NR); d (POINTS, output vectors, KC, LANES)
    float *v = thread_scratch(POINTS * (in_stride_ + grad_stride_)), *d = v + POINTS * in_stride_;
    const int64_t begin = tiles_.count * k_part / SPLIT_K, end = tiles_.count * (k_part + 1) / SPLIT_K;
    if (begin == end) memset(sums, 0, task_floats_ * sizeof(float));
    for (int64_t first = begin; first < end; first += KC) {
      const int64_t count = end - first < KC ? end - first : KC;
      pack(first, count, first_vector, vectors, v, d);
      for (int f = 0; f < POINTS; ++f)
        for (int64_t o = 0; o < vectors * LANES; o += GRADIENT_MR)
          for (int64_t k = 0; k < K_; k += NR) {
            const float* left = d + f * grad_stride_ + o / LANES * KC * LANES + o % LANES;
            const float* right = v + f * in_stride_ + k * KC;
            float* c = sums + (f * part_vectors_ * LANES + o) * K_ + k;
            k + LANES < K_
                ? gemm_microkernel<GRADIENT_MR, 2>(left, 1, LANES, right, NR, count, c, K_, first > begin)
                : gemm_microkernel<GRADIENT_MR, 1>(left, 1, LANES, right, LANES, count, c, K_, first > begin);
          }
    }
  }
  void pack(int64_t first, int64_t count, int64_t first_vector, int64_t vectors, float* v, float* d) const {
    for (int64_t t = 0; t < count; ++t) {
      const auto tile = tiles_.tile(first + t);
      for (int64_t n = 0; n < in_.vectors(); ++n) {
        const PanelPosition panel(n, in_.vectors());
        float* to = v + panel.first * LANES * KC + t * panel.width + (n - panel.first) * LANES;
        Algorithm::template transform_input<T>(tiles_, tile, in_.vector(n), to, in_stride_);
      }
      for (int64_t n = 0; n < vectors; ++n)
        Algorithm::template transform_gradient<T>(tiles_, tile, grad_.vector(first_vector + n),
                                                  d + (n * KC + t) * LANES, grad_stride_);
    }
  }
  void reduce(const float* sums) const {
    constexpr int TAPS = Algorithm::TAPS, OUTPUTS_PER_CHUNK = 8;
    const int64_t C = a_.channels + a_.skip_channels, part_outputs = part_vectors_ * LANES;
    parallel_for(a_.out_channels, OUTPUTS_PER_CHUNK, [&](int64_t o) {
      for (int64_t n = 0; n < in_.vectors(); ++n) {
        const auto vector = in_.vector(n);
        const float* from = sums + o / part_outputs * task_floats_ + o % part_outputs * K_ + n * LANES;
        vec_f32 m[POINTS], g[TAPS];
        for (int f = 0; f < POINTS; ++f) {
          m[f] = load(from + f * part_outputs * K_);
          for (int k_part = 1; k_part < SPLIT_K; ++k_part)
            m[f] += load(from + k_part * parts_ * task_floats_ + f * part_outputs * K_);
        }
        Algorithm::transform_weight_gradient(m, g);
        for (int tap = 0; tap < TAPS; ++tap)
          store(a_.grad_weight + (o * TAPS + tap) * C + vector.channel, g[tap], vector.lanes);
      }
    });
  }

  const DenseBackward& a_;
  const ConcatTensor<const T> in_, grad_;
  const typename Algorithm::Tiles tiles_;
  const int64_t K_;                     // inputs, rounded up to whole vectors
  const int64_t part_vectors_, parts_;  // the outputs' cut
  const int64_t in_stride_, grad_stride_, task_floats_;
};

template <class Algorithm, class T>
void backward_with(const DenseBackward& a) {
  const T* before_gelu = static_cast<const T*>(a.z ? a.grad_z : a.grad_out);  // the gradient there
  const ConcatTensor<const T> grad{{before_gelu, nullptr}, {a.out_channels, 0}};
  if (a.z || a.grad_bias) gelu_and_bias_gradient<T>(a);
  if (a.grad_weight) WeightGradient<Algorithm, T>(a, grad).run();
  if (!a.grad_x) return;
  const ConcatTensor<T> grad_in{{static_cast<T*>(a.grad_x), static_cast<T*>(a.grad_skip)},
                                {a.channels, a.skip_channels}};
  const float* packed = packed_weights<Algorithm>(a, grad, grad_in, true);
  Convolution<Algorithm, T>::run(a, grad, packed, grad_in, [&](const auto& vector, int64_t pixel, vec_f32 value) {
    store(vector.data + pixel * vector.stride, value, vector.lanes);
  });
}

}  // namespace

void dense_forward(const DenseForward& a) {
  if (a.kernel_size == 1)
    a.bf16 ? forward_with<Pointwise, bf16_t>(a) : forward_with<Pointwise, float>(a);
  else
    a.bf16 ? forward_with<Winograd, bf16_t>(a) : forward_with<Winograd, float>(a);
}

void dense_backward(const DenseBackward& a) {
  if (a.kernel_size == 1)
    a.bf16 ? backward_with<Pointwise, bf16_t>(a) : backward_with<Pointwise, float>(a);
  else
    a.bf16 ? backward_with<Winograd, bf16_t>(a) : backward_with<Winograd, float>(a);
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
