// Scalar bf16 conversions, for host and device.
#pragma once
#include <stdint.h>
#include <string.h>

#include "host_device.h"

namespace sinfusion {

using bf16_t = uint16_t;  // the upper 16 bits of an fp32

SINFUSION_HD static inline float to_float(float value) { return value; }
SINFUSION_HD static inline float to_float(bf16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

SINFUSION_HD static inline void store_as(float* to, float value) { *to = value; }
SINFUSION_HD static inline void store_as(bf16_t* to, float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &value, 4);
  *to = bf16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace sinfusion
