// Uniform bits and standard normals for many samples, each from its own seed.
#include "../common/philox.h"

namespace sinfusion {

void uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, int64_t* out) {
  const uint64_t step = value_of(at);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < count; i += 4) {
      const PhiloxBlock r = philox_block(uint64_t(seeds[b]), stream, step, uint32_t(i / 4));
      for (int64_t k = 0; k < 4 && i + k < count; ++k) out[b * count + i + k] = r.v[k];
    }
}

void normal(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, float* out) {
  const uint64_t step = value_of(at);
  const int64_t blocks = (count + 3) / 4;
#pragma omp parallel for schedule(static) if (batch * blocks > 1024)
  for (int64_t i = 0; i < batch * blocks; ++i) {
    const int64_t b = i / blocks, first = i % blocks * 4;
    float four[4];
    normals(philox_block(uint64_t(seeds[b]), stream, step, uint32_t(first / 4)), four);
    for (int64_t k = 0; k < 4 && first + k < count; ++k) out[b * count + first + k] = four[k];
  }
}

}  // namespace sinfusion
