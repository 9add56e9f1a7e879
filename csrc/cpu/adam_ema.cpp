// Compiled once for each instruction set; no C++ library here (see vector.h).
//
// Memory-bound: it reads 20 bytes and writes 18 for each weight, once.
#include "adam_ema.h"

#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int64_t WEIGHTS_PER_CHUNK = 8192;

// Weights i .. i + n, n <= LANES.
inline void update(const AdamEma& a, const AdamEmaCoefficients& c, int64_t i, int n) {
  vec_f32 value = load(a.value + i, n), exp_avg = load(a.exp_avg + i, n), exp_avg_sq = load(a.exp_avg_sq + i, n);
  vec_f32 average = load(a.average + i, n);
  update_moments(a, load(a.gradient + i, n), exp_avg, exp_avg_sq);
  update_value(a, c, exp_avg, sqrt(exp_avg_sq), value, average);
  store(a.value + i, value, n);
  store(a.exp_avg + i, exp_avg, n);
  store(a.exp_avg_sq + i, exp_avg_sq, n);
  store(a.average + i, average, n);
  if (a.copy) store(a.copy + i, value, n);
}

}  // namespace

void adam_ema(const AdamEma& a) {
  const AdamEmaCoefficients c = coefficients_of(a);
  const int64_t whole = a.count / LANES * LANES;
  parallel_for(whole / LANES, WEIGHTS_PER_CHUNK / LANES, [&](int64_t i) { update(a, c, i * LANES, LANES); });
  if (whole < a.count) update(a, c, whole, int(a.count - whole));
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
