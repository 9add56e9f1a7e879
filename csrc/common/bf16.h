// bf16 as the upper half of an fp32, for host and device.
#pragma once
#include <string.h>

#include "philox.h"

namespace sinfusion {

SINFUSION_HD static inline float widened(float value) { return value; }
SINFUSION_HD static inline float widened(uint16_t value) {  // of bf16
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

SINFUSION_HD static inline void put(float* to, float value) { *to = value; }
SINFUSION_HD static inline void put(uint16_t* to, float value) {  // as bf16: nearest even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &value, 4);
  *to = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace sinfusion
