// Maps of tensors for the copy engine. The driver's function is looked up at run time, so the library loads without
// one.
#include "tma.h"

namespace sinfusion::hopper {

int make_map(CUtensorMap* map, const void* data, int dimensions, const uint64_t* sizes, const uint32_t* box,
             int bytes) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result) !=
        cudaSuccess)
      found = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  if (!encode) return int(cudaErrorNotSupported);
  cuuint64_t strides[4];
  cuuint32_t ones[5] = {1, 1, 1, 1, 1};
  uint64_t stride = 2;
  for (int i = 0; i + 1 < dimensions; ++i) strides[i] = stride *= sizes[i];
  const CUresult error =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, dimensions, const_cast<void*>(data),
             reinterpret_cast<const cuuint64_t*>(sizes), strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
             bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error == CUDA_SUCCESS ? 0 : int(cudaErrorInvalidValue);
}

}  // namespace sinfusion::hopper
