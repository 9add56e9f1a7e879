// The device's random numbers on the host, for tests: one 'thread' after the other, with signatures as in
// csrc/cpu/bindings.cpp; and the functions that Box-Muller uses.
#include "../../csrc/common/philox.h"

using namespace sinfusion;

namespace {

template <class T>
void draw(const PhiloxRows& a, T* out) {
  for (int64_t i = block_count(a); i-- > 0;) draw_block(a, i, out);
}

}  // namespace

extern "C" void uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step,
                             const int64_t* step_address, int64_t count, int64_t* out) {
  draw({seeds, batch, stream, {step, step_address}, count}, out);
}

extern "C" void normal(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, const int64_t* step_address,
                       int64_t count, float* out) {
  draw({seeds, batch, stream, {step, step_address}, count}, out);
}

extern "C" void logarithms(const int64_t* words, int64_t count, double* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = log_of_uniform(uint32_t(words[i]));
}

// out (count, 2): cosine, sine.
extern "C" void turns(const int64_t* words, int64_t count, double* out) {
  for (int64_t i = 0; i < count; ++i) {
    const SinCos turn = sincos_of_uniform(uint32_t(words[i]));
    out[2 * i] = turn.cosine;
    out[2 * i + 1] = turn.sine;
  }
}
