// GELU and its gradient in fp32 vectors, by a polynomial of Mills' ratio.
#pragma once
#include "../vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

template <int N>
inline vec_f32 polynomial(vec_f32 x, const float (&coefficients)[N]) {  // the highest power first
  vec_f32 sum = vec_f32{} + coefficients[0];
  for (int i = 1; i < N; ++i) sum = sum * x + coefficients[i];
  return sum;
}
constexpr float EXP2_COEFFICIENTS[] = {1.3276457e-3f, 9.6755412e-3f, 5.5507133e-2f, 0.2402212f, 0.69314697f, 1.0f};
constexpr float MILLS_COEFFICIENTS[] = {0.11796315f, -0.45063939f, 0.45363367f, 0.066515412f,
                                        0.3502366f,  0.3553686f,   0.36023534f};

// The standard normal's density phi(x) and upper tail Q(x) = 1 - Phi(x), for x in [0, 14]. Q / phi is Mills' ratio, of
// which this is a minimax polynomial in t = 1 / (1 + 0.36 x), with a relative error of 9e-7.
inline void normal_density_and_tail(vec_f32 x, vec_f32& density, vec_f32& tail) {
  const vec_f32 exponent = x * x * -0.72134752f;                            // of 2
  const vec_i32 whole = __builtin_convertvector(exponent - 0.5f, vec_i32);  // truncates, and the exponent is negative
  const vec_f32 f = exponent - __builtin_convertvector(whole, vec_f32);
  const vec_f32 power = polynomial(f, EXP2_COEFFICIENTS);
  const vec_i32 least = vec_i32{} - 126;
  const vec_i32 clamped = whole > least ? whole : least;
  density = power * (vec_f32)((clamped + 127) << 23) * 0.39894228f;
  const vec_f32 t = 1.0f / (1.0f + 0.36f * x);
  tail = density * polynomial(t, MILLS_COEFFICIENTS) * t;
}
inline vec_f32 clamped_magnitude(vec_f32 x) {
  const vec_f32 magnitude = x < 0.0f ? -x : x;
  return magnitude < 14.0f ? magnitude : vec_f32{} + 14.0f;
}
// GELU(x) = x Phi(x) = max(x, 0) - |x| Q(|x|)
inline vec_f32 gelu(vec_f32 x) {
  vec_f32 density, tail;
  const vec_f32 magnitude = clamped_magnitude(x);
  normal_density_and_tail(magnitude, density, tail);
  return (x < 0.0f ? vec_f32{} : x) - magnitude * tail;
}
// GELU'(x) = Phi(x) + x phi(x); far from 0 the second term is 0, but NaN and infinity stay what they are (x - x).
inline vec_f32 gelu_gradient(vec_f32 x) {
  vec_f32 density, tail;
  normal_density_and_tail(clamped_magnitude(x), density, tail);
  return (x < 0.0f ? tail : 1.0f - tail) + (x < 14.0f && x > -14.0f ? x * density : x - x);
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
