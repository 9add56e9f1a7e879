// Compiled once for each instruction set; no C++ library here (see vector.h).
#include "posterior.h"

#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int64_t ROWS_PER_CHUNK = 16;

// The last vector of a row begins where it ends with the row; its first lanes are then the last of the one before.
class Row {
 public:
  explicit Row(int64_t size) : size_(size), vectors_((size + LANES - 1) / LANES) {
    for (int lane = 0; lane < LANES; ++lane) is_new_[lane] = float(lane >= LANES * vectors_ - size);
  }
  bool has_vectors() const { return size_ >= LANES; }
  int64_t vectors() const { return vectors_; }
  int64_t start(int64_t vector) const { return vector + 1 < vectors_ ? vector * LANES : size_ - LANES; }

  float squared_difference(const float* x, const float* y) const {
    if (!has_vectors()) {
      float sum = 0;
      for (int64_t i = 0; i < size_; ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
      return sum;
    }
    vec_f32 sum{};
    for (int64_t n = 0; n + 1 < vectors_; ++n) {
      const vec_f32 d = load(x + n * LANES) - load(y + n * LANES);
      sum += d * d;
    }
    const vec_f32 d = (load(x + size_ - LANES) - load(y + size_ - LANES)) * is_new_;
    return reduce_add(sum + d * d);
  }

 private:
  int64_t size_, vectors_;
  vec_f32 is_new_;
};

// Logits become weights of sum 1.
void softmax(float* logits, int64_t count) {
  float most = logits[0], total = 0;
  for (int64_t j = 1; j < count; ++j) most = logits[j] > most ? logits[j] : most;
  for (int64_t j = 0; j < count; ++j) total += logits[j] = __builtin_expf(logits[j] - most);
  for (int64_t j = 0; j < count; ++j) logits[j] /= total;
}

void mean(const Posterior& a, const Row& row, int64_t number, float* weights) {
  const int32_t* rows = a.rows + number * a.k;
  const float *distance = a.distance + number * a.k, *observed = a.observed ? a.observed + number * a.size : nullptr;
  float* out = a.out + number * a.size;
  for (int64_t j = 0; j < a.k; ++j) {
    weights[j] = -a.of_distance * distance[j];
    if (a.observed) weights[j] -= a.of_observed * row.squared_difference(observed, a.values + rows[j] * a.size);
  }
  softmax(weights, a.k);
  if (row.has_vectors()) {
    for (int64_t n = 0; n < row.vectors(); ++n) {
      vec_f32 sum{};
      for (int64_t j = 0; j < a.k; ++j) sum += weights[j] * load(a.values + rows[j] * a.size + row.start(n));
      store(out + row.start(n), sum);
    }
    return;
  }
  for (int64_t i = 0; i < a.size; ++i) {
    out[i] = 0;
    for (int64_t j = 0; j < a.k; ++j) out[i] += weights[j] * a.values[rows[j] * a.size + i];
  }
}

}  // namespace

void posterior(const Posterior& a) {
  const Row row(a.size);
  parallel_for(a.count, ROWS_PER_CHUNK, [&](int64_t number) { mean(a, row, number, thread_scratch(a.k)); });
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
