// Tile by tile, in loops that the compiler vectorizes. Compiled once for each instruction set; no C++ library here (see
// vector.h).
#include "ddpm_step.h"

#include "threads.h"
#include "tile.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

void step_tile(const DdpmStep& a, const Tile& tile) {
  const int64_t row = tile.sample * a.pixels + tile.first;
  const int values_count = 3 * tile.count;
  float output[TILE_VALUES] = {}, prior_mean[TILE_VALUES] = {}, previous[TILE_VALUES] = {}, noise[TILE_VALUES] = {};
  float clean[TILE_VALUES], next[TILE_VALUES];
  float* x = a.x + 3 * row;
  const size_t bytes = values_count * sizeof(float);
  if (a.output && a.output_bf16)
    for (int i = 0; i < values_count; ++i) output[i] = to_float(static_cast<const bf16_t*>(a.output)[3 * row + i]);
  else if (a.output)
    memcpy(output, static_cast<const float*>(a.output) + 3 * row, bytes);
  if (a.prior_mean) memcpy(prior_mean, a.prior_mean + 3 * row, bytes);
  if (a.previous) memcpy(previous, a.previous + 3 * row, bytes);
  if (adds_noise(a)) draw_interleaved_normals(noise_random(a, tile), tile, a.pixels, 0, noise);

  for (int i = 0; i < values_count; ++i) clean[i] = predicted_clean(a, output[i], x[i], prior_mean[i]);
  if (a.known_mask) {
    const bool* known_mask = a.known_mask + (a.known_mask_shared ? tile.first : row);
    const float* known_image = a.known_image + 3 * (a.known_image_shared ? tile.first : row);
    for (int i = 0; i < values_count; ++i)
      if (known_mask[i / 3]) clean[i] = known_image[i];
  }
  for (int i = 0; i < values_count; ++i) next[i] = next_sample(a, x[i], previous[i], clean[i], noise[i]);
  if (a.previous) memcpy(a.previous + 3 * row, x, bytes);
  memcpy(x, next, bytes);
  if (!a.inputs) return;
  for (int i = 0; i < values_count; ++i) next[i] = network_input(a, next[i], prior_mean[i]);
  const int64_t to = (row + 1) * a.channels - 3;
  if (a.inputs_bf16)
    store_channels(next, tile.count, static_cast<bf16_t*>(a.inputs) + to, a.channels);
  else
    store_channels(next, tile.count, static_cast<float*>(a.inputs) + to, a.channels);
}

}  // namespace

void ddpm_step(const DdpmStep& a) {
  const int64_t tiles = a.batch * tile_count(a.pixels);
  parallel_for(tiles, 8, [&](int64_t i) { step_tile(a, tile_of(i, a.pixels)); });
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
