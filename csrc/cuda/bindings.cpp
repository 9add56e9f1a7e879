// sinfusion._cuda: device addresses and a stream in, an error code out. Loads without a GPU.
#include <pybind11/pybind11.h>

#include <cstdint>

namespace sinfusion {
int normal(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, float* out,
           void* cuda_stream);
}  // namespace sinfusion

PYBIND11_MODULE(_cuda, m) {
  m.def("normal", [](uintptr_t seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, uintptr_t out,
                     uintptr_t cuda_stream) {
    return sinfusion::normal(reinterpret_cast<int64_t*>(seeds), batch, stream, step, count,
                             reinterpret_cast<float*>(out), reinterpret_cast<void*>(cuda_stream));
  });
}
