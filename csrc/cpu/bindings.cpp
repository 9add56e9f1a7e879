// sinfusion._cpu: addresses in, nothing else. Import it after torch, whose OpenMP runtime it uses.
#include <pybind11/pybind11.h>

#include "depthwise_norm.h"
#include "isa.h"

namespace sinfusion {
void uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, int64_t* out);
void normal(const int64_t* seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, float* out);
}  // namespace sinfusion

namespace py = pybind11;
using namespace sinfusion;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void depthwise_norm_forward(int64_t batch, int64_t height, int64_t width, int64_t channels, bool bf16, Address x,
                            Address weight, Address bias, Address shift, Address gain, Address offset, float eps,
                            Address out, Address u, Address mean, Address rstd) {
  DepthwiseNormForward a{{batch, height, width, channels, bf16, at<void>(x), at<float>(weight), at<float>(gain)},
                         at<float>(bias), at<float>(shift), at<float>(offset), eps, at<void>(out), at<void>(u),
                         at<float>(mean), at<float>(rstd)};
  py::gil_scoped_release release;
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return avx512::forward(a);
  if (isa() == Isa::avx2) return avx2::forward(a);
#endif
  plain::forward(a);
}

void depthwise_norm_backward(int64_t batch, int64_t height, int64_t width, int64_t channels, bool bf16, Address x,
                             Address weight, Address gain, Address grad_out, Address u, Address mean, Address rstd,
                             Address grad_u, Address grad_x, Address grad_weight, Address grad_shift,
                             Address grad_gain, Address grad_offset) {
  DepthwiseNormBackward a{{batch, height, width, channels, bf16, at<void>(x), at<float>(weight), at<float>(gain)},
                          at<void>(grad_out), at<void>(u), at<float>(mean), at<float>(rstd), at<void>(grad_u),
                          at<void>(grad_x), at<float>(grad_weight), at<float>(grad_shift), at<float>(grad_gain),
                          at<float>(grad_offset)};
  py::gil_scoped_release release;
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return avx512::backward(a);
  if (isa() == Isa::avx2) return avx2::backward(a);
#endif
  plain::backward(a);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.def("isa", &isa_name);
  m.def("has_bf16", &has_bf16);
  m.def("depthwise_norm_forward", &depthwise_norm_forward);
  m.def("depthwise_norm_backward", &depthwise_norm_backward);
  m.def("uniform_bits", [](Address seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, Address out) {
    uniform_bits(at<int64_t>(seeds), batch, stream, step, count, at<int64_t>(out));
  });
  m.def("normal", [](Address seeds, int64_t batch, uint32_t stream, uint64_t step, int64_t count, Address out) {
    py::gil_scoped_release release;
    normal(at<int64_t>(seeds), batch, stream, step, count, at<float>(out));
  });
}
