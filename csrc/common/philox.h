// Philox 4x32-10 (Salmon et al., SC 2011): counter-based random numbers, the same on host and device.
// A number depends on key and counter alone, so any sample of any step can be drawn on its own.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define SINFUSION_HD __host__ __device__
#else
#define SINFUSION_HD
#endif

namespace sinfusion {

struct PhiloxBlock {
  uint32_t v[4];
};

SINFUSION_HD inline PhiloxBlock philox(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * counter.v[0];
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * counter.v[2];
    counter = {{uint32_t(p1 >> 32) ^ counter.v[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter.v[3] ^ key1,
                uint32_t(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Block `block` of the numbers that belong to (seed, stream, step).
SINFUSION_HD inline PhiloxBlock philox_block(uint64_t seed, uint32_t stream, uint64_t step, uint32_t block) {
  return philox({{block, stream, uint32_t(step), uint32_t(step >> 32)}}, uint32_t(seed), uint32_t(seed >> 32));
}

}  // namespace sinfusion
