// Barriers and bulk tensor copies of Hopper (PTX ISA 8.0, sm_90): the few instructions that the kernels here use.
// Tests put a host's in their place (tests/cpp/emulated_hopper.h).
#ifndef SINFUSION_HOPPER_TMA_H
#define SINFUSION_HOPPER_TMA_H
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace sinfusion::hopper {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// The block's dynamic shared memory, from a multiple of 1024 on.
__device__ __forceinline__ uint8_t* dynamic_shared_memory() {
  extern __shared__ uint8_t bytes[];
  return bytes + (1024 - shared_address(bytes) % 1024) % 1024;
}

__device__ __forceinline__ void init_barrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Barriers that were initialized are seen by the copy engine and by the other blocks of the cluster.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives at the barrier at the same place in a block of the cluster. What this block wrote before is not made visible
// there (that would wait for all its writes to memory): it says that something was read.
__device__ __forceinline__ void arrive_in(uint64_t* barrier, uint32_t block) {
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}

// Arrives, and has the phase wait for so many bytes of copies.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity is complete.
__device__ __forceinline__ void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni complete;\n"
      "bra.uni again;\n"
      "complete: }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void synchronize_cluster() {
  arrive_at_cluster();
  wait_for_cluster();
}

// Copies a box of a tensor of four dimensions into shared memory; coordinates are those of the box's first number,
// innermost first. What lies outside the tensor is 0.
__device__ __forceinline__ void load_box(void* to, const CUtensorMap& from, uint64_t* barrier, int c, int x, int y,
                                         int b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&from), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(b)
      : "memory");
}

// The same with three dimensions, to the same place in all blocks of the mask, whose barriers are told.
__device__ __forceinline__ void load_box_to(uint16_t blocks, void* to, const CUtensorMap& from, uint64_t* barrier,
                                            int c, int tap, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(&from), "r"(shared_address(barrier)), "r"(c), "r"(tap), "r"(row), "h"(blocks)
      : "memory");
}
__device__ __forceinline__ void load_box(void* to, const CUtensorMap& from, uint64_t* barrier, int c, int tap,
                                         int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(shared_address(to)),
      "l"(&from), "r"(shared_address(barrier)), "r"(c), "r"(tap), "r"(row)
      : "memory");
}

// Copies shared memory to a box of a tensor, but for what lies outside.
__device__ __forceinline__ void store_box(const CUtensorMap& to, const void* from, int c, int x, int y, int b) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&to),
               "r"(shared_address(from)), "r"(c), "r"(x), "r"(y), "r"(b)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// What follows reads and writes what kernels before this one made: they are complete. Until here a kernel may run
// beside the end of the one before it.
__device__ __forceinline__ void wait_for_kernels_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel may begin, as far as there is room, up to its own wait.
__device__ __forceinline__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Waits until this thread's stores have read shared memory.
__device__ __forceinline__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Waits until all that this thread stored is in the tensors.
__device__ __forceinline__ void wait_until_stored() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Shared memory that this thread wrote is seen by copies and tensor cores.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Numbers at the same place in a block of the cluster.
__device__ __forceinline__ float4 load_from(const float4* place, uint32_t block) {
  float4 found;
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote]; }"
      : "=f"(found.x), "=f"(found.y), "=f"(found.z), "=f"(found.w)
      : "r"(shared_address(place)), "r"(block)
      : "memory");
  return found;
}

__device__ __forceinline__ float2 load_from(const float2* place, uint32_t block) {
  float2 found;
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %2, %3;\n"
      "ld.shared::cluster.v2.f32 {%0, %1}, [remote]; }"
      : "=f"(found.x), "=f"(found.y)
      : "r"(shared_address(place)), "r"(block)
      : "memory");
  return found;
}

// One barrier of the 128 threads of a warpgroup.
__device__ __forceinline__ void synchronize_warpgroup(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

// Host: launches a kernel that waits for those before it by itself. Returns an error, 0 for none.
template <class... Parameters, class... Given>
int launch_overlapping(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, void* cuda_stream,
                       const Given&... given) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(unsigned(threads)), config.dynamicSmemBytes = size_t(shared);
  config.stream = static_cast<cudaStream_t>(cuda_stream), config.attrs = &attribute, config.numAttrs = 1;
  return int(cudaLaunchKernelEx(&config, kernel, given...));
}

// Host: a map of a bf16 tensor; sizes and box innermost first, strides follow from sizes. A box's innermost numbers are
// `bytes` (64 or 128), whose 16-byte parts the copy engine swizzles. Returns an error, 0 for none.
int make_map(CUtensorMap* map, const void* data, int dimensions, const uint64_t* sizes, const uint32_t* box,
             int bytes = 128);

}  // namespace sinfusion::hopper

#endif
