// GELU and its gradient by table: piecewise cubics whose coefficients lie in registers, so that evaluating one takes a
// permute for each coefficient and no memory.
#pragma once
#include <string.h>

#include "simd.h"

namespace sinfusion {
namespace {

// Cubics that approximate f(|z|) on [0, 31 / SCALE], one for each interval of length 1 / SCALE around n / SCALE. They
// interpolate f at the Chebyshev nodes of their interval.
struct PiecewiseCubic {
  static constexpr float SCALE = 5.5f;
  alignas(64) float coefficients[4][32];  // the highest power first; cubic 31 is 0

  explicit PiecewiseCubic(double (*f)(double)) {
    memset(coefficients, 0, sizeof coefficients);
    constexpr double node[4] = {-0.46193977, -0.19134172, 0.19134172, 0.46193977};
    for (int n = 0; n < 31; ++n) {
      double d[4];  // divided differences
      for (int i = 0; i < 4; ++i) d[i] = f((n + node[i]) / SCALE);
      for (int order = 1; order < 4; ++order)
        for (int i = 3; i >= order; --i) d[i] = (d[i] - d[i - 1]) / (node[i] - node[i - order]);
      double c[4] = {d[3], 0, 0, 0};  // Newton's form, multiplied out
      for (int i = 2, degree = 0; i >= 0; --i) {
        ++degree;
        for (int k = degree; k > 0; --k) c[k] = c[k] - node[i] * c[k - 1];
        c[degree] += d[i];
      }
      for (int i = 0; i < 4; ++i) coefficients[i][n] = float(c[i]);
    }
  }
};

// With Phi and phi the distribution and the density of a standard normal:
//   GELU(z)  = z Phi(z)             = max(z, 0) - |z| Q(|z|), where Q(z) = 1 - Phi(z)
//   GELU'(z) = Phi(z) + z phi(z), which at -z is Q(z) - z phi(z), and at z is 1 minus that
double normal_upper_tail(double z) { return 0.5 * __builtin_erfc(z * 0.70710678118654752); }
double gelu_gradient_at_minus(double z) {
  return normal_upper_tail(z) - z * __builtin_exp(-0.5 * z * z) * 0.39894228040143268;
}

enum class Activation { none, gelu, gelu_gradient };

const PiecewiseCubic& table_of(Activation activation) {
  static const PiecewiseCubic tail{normal_upper_tail}, gradient{gelu_gradient_at_minus};
  return activation == Activation::gelu_gradient ? gradient : tail;
}

// Evaluates an activation; keep one alive in a loop, and its table stays in registers.
template <Activation A>
class GeluTable {
 public:
  GeluTable() {
    for (int i = 0; i < 4; ++i) {
      low_[i] = _mm512_load_ps(table_of(A).coefficients[i]);
      high_[i] = _mm512_load_ps(table_of(A).coefficients[i] + 16);
    }
  }
  ALWAYS_INLINE __m512 operator()(__m512 z) const {
    const __m512 magnitude = _mm512_min_ps(_mm512_set1_ps(31 / PiecewiseCubic::SCALE), _mm512_abs_ps(z));  // NaN stays
    // u = SCALE |z| is rounded to the interval's index by adding 1.5 * 2^23: the index is in the last bits of the sum.
    const __m512 rounding = _mm512_set1_ps(12582912.0f);
    const __m512 u = magnitude * _mm512_set1_ps(PiecewiseCubic::SCALE), shifted = u + rounding;
    const __m512 f = u - (shifted - rounding);
    const auto coefficient = [&](int i) {
      return _mm512_permutex2var_ps(low_[i], _mm512_castps_si512(shifted), high_[i]);
    };
    __m512 v = coefficient(0);
    for (int i = 1; i < 4; ++i) v = _mm512_fmadd_ps(v, f, coefficient(i));
    if (A == Activation::gelu) return _mm512_fnmadd_ps(magnitude, v, _mm512_max_ps(_mm512_setzero_ps(), z));
    const __mmask16 positive = ~_mm512_movepi32_mask(_mm512_castps_si512(z));
    return _mm512_mask_sub_ps(v, positive, _mm512_set1_ps(1), v);
  }

 private:
  __m512 low_[4], high_[4];
};
template <>
class GeluTable<Activation::none> {};

}  // namespace
}  // namespace sinfusion
