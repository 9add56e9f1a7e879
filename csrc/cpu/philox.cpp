// Uniform bits and standard normals for many samples, each from its own seed.
#include "../common/philox.h"

#include <cmath>

namespace sinfusion {

void uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, int64_t* out) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < count; i += 4) {
      const PhiloxBlock r = philox_block(uint64_t(seeds[b]), stream, step, uint32_t(i / 4));
      for (int64_t k = 0; k < 4 && i + k < count; ++k) out[b * count + i + k] = r.v[k];
    }
}

// Box-Muller in double, rounded once to float, so that every libm gives the same numbers in practice.
void normal(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, float* out) {
  const int64_t blocks = (count + 3) / 4;
#pragma omp parallel for schedule(static) if (batch * blocks > 1024)
  for (int64_t i = 0; i < batch * blocks; ++i) {
    const int64_t b = i / blocks, block = i % blocks;
    const PhiloxBlock r = philox_block(uint64_t(seeds[b]), stream, step, uint32_t(block));
    float* to = out + b * count + block * 4;
    for (int k = 0; k < 4; k += 2) {
      const double radius = std::sqrt(-2.0 * std::log((r.v[k] + 0.5) * 0x1p-32));
      const double angle = 6.283185307179586 * (r.v[k + 1] * 0x1p-32);
      if (block * 4 + k < count) to[k] = float(radius * std::cos(angle));
      if (block * 4 + k + 1 < count) to[k + 1] = float(radius * std::sin(angle));
    }
  }
}

}  // namespace sinfusion
