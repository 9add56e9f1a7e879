// Products of a warpgroup's tensor cores (wgmma, sm_90a): d += a b, with a (64, 16) and b (16, N) bf16 in shared
// memory.
#pragma once
#include <cstdint>

#include "tma.h"

namespace sinfusion::hopper {

// Where a matrix lies in shared memory, in rows of 128 bytes of which the copy engine has swizzled the 16-byte parts by
// their address. Rows come in groups of 8, `stride` bytes apart; a row may be any of those at a multiple of 128 bytes.
// Where rows are the depth of the product (TRANSPOSED), the 64 numbers of a row are 64 rows or columns of the matrix,
// and its next 64 lie `next` bytes further.
__device__ __forceinline__ uint64_t matrix_at(uint32_t address, uint32_t stride, uint32_t next = 16) {
  constexpr uint64_t SWIZZLE_128 = 1;
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(next >> 4) << 16 | uint64_t(stride >> 4) << 32 |
         SWIZZLE_128 << 62;
}

// Registers of d may be read and written by other instructions before this, or after the next wait.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until no more than COUNT groups are under way.
template <int COUNT>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory");
}

// d[4 g + 2 h + j] of a thread: row 16 (warp of the warpgroup) + lane / 4 + 8 h, column 8 g + 2 (lane % 4) + j.
template <int N, bool A_TRANSPOSED, bool B_TRANSPOSED>
struct Product;

#define SINFUSION_OUT4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SINFUSION_OUT16(i) SINFUSION_OUT4(i), SINFUSION_OUT4(i + 4), SINFUSION_OUT4(i + 8), SINFUSION_OUT4(i + 12)
#define SINFUSION_PRODUCT(N, REGISTERS, A, B, ADD, A_TRANSPOSED_, B_TRANSPOSED_, ...)                    \
  template <bool A_TRANSPOSED, bool B_TRANSPOSED>                                                        \
  struct Product<N, A_TRANSPOSED, B_TRANSPOSED> {                                                        \
    static __device__ __forceinline__ void add(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {    \
      asm volatile("{ .reg .pred add;\nsetp.ne.b32 add, " ADD                                            \
                   ", 0;\n"                                                                              \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS "}, " A ", " B \
                   ", add, 1, 1, " A_TRANSPOSED_ ", " B_TRANSPOSED_ "; }"                                \
                   : __VA_ARGS__                                                                         \
                   : "l"(a), "l"(b), "r"(int(add)), "n"(int(A_TRANSPOSED)), "n"(int(B_TRANSPOSED)));     \
    }                                                                                                    \
  };
#define SINFUSION_REGISTERS_72                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35 "
SINFUSION_PRODUCT(72, SINFUSION_REGISTERS_72, "%36", "%37", "%38", "%39", "%40", SINFUSION_OUT16(0),
                  SINFUSION_OUT16(16), SINFUSION_OUT4(32))
#define SINFUSION_REGISTERS_96                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47 "
SINFUSION_PRODUCT(96, SINFUSION_REGISTERS_96, "%48", "%49", "%50", "%51", "%52", SINFUSION_OUT16(0),
                  SINFUSION_OUT16(16), SINFUSION_OUT16(32))
#define SINFUSION_REGISTERS_136                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67 "
SINFUSION_PRODUCT(136, SINFUSION_REGISTERS_136, "%68", "%69", "%70", "%71", "%72", SINFUSION_OUT16(0),
                  SINFUSION_OUT16(16), SINFUSION_OUT16(32), SINFUSION_OUT16(48), SINFUSION_OUT4(64))
#define SINFUSION_REGISTERS_144                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71 "
SINFUSION_PRODUCT(144, SINFUSION_REGISTERS_144, "%72", "%73", "%74", "%75", "%76", SINFUSION_OUT16(0),
                  SINFUSION_OUT16(16), SINFUSION_OUT16(32), SINFUSION_OUT16(48), SINFUSION_OUT4(64), SINFUSION_OUT4(68))
#define SINFUSION_REGISTERS_192                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95 "
SINFUSION_PRODUCT(192, SINFUSION_REGISTERS_192, "%96", "%97", "%98", "%99", "%100", SINFUSION_OUT16(0),
                  SINFUSION_OUT16(16), SINFUSION_OUT16(32), SINFUSION_OUT16(48), SINFUSION_OUT16(64),
                  SINFUSION_OUT16(80))

}  // namespace sinfusion::hopper
