// Of a Hopper GPU what csrc/cuda/hopper/ has, on the host: copies of boxes, which are done at once, barriers that count
// their bytes, products of a warp. Clusters of one block. Comes before the code of kernels.
#pragma once
#include <cmath>
#include <cstring>

#include "emulated_block.h"

#define SINFUSION_HOPPER_TMA_H
#define SINFUSION_HOPPER_BF16_H
#define __grid_constant__
#define __cluster_dims__(...)

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float rsqrtf(float value) { return 1 / std::sqrt(value); }
inline float __saturatef(float value) { return value > 0 ? fminf(value, 1.f) : 0.f; }

enum cudaError_t { cudaSuccess };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}

struct CUtensorMap {  // of a bf16 tensor of four dimensions, innermost first
  uint16_t* data = nullptr;
  uint64_t sizes[4];
  uint32_t box[4];
  int bytes = 0;  // of a row of the box in shared memory

  // Of every number of a box: `copy(place in shared memory, the number, whether it lies in the tensor)`.
  template <class Copy>
  void for_each(uint8_t* shared, int c, int x, int y, int b, Copy copy) const {
    const int64_t first[4] = {c, x, y, b};
    uint8_t* to = shared;
    for (unsigned row = 0; row < box[1] * box[2] * box[3]; ++row)
      for (unsigned i = 0; i < box[0]; ++i, to += 2) {
        const int64_t at[4] = {first[0] + i, first[1] + row % box[1], first[2] + row / box[1] % box[2],
                               first[3] + row / box[1] / box[2]};
        bool inside = true;
        int64_t place = 0;
        for (int d = 3; d >= 0; --d) {
          inside = inside && at[d] >= 0 && at[d] < int64_t(sizes[d]);
          place = place * int64_t(sizes[d]) + at[d];
        }
        const uintptr_t line = uintptr_t(to) / 128 % (bytes / 16);  // by which 16-byte parts are swizzled
        copy(reinterpret_cast<uint16_t*>(uintptr_t(to) ^ line << 4), data + place, inside);
      }
  }
};

namespace sinfusion::hopper {

inline std::vector<uint8_t> dynamic_memory;

inline uint8_t* dynamic_shared_memory() {
  return dynamic_memory.data() + (1024 - uintptr_t(dynamic_memory.data()) % 1024) % 1024;
}
inline int make_map(CUtensorMap* map, const void* data, int, const uint64_t* sizes, const uint32_t* box,
                    int bytes = 128) {
  map->data = static_cast<uint16_t*>(const_cast<void*>(data)), map->bytes = bytes;
  memcpy(map->sizes, sizes, sizeof map->sizes), memcpy(map->box, box, sizeof map->box);
  return 0;
}

// A barrier counts phases in its low half and bytes to come in its high half.
inline void init_barrier(uint64_t* barrier, uint32_t) { *barrier = 0; }
inline void arrive_expecting(uint64_t* barrier, uint32_t bytes) { *barrier += uint64_t(bytes) << 32; }
inline void wait(uint64_t* barrier, uint32_t parity) {
  while ((*barrier & 1) == parity) emulated::yield();
}
inline void load_box(void* to, const CUtensorMap& from, uint64_t* barrier, int c, int x, int y, int b) {
  uint64_t bytes = 0;
  from.for_each(static_cast<uint8_t*>(to), c, x, y, b, [&](uint16_t* place, const uint16_t* number, bool inside) {
    *place = inside ? *number : 0, bytes += 2;
  });
  *barrier -= bytes << 32;
  if (*barrier >> 32 == 0) ++*barrier;
}
inline void store_box(const CUtensorMap& to, const void* from, int c, int x, int y, int b) {
  uint8_t* const shared = static_cast<uint8_t*>(const_cast<void*>(from));
  to.for_each(shared, c, x, y, b, [](const uint16_t* place, uint16_t* number, bool inside) {
    if (inside) *number = *place;
  });
}

inline void fence_barrier_init() {}
inline void fence_async() {}
inline void let_next_begin() {}
inline void wait_for_kernels_before() {}
inline void wait_until_stored() {}
inline void arrive_at_cluster() {}
inline void wait_for_cluster() {}
inline void synchronize_cluster() {}
inline uint32_t cluster_rank() { return 0; }
inline float2 load_from(const float2* place, uint32_t) { return *place; }

inline float number(uint32_t bits) {
  bits <<= 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t bits(float value) {  // rounded to even
  uint32_t whole;
  memcpy(&whole, &value, sizeof whole);
  return (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
}
inline float2 unpack(uint32_t pair) { return {number(pair & 0xffff), number(pair >> 16)}; }
inline uint32_t pack(float2 value) { return bits(value.x) | bits(value.y) << 16; }
inline uint32_t first_of(uint32_t one, uint32_t other) { return (one & 0xffff) | other << 16; }
inline uint32_t second_of(uint32_t one, uint32_t other) { return one >> 16 | (other & 0xffff0000u); }

inline void multiply_add(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  const unsigned lane = emulated::current % emulated::WARP;
  int64_t of_a[emulated::WARP], of_b[emulated::WARP];
  const auto collect = [&](int64_t value, int64_t (&all)[emulated::WARP]) {
    memcpy(all, emulated::all_of_warp(value), sizeof all);
    emulated::meet(emulated::warps[emulated::current / emulated::WARP]);
  };
  collect(int64_t(uint64_t(a[1]) << 32 | a[0]), of_a);
  collect(b, of_b);
  for (int i = 0; i < 4; ++i) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 8; ++k) {
      const uint64_t left = uint64_t(of_a[row * 4 + k / 2]) >> (i / 2 * 32), right = uint64_t(of_b[column * 4 + k / 2]);
      d[i] += number(uint32_t(left) >> (k % 2 * 16) & 0xffff) * number(uint32_t(right) >> (k % 2 * 16) & 0xffff);
    }
  }
}

template <class... Parameters, class... Given>
int launch_overlapping(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, void*,
                       const Given&... given) {
  gridDim = {grid.x, grid.y, grid.z};
  dynamic_memory.assign(size_t(shared) + 1024, 0xff);  // NaN: nothing may be read before it is written
  for (unsigned i = 0; i < grid.x * grid.y * grid.z; ++i)
    emulated::run_block(0, unsigned(threads), [&] {
      blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
      kernel(given...);
    });
  return 0;
}

}  // namespace sinfusion::hopper

inline void __syncwarp() { emulated::meet(emulated::warps[emulated::current / emulated::WARP]); }
