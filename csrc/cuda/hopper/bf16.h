// Pairs of bf16 numbers in a word, and the product of small matrices of them by a warp.
// Tests put a host's in their place (tests/cpp/emulated_hopper.h).
#ifndef SINFUSION_HOPPER_BF16_H
#define SINFUSION_HOPPER_BF16_H
#include <cuda_runtime.h>

#include <cstdint>

namespace sinfusion::hopper {

__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ __forceinline__ uint32_t pack(float2 value) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(value.y), "f"(value.x));
  return pair;
}

// d += a b, with a (16, 8) and b (8, 8). With r = lane / 4 and k = 2 (lane % 4) a thread has a[r][k, k + 1] and
// a[r + 8][k, k + 1]; b[k, k + 1][r]; d[r][k], d[r][k + 1], d[r + 8][k], d[r + 8][k + 1].
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Words of pairs of channels at two pixels become words of two pixels of a channel: the first, the second channel.
__device__ __forceinline__ uint32_t first_of(uint32_t at_one, uint32_t at_other) {
  return __byte_perm(at_one, at_other, 0x5410);
}
__device__ __forceinline__ uint32_t second_of(uint32_t at_one, uint32_t at_other) {
  return __byte_perm(at_one, at_other, 0x7632);
}

}  // namespace sinfusion::hopper

#endif
