// One step of a reverse process on the host: a tile of pixels after the other, as the device has them.
#include "../common/ddpm_step.h"

namespace sinfusion {

void ddpm_step(const DdpmStep& a) {
  const int64_t tiles = a.batch * tiles_of(a.pixels);
#pragma omp parallel for schedule(static) if (tiles > 8)
  for (int64_t i = 0; i < tiles; ++i) {
    const Tile tile = tile_of(i, a.pixels);
    float drawn[DDPM_NORMALS];
    if (draws(a))
      for (int thread = 0; thread < TILE; ++thread) draw_noise(a, tile, thread, drawn);
    for (int number = 0; number < 3 * tile.count; ++number) step_number(a, tile, drawn, number);
  }
}

}  // namespace sinfusion
