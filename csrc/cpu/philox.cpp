// Uniform bits and standard normals for many samples, each from its own seed.
#include "../common/philox.h"

namespace sinfusion {
namespace {

template <class T>
void draw(const PhiloxRows& a, T* out) {
  const int64_t blocks = blocks_of(a);
#pragma omp parallel for schedule(static) if (blocks > 1024)
  for (int64_t i = 0; i < blocks; ++i) draw_block(a, i, out);
}

}  // namespace

void uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, int64_t* out) {
  draw({seeds, batch, stream, at, count}, out);
}

void normal(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, float* out) {
  draw({seeds, batch, stream, at, count}, out);
}

}  // namespace sinfusion
