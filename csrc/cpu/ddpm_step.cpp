// A tile of pixels after the other, as the device has them. Compiled once for each instruction set; no C++ library here
// (see vector.h).
#include "ddpm_step.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {

void ddpm_step(const DdpmStep& a) {
  const int64_t tiles = a.batch * tiles_of(a.pixels);
#pragma omp parallel for schedule(static) if (tiles > 8)
  for (int64_t i = 0; i < tiles; ++i) {
    const Tile tile = tile_of(i, a.pixels);
    float drawn[DDPM_NORMALS];
    if (draws(a)) draw_tile(noise_of(a, tile), tile, a.pixels, 3, drawn);
    for (int number = 0; number < 3 * tile.count; ++number) step_number(a, tile, drawn, number);
  }
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
