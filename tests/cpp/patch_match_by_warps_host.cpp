// patch_match by warps on the host, for tests: a block after the other, threads of a block in turns. Signature as in
// csrc/cpu/bindings.cpp; pixels have four numbers.
#include <cstring>

// What the device has, before what is written for it.
// clang-format off
#include "emulated_block.h"
#include "../../csrc/cuda/patch_match_by_warps.h"
// clang-format on

using namespace sinfusion;

namespace {

template <int SHARE>
void search(const PatchMatch& a, int64_t count, int32_t pixels) {
  const unsigned blocks = unsigned((count + WARPS - 1) / WARPS);
  const SearchSpace start = search_space(a, 0);
  for (unsigned block = 0; block < blocks; ++block)
    emulated::run_block(block, WARPS * 32, [&] { start_kernel<SHARE>(a, start, count, pixels); });
  const Offset* const found = run_steps(a, count, [&](const SearchStep& step) {
    const SearchSpace space = search_space(a, step.number);
    for (unsigned block = 0; block < blocks; ++block)
      emulated::run_block(block, WARPS * 32, [&] { step_kernel<SHARE>(a, space, count, pixels, step); });
  });
  if (found != a.field) memcpy(a.field, found, count * sizeof(Offset));
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
  const Position counts = patch_counts(a.query, a.patch);
  const int64_t count = int64_t(counts.t) * counts.y * counts.x;
  const int32_t pixels = patch_frames * patch_height * patch_width;
  if (pixels <= 64)
    search<2>(a, count, pixels);
  else
    search<5>(a, count, pixels);
}
