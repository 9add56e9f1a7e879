// The device's random numbers on the host, for tests: one 'thread' after the other. Signatures and arguments of
// csrc/cpu/bindings.cpp.
#include "../../csrc/common/philox.h"

using namespace sinfusion;

namespace {

template <class T>
void draw(const PhiloxRows& a, T* out) {
  for (int64_t i = blocks_of(a); i-- > 0;) draw_block(a, i, out);
}

}  // namespace

extern "C" void uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step,
                             const int64_t* step_at, int64_t count, int64_t* out) {
  draw({seeds, batch, stream, {step, step_at}, count}, out);
}

extern "C" void normal(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, const int64_t* step_at,
                       int64_t count, float* out) {
  draw({seeds, batch, stream, {step, step_at}, count}, out);
}
