// The device's patch_match on the host, for tests: one 'thread' after the other, in an order that no device would take,
// since nothing may depend on it. Signature as in csrc/cpu/bindings.cpp.
#include <cstring>
#include <numeric>

#include "../../csrc/common/patch_match.h"

using namespace sinfusion;

namespace {

template <class Thread>
void launch(int64_t count, const Thread& thread) {
  int64_t jump = 611953 % count + 1;
  while (std::gcd(jump, count) != 1) ++jump;
  int64_t index = count / 2;
  for (int64_t i = 0; i < count; ++i, index = (index + jump) % count) thread(index);
}

}  // namespace

extern "C" void patch_match(const int16_t* query, int64_t query_frames, int64_t query_height, int64_t query_width,
                            const int16_t* key, int64_t key_frames, int64_t key_height, int64_t key_width,
                            int64_t channels, int32_t patch_frames, int32_t patch_height, int32_t patch_width,
                            const float* weight, int64_t steps, const int32_t* strides, uint64_t seed,
                            bool has_initial_field, Offset* field, Offset* scratch_field, uint32_t* tried,
                            float* distances) {
  const PatchMatch a{{query, query_frames, query_height, query_width},
                     {key, key_frames, key_height, key_width},
                     channels,
                     {patch_frames, patch_height, patch_width},
                     weight,
                     steps,
                     strides,
                     seed,
                     has_initial_field,
                     field,
                     scratch_field,
                     tried,
                     distances};
  const SearchSpace start = search_space(a, 0);
  const int64_t count = int64_t(start.query.t) * start.query.y * start.query.x;
  launch(count, [&](int64_t index) { initialize_patch(a, start, index); });
  const Offset* const found = run_steps(a, count, [&](const SearchStep& step) {
    const SearchSpace space = search_space(a, step.number);
    launch(count, [&](int64_t index) { step_patch(a, space, step, index); });
  });
  if (found != field) memcpy(field, found, count * sizeof(Offset));
}
