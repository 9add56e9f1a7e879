// sinfusion._cpu: addresses in, nothing else.
#include <pybind11/pybind11.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "adam_ema.h"
#include "add.h"
#include "ddpm_step.h"
#include "dense.h"
#include "depthwise_norm.h"
#include "isa.h"
#include "patch_match.h"
#include "philox.h"
#include "sample_crops.h"
#include "threads.h"
#include "vote.h"

namespace py = pybind11;
using namespace sinfusion;

namespace {

using Address = uintptr_t;

// Calls the function made for the best instruction set.
#if defined(__x86_64__)
#define DISPATCH(call) isa() >= Isa::avx512 ? avx512::call : isa() == Isa::avx2 ? avx2::call : plain::call
#else
#define DISPATCH(call) plain::call
#endif

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

PyObject* thread_counter = nullptr;  // a function without arguments
thread_local int held_threads = 0;   // instead of what it says

// Without Python's lock, and with as many threads as are allowed now.
class Outside {
 public:
  Outside() : state_((count(), PyEval_SaveThread())) {}
  ~Outside() { PyEval_RestoreThread(state_); }

 private:
  static void count() {
    if (held_threads) return set_num_threads(held_threads);
    if (!thread_counter) return;
    const py::object found = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(thread_counter));
    if (!found) throw py::error_already_set();
    set_num_threads(found.cast<int>());
  }
  PyThreadState* state_;
};

void hold_threads(int count) { held_threads = count; }
void count_threads_by(const py::object& counter) { thread_counter = py::object(counter).release().ptr(); }

void depthwise_norm_forward(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t skip_channels,
                            bool bf16, Address x, Address skip, Address weight, Address bias, Address shift,
                            int64_t shift_stride, Address gain, Address offset, float eps, Address out, Address u,
                            Address mean, Address rstd) {
  const DepthwiseNormForward a{{batch, height, width, channels, skip_channels, bf16, at<void>(x), at<void>(skip),
                                at<float>(weight), at<float>(gain)},
                               at<float>(bias),
                               at<float>(shift),
                               shift_stride,
                               at<float>(offset),
                               eps,
                               at<void>(out),
                               at<void>(u),
                               at<float>(mean),
                               at<float>(rstd)};
  const Outside outside;
  DISPATCH(forward(a));
}

void depthwise_norm_backward(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t skip_channels,
                             bool bf16, Address x, Address skip, Address weight, Address gain, Address grad_out,
                             Address u, Address mean, Address rstd, Address grad_x, Address grad_skip,
                             Address grad_weight, Address grad_bias, Address grad_shift, int64_t grad_shift_stride,
                             Address grad_gain, Address grad_offset) {
  const DepthwiseNormBackward a{{batch, height, width, channels, skip_channels, bf16, at<void>(x), at<void>(skip),
                                 at<float>(weight), at<float>(gain)},
                                at<void>(grad_out),
                                at<void>(u),
                                at<float>(mean),
                                at<float>(rstd),
                                at<void>(grad_x),
                                at<void>(grad_skip),
                                at<float>(grad_weight),
                                at<float>(grad_bias),
                                at<float>(grad_shift),
                                grad_shift_stride,
                                at<float>(grad_gain),
                                at<float>(grad_offset)};
  const Outside outside;
  DISPATCH(backward(a));
}

void dense_forward(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t skip_channels,
                   int64_t outputs, int64_t kernel, bool bf16, Address x, Address skip, Address weight, Address bias,
                   Address residual, bool gelu, Address out, Address z) {
  const DenseForward a{{batch, height, width, channels, skip_channels, outputs, kernel, bf16, at<void>(x),
                        at<void>(skip), at<float>(weight)},
                       at<float>(bias),
                       at<void>(residual),
                       gelu,
                       at<void>(out),
                       at<void>(z)};
  const Outside outside;
#if defined(SINFUSION_BF16)
  if (bf16 && isa() == Isa::amx) return amx::dense_forward(a);
  if (bf16 && kernel == 1 && isa() == Isa::avx512_bf16) return avx512_bf16::dense_forward(a);
#endif
  DISPATCH(dense_forward(a));
}

void dense_backward(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t skip_channels,
                    int64_t outputs, int64_t kernel, bool bf16, Address x, Address skip, Address weight,
                    Address grad_out, Address z, Address grad_z, Address grad_x, Address grad_skip, Address grad_weight,
                    Address grad_bias) {
  const DenseBackward a{{batch, height, width, channels, skip_channels, outputs, kernel, bf16, at<void>(x),
                         at<void>(skip), at<float>(weight)},
                        at<void>(grad_out),
                        at<void>(z),
                        at<void>(grad_z),
                        at<void>(grad_x),
                        at<void>(grad_skip),
                        at<float>(grad_weight),
                        at<float>(grad_bias)};
  const Outside outside;
#if defined(SINFUSION_BF16)
  if (bf16 && isa() == Isa::amx) return amx::dense_backward(a);
  if (bf16 && kernel == 1 && isa() == Isa::avx512_bf16) return avx512_bf16::dense_backward(a);
#endif
  DISPATCH(dense_backward(a));
}

void patch_match(Address query, int64_t query_frames, int64_t query_height, int64_t query_width, Address key,
                 int64_t key_frames, int64_t key_height, int64_t key_width, int64_t channels, int32_t patch_frames,
                 int32_t patch_height, int32_t patch_width, Address weight, int64_t steps, Address strides,
                 uint64_t seed, bool started, Address field, Address other, Address distances) {
  const PatchMatch a{{at<int16_t>(query), query_frames, query_height, query_width},
                     {at<int16_t>(key), key_frames, key_height, key_width},
                     channels,
                     {patch_frames, patch_height, patch_width},
                     at<float>(weight),
                     steps,
                     at<int32_t>(strides),
                     seed,
                     started,
                     at<Offset>(field),
                     at<Offset>(other),
                     at<float>(distances)};
  const Outside outside;
#if defined(__x86_64__)
  if (isa() != Isa::plain) return avx2::patch_match(a);
#endif
  plain::patch_match(a);
}

void vote(Address value, int32_t height, int32_t width, bool bf16, int64_t channels, int32_t patch_frames,
          int32_t patch_height, int32_t patch_width, int32_t count_frames, int32_t count_height, int32_t count_width,
          Address field, bool mean, Address weight, Address out) {
  const Vote a{at<void>(value),
               height,
               width,
               bf16,
               channels,
               {patch_frames, patch_height, patch_width},
               {count_frames, count_height, count_width},
               at<Offset>(field),
               mean,
               at<float>(weight),
               at<void>(out)};
  const Outside outside;
  DISPATCH(vote(a));
}

void adam_ema(Address value, Address exp_avg, Address exp_avg_sq, Address average, Address copy, Address gradient,
              Address coefficients, int64_t count, float first_weight, float beta2, float second_weight, float eps) {
  const AdamEma a{at<float>(value),
                  at<float>(exp_avg),
                  at<float>(exp_avg_sq),
                  at<float>(average),
                  at<uint16_t>(copy),
                  at<float>(gradient),
                  at<float>(coefficients),
                  count,
                  first_weight,
                  beta2,
                  second_weight,
                  eps};
  const Outside outside;
  DISPATCH(adam_ema(a));
}

void ddpm_step(int64_t batch, int64_t pixels, Address x, Address output, bool output_bf16, Address centre,
               Address coefficients, Address seeds, uint32_t stream, Address counter, Address inputs, bool inputs_bf16,
               int64_t channels, Address previous, Address known, bool known_once, Address picture, bool picture_once) {
  const DdpmStep a{batch,
                   pixels,
                   at<float>(x),
                   at<void>(output),
                   output_bf16,
                   at<float>(centre),
                   at<float>(coefficients),
                   at<int64_t>(seeds),
                   stream,
                   at<int64_t>(counter),
                   at<void>(inputs),
                   inputs_bf16,
                   channels,
                   at<float>(previous),
                   at<bool>(known),
                   known_once,
                   at<float>(picture),
                   picture_once};
  const Outside outside;
  DISPATCH(ddpm_step(a));
}

void sample_crops(Address frames, int64_t height, int64_t width, int64_t batch, Address places, Address coefficients,
                  Address blotches, int32_t blotch_height, int32_t blotch_width, Address seeds, Address step,
                  uint32_t noise_stream, uint32_t grain_stream, int32_t conditions, int32_t crop_height,
                  int32_t crop_width, Address input, bool bf16, Address target) {
  const SampleCrops a{at<uint8_t>(frames),
                      height,
                      width,
                      batch,
                      at<int64_t>(places),
                      at<float>(coefficients),
                      at<float>(blotches),
                      blotch_height,
                      blotch_width,
                      at<int64_t>(seeds),
                      at<int64_t>(step),
                      noise_stream,
                      grain_stream,
                      conditions,
                      crop_height,
                      crop_width,
                      at<void>(input),
                      bf16,
                      at<float>(target)};
  const Outside outside;
  DISPATCH(sample_crops(a));
}

void add(Address to, Address value, bool bf16, int64_t count) {
  const Outside outside;
  bf16 ? DISPATCH(add(at<uint16_t>(to), at<uint16_t>(value), count))
       : DISPATCH(add(at<float>(to), at<float>(value), count));
}

void uniform_bits(Address seeds, int64_t batch, uint32_t stream, uint64_t step, Address step_at, int64_t count,
                  Address out) {
  const PhiloxRows a{at<int64_t>(seeds), batch, stream, {step, at<int64_t>(step_at)}, count};
  const Outside outside;
  DISPATCH(uniform_bits(a, at<int64_t>(out)));
}

void normal(Address seeds, int64_t batch, uint32_t stream, uint64_t step, Address step_at, int64_t count, Address out) {
  const PhiloxRows a{at<int64_t>(seeds), batch, stream, {step, at<int64_t>(step_at)}, count};
  const Outside outside;
  DISPATCH(normal(a, at<float>(out)));
}

// Freed blocks of up to 32 MB stay with the process. Else a training step asks the system for the same memory again and
// again, and up to a quarter of its time goes into clearing pages.
void keep_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that glibc takes
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
#endif
}

}  // namespace

// A wrong setting of the environment, as the package tells users of errors.
void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::invalid_argument& wrong) {
    py::set_error(py::module_::import("sinfusion.errors").attr("SinfusionError"), wrong.what());
  }
}

PYBIND11_MODULE(_cpu, m) {
  py::register_local_exception_translator(&translate);
  m.def("keep_memory", &keep_memory);
  m.def("count_threads_by", &count_threads_by);
  m.def("hold_threads", &hold_threads);
  m.def("adapt_threads", &adapt_threads);
  m.def("isa", &isa_name);
  m.def("has_bf16", &has_bf16);
  m.def("depthwise_norm_forward", &depthwise_norm_forward);
  m.def("depthwise_norm_backward", &depthwise_norm_backward);
  m.def("dense_forward", &dense_forward);
  m.def("dense_backward", &dense_backward);
  m.def("ddpm_step", &ddpm_step);
  m.def("patch_match", &patch_match);
  m.def("sample_crops", &sample_crops);
  m.def("vote", &vote);
  m.def("adam_ema", &adam_ema);
  m.def("add", &add);
  m.def("uniform_bits", &uniform_bits);
  m.def("normal", &normal);
}
