// The device's vote on the host, for tests: one 'thread' after the other. Signature as in csrc/cpu/bindings.cpp.
#include "../../csrc/common/vote.h"

using namespace sinfusion;

extern "C" void vote(const void* value, int32_t frames, int32_t height, int32_t width, bool bf16, int64_t channels,
                     int32_t patch_frames, int32_t patch_height, int32_t patch_width, int32_t middle_frames,
                     int32_t middle_height, int32_t middle_width, int32_t count_frames, int32_t count_height,
                     int32_t count_width, const Offset* field, bool mean, const float* weight, void* out) {
  const Vote a{value,
               frames,
               height,
               width,
               bf16,
               channels,
               {patch_frames, patch_height, patch_width},
               {middle_frames, middle_height, middle_width},
               {count_frames, count_height, count_width},
               field,
               mean,
               weight,
               out};
  const Position size = output_size(a);
  const int64_t count = int64_t(size.t) * size.y * size.x * channels;
  for (int64_t index = count; index-- > 0;) bf16 ? vote_value<bf16_t>(a, index) : vote_value<float>(a, index);
}
