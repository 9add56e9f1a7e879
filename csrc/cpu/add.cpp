// Compiled once for each instruction set; no C++ library here (see vector.h).
#include "add.h"

#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int64_t VALUES_PER_CHUNK = 32768;

template <class T>
void add_all(T* to, const T* value, int64_t count) {
  parallel_for((count + LANES - 1) / LANES, VALUES_PER_CHUNK / LANES, [&](int64_t n) {
    const int64_t i = n * LANES;
    const int lanes = count - i < LANES ? int(count - i) : LANES;
    store(to + i, load(to + i, lanes) + load(value + i, lanes), lanes);
  });
}

}  // namespace

void add(float* to, const float* value, int64_t count) { add_all(to, value, count); }
void add(bf16_t* to, const bf16_t* value, int64_t count) { add_all(to, value, count); }

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
