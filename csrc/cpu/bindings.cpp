// sinfusion._cpu: operators as functions of named fields. They see the addresses of tensors, nothing else of them.
#include <pybind11/pybind11.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "adam_ema.h"
#include "add.h"
#include "ddpm_step.h"
#include "fields.h"
#include "isa.h"
#include "nearest_patches.h"
#include "patch_match.h"
#include "philox.h"
#include "posterior.h"
#include "sample_crops.h"
#include "threads.h"
#include "vote.h"

using namespace sinfusion;

namespace {

// Calls the function made for the best instruction set.
#if defined(__x86_64__)
#define DISPATCH(call) isa() >= Isa::avx512 ? avx512::call : isa() == Isa::avx2 ? avx2::call : plain::call
#else
#define DISPATCH(call) plain::call
#endif

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

void run_depthwise_norm_forward(const DepthwiseNormForward& a) { DISPATCH(forward(a)); }
void run_depthwise_norm_backward(const DepthwiseNormBackward& a) { DISPATCH(backward(a)); }

void run_dense_forward(const DenseForward& a) {
#if defined(SINFUSION_BF16)
  if (a.bf16 && isa() == Isa::amx) return amx::dense_forward(a);
  if (a.bf16 && a.kernel_size == 1 && isa() == Isa::avx512_bf16) return avx512_bf16::dense_forward(a);
#endif
  DISPATCH(dense_forward(a));
}

void run_dense_backward(const DenseBackward& a) {
#if defined(SINFUSION_BF16)
  if (a.bf16 && isa() == Isa::amx) return amx::dense_backward(a);
  if (a.bf16 && a.kernel_size == 1 && isa() == Isa::avx512_bf16) return avx512_bf16::dense_backward(a);
#endif
  DISPATCH(dense_backward(a));
}

void run_patch_match(const PatchMatch& a) {
#if defined(__x86_64__)
  // Rows of up to 16 numbers fill a vector of AVX2's, which lies across fewer cache lines than AVX-512's; patches of
  // one frame gain nothing from wider ones either.
  const bool is_wide = a.patch.x * a.channels > 16 && a.patch.t > 1;
  if (isa() > Isa::avx2 && !is_wide) return avx2::patch_match(a);
#endif
#if defined(SINFUSION_BF16)
  if (isa() >= Isa::avx512_bf16) return vnni::patch_match(a);
#endif
  DISPATCH(patch_match(a));
}

void run_nearest_patches(const NearestPatches& a) {
#if defined(SINFUSION_BF16)
  if (isa() >= Isa::avx512_bf16) return vnni::nearest_patches(a);
#endif
  DISPATCH(nearest_patches(a));
}

void run_posterior(const Posterior& a) { DISPATCH(posterior(a)); }
void run_vote(const Vote& a) { DISPATCH(vote(a)); }
void run_adam_ema(const AdamEma& a) { DISPATCH(adam_ema(a)); }
void run_ddpm_step(const DdpmStep& a) { DISPATCH(ddpm_step(a)); }
void run_sample_crops(const SampleCrops& a) { DISPATCH(sample_crops(a)); }
void run_uniform_bits(const PhiloxOutput<int64_t>& a) { DISPATCH(uniform_bits(a, a.out)); }
void run_normal(const PhiloxOutput<float>& a) { DISPATCH(normal(a, a.out)); }

void run_add(const Add& a) {
  a.bf16 ? DISPATCH(add(static_cast<bf16_t*>(a.to), static_cast<const bf16_t*>(a.value), a.count))
         : DISPATCH(add(static_cast<float*>(a.to), static_cast<const float*>(a.value), a.count));
}

// A function of keyword arguments; and prepare_<name>, which takes the same and returns the call, to be made as often
// as wanted while the tensors live.
template <class Arguments>
void define(py::module_& m, const std::string& name, void (*run)(const Arguments&)) {
  m.def(name.c_str(), [run](const py::kwargs& given) {
    const Arguments a = arguments_from<Arguments>(given);
    const Outside outside;
    run(a);
  });
  m.def(("prepare_" + name).c_str(), [run](const py::kwargs& given) {
    return py::cpp_function([run, a = arguments_from<Arguments>(given)] {
      const Outside outside;
      run(a);
    });
  });
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
  define(m, "depthwise_norm_forward", run_depthwise_norm_forward);
  define(m, "depthwise_norm_backward", run_depthwise_norm_backward);
  define(m, "dense_forward", run_dense_forward);
  define(m, "dense_backward", run_dense_backward);
  define(m, "ddpm_step", run_ddpm_step);
  define(m, "patch_match", run_patch_match);
  define(m, "nearest_patches", run_nearest_patches);
  define(m, "posterior", run_posterior);
  define(m, "sample_crops", run_sample_crops);
  define(m, "vote", run_vote);
  define(m, "adam_ema", run_adam_ema);
  define(m, "add", run_add);
  define(m, "uniform_bits", run_uniform_bits);
  define(m, "normal", run_normal);
}
