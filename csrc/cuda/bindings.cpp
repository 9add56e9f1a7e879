// sinfusion._cuda: operators as functions of named fields and a stream; they return the error of the launch, 0 for
// none. Loads without a GPU.
#include "../common/fields.h"
#include "add_rows_sm90.h"
#include "convolve_sm90.h"
#include "depthwise_sm90.h"

namespace sinfusion {
int uniform_bits(const PhiloxRows& a, int64_t* out, void* cuda_stream);
int normal(const PhiloxRows& a, float* out, void* cuda_stream);
int ddpm_step(const DdpmStep& a, void* cuda_stream);
int patch_match(const PatchMatch& a, void* cuda_stream);
int sample_crops(const SampleCrops& a, void* cuda_stream);
int vote(const Vote& a, void* cuda_stream);
int adam_ema(const AdamEma& a, void* cuda_stream);
}  // namespace sinfusion

namespace sinfusion {

void read_fields(Fields& fields, Convolution& a) {
  READ(x);
  READ(weight);
  READ(bias);
  READ(residual);
  READ(out);
  READ(z);
  READ(partial);
  READ(shortcut);
  READ(shortcut_skip);
  READ(shortcut_weight);
  READ(shortcut_bias);
  READ(shortcut_channels);
  READ(shortcut_skip_channels);
  READ(batch);
  READ(height);
  READ(width);
  READ(inputs);
  READ(outputs);
  READ(gelu);
  READ(backward);
}

void read_fields(Fields& fields, ConvolutionWeightGradient& a) {
  READ(grad);
  READ(x);
  READ(partial);
  READ(batch);
  READ(height);
  READ(width);
  READ(inputs);
  READ(outputs);
  READ(parts);
}

void read_fields(Fields& fields, Depthwise& a) {
  READ(x);
  READ(skip);
  READ(weight);
  READ(bias);
  READ(shift);
  READ(gain);
  READ(offset);
  READ(out);
  READ(u);
  READ(mean);
  READ(rstd);
  READ(shift_stride);
  READ(batch);
  READ(height);
  READ(width);
  READ(channels);
  READ(skip_channels);
  READ(eps);
}

void read_fields(Fields& fields, AddRows& a) {
  READ(sums);
  READ(count);
}

void read_fields(Fields& fields, NormGradient& a) {
  READ(grad);
  READ(u);
  READ(mean);
  READ(rstd);
  READ(gain);
  READ(du);
  READ(other);
  READ(partial);
  READ(batch);
  READ(pixels);
  READ(channels);
  READ(parts);
}

void read_fields(Fields& fields, DepthwiseGradient& a) {
  READ(grad);
  READ(weight);
  READ(add);
  READ(add_skip);
  READ(passed);
  READ(x);
  READ(skip);
  READ(batch);
  READ(height);
  READ(width);
  READ(channels);
  READ(skip_channels);
}

void read_fields(Fields& fields, DepthwiseWeightGradient& a) {
  READ(x);
  READ(skip);
  READ(grad);
  READ(partial);
  READ(batch);
  READ(height);
  READ(width);
  READ(channels);
  READ(skip_channels);
  READ(parts);
}

}  // namespace sinfusion

using namespace sinfusion;

namespace {

int run_uniform_bits(const PhiloxOutput<int64_t>& a, void* cuda_stream) { return uniform_bits(a, a.out, cuda_stream); }
int run_normal(const PhiloxOutput<float>& a, void* cuda_stream) { return normal(a, a.out, cuda_stream); }

// A function of a stream's address and keyword arguments.
template <class Arguments>
void define(py::module_& m, const char* name, int (*run)(const Arguments&, void* cuda_stream)) {
  m.def(name, [run](uintptr_t cuda_stream, const py::kwargs& given) {
    return run(arguments_from<Arguments>(given), reinterpret_cast<void*>(cuda_stream));
  });
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  define(m, "uniform_bits", run_uniform_bits);
  define(m, "normal", run_normal);
  define(m, "ddpm_step", ddpm_step);
  define(m, "patch_match", patch_match);
  define(m, "sample_crops", sample_crops);
  define(m, "vote", vote);
  define(m, "adam_ema", adam_ema);
#ifdef SINFUSION_HOPPER
  define(m, "add_rows_sm90", add_rows_sm90);
  define(m, "convolve_sm90", convolve_sm90);
  m.def("partial_rows_sm90", partial_rows_sm90);
  define(m, "convolve_weight_gradient_sm90", convolve_weight_gradient_sm90);
  define(m, "depthwise_sm90", depthwise_sm90);
  define(m, "norm_gradient_sm90", norm_gradient_sm90);
  define(m, "depthwise_gradient_sm90", depthwise_gradient_sm90);
  define(m, "depthwise_weight_gradient_sm90", depthwise_weight_gradient_sm90);
#endif
}
