// sinfusion._cuda: device addresses and a stream in, an error code out. Loads without a GPU.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../common/adam_ema.h"
#include "../common/ddpm_step.h"
#include "../common/patch_match.h"
#include "../common/philox.h"
#include "../common/sample_crops.h"
#include "../common/vote.h"

namespace sinfusion {
int uniform_bits(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, int64_t* out,
                 void* cuda_stream);
int normal(const int64_t* seeds, int64_t batch, uint32_t stream, Step at, int64_t count, float* out, void* cuda_stream);
int ddpm_step(const DdpmStep& a, void* cuda_stream);
int patch_match(const PatchMatch& a, void* cuda_stream);
int sample_crops(const SampleCrops& a, void* cuda_stream);
int vote(const Vote& a, void* cuda_stream);
int adam_ema(const AdamEma& a, void* cuda_stream);
}  // namespace sinfusion

using namespace sinfusion;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.def("uniform_bits", [](Address seeds, int64_t batch, uint32_t stream, uint64_t step, Address step_at, int64_t count,
                           Address out, Address cuda_stream) {
    return uniform_bits(at<int64_t>(seeds), batch, stream, {step, at<int64_t>(step_at)}, count, at<int64_t>(out),
                        at<void>(cuda_stream));
  });
  m.def("normal", [](Address seeds, int64_t batch, uint32_t stream, uint64_t step, Address step_at, int64_t count,
                     Address out, Address cuda_stream) {
    return normal(at<int64_t>(seeds), batch, stream, {step, at<int64_t>(step_at)}, count, at<float>(out),
                  at<void>(cuda_stream));
  });
  m.def("ddpm_step", [](int64_t batch, int64_t pixels, Address x, Address output, bool output_bf16, Address centre,
                        Address coefficients, Address seeds, uint32_t stream, Address counter, Address inputs,
                        bool inputs_bf16, int64_t channels, Address previous, Address known, bool known_once,
                        Address picture, bool picture_once, Address cuda_stream) {
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
    return ddpm_step(a, at<void>(cuda_stream));
  });
  m.def("patch_match",
        [](Address query, int64_t query_frames, int64_t query_height, int64_t query_width, Address key,
           int64_t key_frames, int64_t key_height, int64_t key_width, int64_t channels, int32_t patch_frames,
           int32_t patch_height, int32_t patch_width, Address weight, int64_t steps, Address strides, uint64_t seed,
           bool started, Address field, Address other, Address distances, Address cuda_stream) {
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
          return patch_match(a, at<void>(cuda_stream));
        });
  m.def("sample_crops",
        [](Address frames, int64_t height, int64_t width, int64_t batch, Address places, Address coefficients,
           Address blotches, int32_t blotch_height, int32_t blotch_width, Address seeds, Address step,
           uint32_t noise_stream, uint32_t grain_stream, int32_t conditions, int32_t crop_height, int32_t crop_width,
           Address input, bool bf16, Address target, Address cuda_stream) {
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
          return sample_crops(a, at<void>(cuda_stream));
        });
  m.def("vote", [](Address value, int32_t height, int32_t width, bool bf16, int64_t channels, int32_t patch_frames,
                   int32_t patch_height, int32_t patch_width, int32_t count_frames, int32_t count_height,
                   int32_t count_width, Address field, bool mean, Address weight, Address out, Address cuda_stream) {
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
    return vote(a, at<void>(cuda_stream));
  });
  m.def("adam_ema", [](Address value, Address exp_avg, Address exp_avg_sq, Address average, Address copy,
                       Address gradient, Address coefficients, int64_t count, float first_weight, float beta2,
                       float second_weight, float eps, Address cuda_stream) {
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
    return adam_ema(a, at<void>(cuda_stream));
  });
}
