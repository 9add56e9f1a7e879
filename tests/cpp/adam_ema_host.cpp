// The device's adam_ema on the host, for tests: one 'thread' after the other, as many as fill blocks. Signature as in
// csrc/cpu/bindings.cpp.
#include "../../csrc/common/adam_ema.h"

using namespace sinfusion;

namespace {

// Whether a device could load and store four values at once; the host could at any address.
bool vectorizable(const AdamEma& a) {
  const float* floats[] = {a.value, a.exp_avg, a.exp_avg_sq, a.average, a.gradient};
  for (const float* p : floats)
    if (reinterpret_cast<uintptr_t>(p) % alignof(Vec4<float>)) return false;
  return reinterpret_cast<uintptr_t>(a.copy) % alignof(Vec4<bf16_t>) == 0;
}

}  // namespace

extern "C" void adam_ema(float* value, float* exp_avg, float* exp_avg_sq, float* average, bf16_t* copy,
                         const float* gradient, const float* coefficients, int64_t count, float one_minus_beta1,
                         float beta2, float one_minus_beta2, float eps) {
  const AdamEma a{value, exp_avg,         exp_avg_sq, average,         copy, gradient, coefficients,
                  count, one_minus_beta1, beta2,      one_minus_beta2, eps};
  const bool vectorized = aligned(a);
  if (vectorized && !vectorizable(a)) return;
  for (int64_t thread = (threads_of(a, vectorized) + 255) / 256 * 256; thread-- > 0;)
    vectorized ? adam_ema_of_thread<true>(a, thread) : adam_ema_of_thread<false>(a, thread);
}
