// Adam, the exponential moving average of the weights and their bf16 copy, in one pass. V is a float, or on the CPU a
// vector of them.
//
// For host and device. Results are the same bits everywhere because CMakeLists.txt forbids the compilers to contract
// a * b + c to a fused multiply-add, which rounds once.
#pragma once
#include <math.h>

#include "bf16.h"

namespace sinfusion {

// Arguments are checked in Python (sinfusion/ops/adam_ema.py).
struct AdamEma {
  float *value, *exp_avg, *exp_avg_sq, *average;
  bf16_t* copy;  // bf16, or null
  const float* gradient;
  const float* coefficients;  // (3), see AdamEmaCoefficients; on the device
  int64_t count;
  float one_minus_beta1;  // 1 - beta1
  float beta2;
  float one_minus_beta2;  // 1 - beta2
  float eps;
};

struct AdamEmaCoefficients {
  float step_size;       // rate / (1 - beta1^t)
  float sqrt_factor;     // 1 / sqrt(1 - beta2^t)
  float average_weight;  // 1 - decay of the average
};
SINFUSION_HD static inline AdamEmaCoefficients coefficients_of(const AdamEma& a) {
  return {a.coefficients[0], a.coefficients[1], a.coefficients[2]};
}

// As torch.lerp: exactly `from` with weight 0, exactly `to` with weight 1.
template <class V>
SINFUSION_HD static inline V lerp(V from, V to, float weight) {
  const V difference = to - from;
  if (weight < 0.5f) return from + weight * difference;
  return to - difference * (1 - weight);
}

// In two halves, with the square root between them: vectors have an instruction of their own for it.
template <class V>
SINFUSION_HD static inline void update_moments(const AdamEma& a, V gradient, V& exp_avg, V& exp_avg_sq) {
  exp_avg = lerp(exp_avg, gradient, a.one_minus_beta1);
  exp_avg_sq = a.beta2 * exp_avg_sq + a.one_minus_beta2 * gradient * gradient;
}
template <class V>
SINFUSION_HD static inline void update_value(const AdamEma& a, const AdamEmaCoefficients& c, V exp_avg,
                                             V sqrt_exp_avg_sq, V& value, V& average) {
  value -= c.step_size * exp_avg / (sqrt_exp_avg_sq * c.sqrt_factor + a.eps);
  average = lerp(average, value, c.average_weight);
}

// The device's part, which tests compile for the host, too. Where all arrays are aligned to 16 bytes (the bf16 copy to
// 8) a thread updates four weights, else one.

template <class T>
struct alignas(4 * sizeof(T)) Vec4 {
  T v[4];
};
template <class T>
SINFUSION_HD static inline Vec4<T>& vec4_at(T* p) {
  return *reinterpret_cast<Vec4<T>*>(p);
}
SINFUSION_HD static inline const Vec4<float>& vec4_at(const float* p) {
  return *reinterpret_cast<const Vec4<float>*>(p);
}

static inline bool aligned(const AdamEma& a) {
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const uintptr_t all = address(a.value) | address(a.exp_avg) | address(a.exp_avg_sq) | address(a.average) |
                        address(a.gradient) | address(a.copy) * 2;
  return all % 16 == 0;
}

static inline int64_t threads_of(const AdamEma& a, bool vectorized) { return vectorized ? (a.count + 3) / 4 : a.count; }

SINFUSION_HD static inline void update_scalar(const AdamEma& a, const AdamEmaCoefficients& c, int64_t i) {
  float value = a.value[i], exp_avg = a.exp_avg[i], exp_avg_sq = a.exp_avg_sq[i], average = a.average[i];
  update_moments(a, a.gradient[i], exp_avg, exp_avg_sq);
  update_value(a, c, exp_avg, sqrtf(exp_avg_sq), value, average);
  a.value[i] = value;
  a.exp_avg[i] = exp_avg;
  a.exp_avg_sq[i] = exp_avg_sq;
  a.average[i] = average;
  if (a.copy) store_as(a.copy + i, value);
}

SINFUSION_HD static inline void update_vec4(const AdamEma& a, const AdamEmaCoefficients& c, int64_t i) {
  Vec4<float> value = vec4_at(a.value + i), exp_avg = vec4_at(a.exp_avg + i), exp_avg_sq = vec4_at(a.exp_avg_sq + i);
  Vec4<float> average = vec4_at(a.average + i);
  const Vec4<float> gradient = vec4_at(a.gradient + i);
  Vec4<bf16_t> copy;
  for (int k = 0; k < 4; ++k) {
    update_moments(a, gradient.v[k], exp_avg.v[k], exp_avg_sq.v[k]);
    update_value(a, c, exp_avg.v[k], sqrtf(exp_avg_sq.v[k]), value.v[k], average.v[k]);
    store_as(copy.v + k, value.v[k]);
  }
  vec4_at(a.value + i) = value;
  vec4_at(a.exp_avg + i) = exp_avg;
  vec4_at(a.exp_avg_sq + i) = exp_avg_sq;
  vec4_at(a.average + i) = average;
  if (a.copy) vec4_at(a.copy + i) = copy;
}

template <bool Aligned>
SINFUSION_HD static inline void adam_ema_of_thread(const AdamEma& a, int64_t thread) {
  const AdamEmaCoefficients c = coefficients_of(a);
  if (!Aligned) {
    if (thread < a.count) update_scalar(a, c, thread);
  } else if (thread * 4 + 4 <= a.count) {
    update_vec4(a, c, thread * 4);
  } else {
#pragma unroll 1  // unrolled, these three would be most of the code
    for (int64_t i = thread * 4; i < a.count; ++i) update_scalar(a, c, i);
  }
}

}  // namespace sinfusion
