// Depthwise 7x7 convolution and LayerNorm, forward and backward. Compiled once for each instruction set
// (SINFUSION_ISA_NAMESPACE, SINFUSION_LANES).
//
//   depthwise_norm/channel_blocks.h  how channels lie in vectors
//   depthwise_norm/microkernel.h     the convolution and its weight gradient on a tile of pixels in registers
//   depthwise_norm/row_window.h      the rows around a tile, straight from the tensors or from a cache
//   depthwise_norm/layer_norm.h      the norm of a tile, and its backward
//
// This file has the loops around them. Work is cut into chunks of rows over the whole batch, which the shape fixes, and
// their sums are added in order, so results do not depend on the number of threads.
//
// The C++ library stays out of this file: its inline functions, compiled here for one instruction set, could be the
// copies that the linker keeps for every machine.
#include "depthwise_norm.h"

#include <string.h>

#include "arena.h"
#include "depthwise_norm/channel_blocks.h"
#include "depthwise_norm/layer_norm.h"
#include "depthwise_norm/microkernel.h"
#include "depthwise_norm/row_window.h"
#include "scratch.h"
#include "threads.h"
#include "vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int ROW_CHUNKS = 32;

// Rows of tiles, TILE_ROWS rows high, one at the end of an image perhaps lower; and which chunk they belong to.
struct TileRows {
  int64_t height, per_image, count;
  explicit TileRows(const DepthwiseNorm& a)
      : height(a.height), per_image((a.height + TILE_ROWS - 1) / TILE_ROWS), count(a.batch * per_image) {}

  // Calls visit(image, y, rows) for each of a chunk.
  template <class Visit>
  void for_each(int64_t chunk, Visit&& visit) const {
    for (int64_t r = count * chunk / ROW_CHUNKS; r < count * (chunk + 1) / ROW_CHUNKS; ++r) {
      const int64_t y = r % per_image * TILE_ROWS;
      visit(r / per_image, y, height - y < TILE_ROWS ? 1 : TILE_ROWS);
    }
  }
  // Of a row of pixels, in the order of the batch.
  int64_t chunk_of(int64_t row) const { return ((tile_row_of(row) + 1) * ROW_CHUNKS - 1) / count; }
  bool begins_chunk(int64_t row) const {
    return tile_row_of(row) == count * chunk_of(row) / ROW_CHUNKS && row % height % TILE_ROWS == 0;
  }

 private:
  int64_t tile_row_of(int64_t row) const { return row / height * per_image + row % height / TILE_ROWS; }
};

// Memory for rows of an output, in the cache before it is written.
template <class T>
void prefetch_tile(const void* data, int64_t first, int64_t channels, int64_t W, const Tile& t) {
  for (int r = 0; r < t.rows; ++r)
    prefetch_range(static_cast<const T*>(data) + (first + r * W) * channels, t.columns * channels * int64_t(sizeof(T)));
}

template <class T, class In>
class Forward {
 public:
  explicit Forward(const DepthwiseNormForward& a)
      : a_(a),
        C_(channels_of(a)),
        blocks_(block_count<In>(C_)),
        vectors_(blocks_ * BLOCK_VECTORS<In>),
        Cp_(vectors_ * LANES),
        arena_(caller_scratch((TAPS + 3 + a.batch) * Cp_ + 5 * 16)),
        weight_(arena_.allocate<float>(TAPS * Cp_)),
        start_(arena_.allocate<float>(a.batch * Cp_)),
        bias_(arena_.allocate<float>(Cp_)),
        gain_(arena_.allocate<float>(Cp_)),
        offset_(arena_.allocate<float>(Cp_)) {
    pack_channels<In>(a.weight, weight_, TAPS, C_);
    pack_channels<In>(a.bias, bias_, 1, C_);
    for (int64_t b = 0; b < a.batch; ++b) {
      pack_channels<In>(a.shift ? a.shift + b * a.shift_stride : nullptr, start_ + b * Cp_, 1, C_);
      for (int64_t c = 0; c < Cp_; ++c) start_[b * Cp_ + c] += bias_[c];
    }
    pack_channels<In>(a.gain, gain_, 1, C_);
    pack_channels<In>(a.offset, offset_, 1, C_);
    float ones[LANES];
    for (int i = 0; i < LANES; ++i) ones[i] = 1;
    channel_lanes_ = load(ones, BLOCK_VECTORS<In> == 1 && C_ ? lanes_of(C_, vectors_ - 1) : LANES);
  }

  void run() const {
    const TileRows tile_rows(a_);
    Arena count{nullptr};
    InputWindow<T, In>(count, a_);
    count.allocate<float>(vectors_ * TILE_PIXELS * LANES);
    parallel_chunks(ROW_CHUNKS, [&](Chunks& chunks) {
      Arena arena{thread_scratch(count.used / sizeof(float))};
      InputWindow<T, In> inputs(arena, a_);
      float* u = arena.allocate<float>(vectors_ * TILE_PIXELS * LANES);
      for (int64_t chunk; chunks.next(chunk);)
        tile_rows.for_each(chunk, [&](int64_t b, int64_t y, int rows) { tile_row(b, y, rows, inputs, u); });
    });
  }

 private:
  void tile_row(int64_t b, int64_t y, int rows, InputWindow<T, In>& inputs, float* u) const {
    inputs.slide(b, y);
    for (int64_t x = 0; x < a_.width; x += TILE_COLUMNS) {
      const Tile t(x, a_.width, rows);
      const int64_t first = (b * a_.height + y) * a_.width + x;
      inputs.prefetch(KERNEL_SIZE - 1, x + TILE_COLUMNS + RADIUS);  // what the next tile is the first to read
      prefetch_tile<T>(a_.out, first, C_, a_.width, t);
      if (a_.norm_input) prefetch_tile<T>(a_.norm_input, first, C_, a_.width, t);
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t vector = block * BLOCK_VECTORS<In>;
        convolve(inputs.of_block(block), t, block, weight_ + vector * TAPS * LANES, start_ + b * Cp_ + vector * LANES,
                 u + vector * TILE_PIXELS * LANES);
      }
      if (a_.gain)
        layer_norm<T, In>(a_, first, t, u, gain_, offset_, channel_lanes_);
      else
        store_tile<T, In, false, false>(a_, first, t, u, nullptr, nullptr, gain_, offset_);
    }
  }

  const DepthwiseNormForward& a_;
  const int64_t C_, blocks_, vectors_, Cp_;  // channels; blocks and vectors of them; channels with those lanes
  Arena arena_;
  float *const weight_, *const start_, *const bias_, *const gain_, *const offset_;  // packed; start: shift + bias
  vec_f32 channel_lanes_;
};

// A block of a tile, v (BLOCK_VECTORS, TILE_PIXELS, LANES), to the gradient of x, of skip, or of both.
template <class T, class In>
void store_input_gradient(const DepthwiseNormBackward& a, const InputWindow<T, In>& inputs, const Tile& t,
                          int64_t first, int64_t block, const float* v) {
  const int64_t C = a.channels, skip_C = a.skip_channels;
  T *x = static_cast<T*>(a.grad_x) + first * C, *skip = static_cast<T*>(a.grad_skip) + first * skip_C;
  const int rows = t.rows, columns = t.columns;
  if (inputs.in_place) {
    constexpr int64_t second = (BLOCK_VECTORS<In> - 1) * TILE_PIXELS * LANES;
    const bool of_x = block < inputs.first_skip_block;
    const int64_t pixel_stride = of_x ? C : skip_C;
    T* to = of_x ? x + block * BLOCK_CHANNELS<In> : skip + (block - inputs.first_skip_block) * BLOCK_CHANNELS<In>;
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < columns; ++p) {
        const float* from = v + (r * TILE_COLUMNS + p) * LANES;
        store_block<In>(to + (r * a.width + p) * pixel_stride, BLOCK_CHANNELS<In>, 0, load(from), load(from + second));
      }
    return;
  }
  const int64_t c = block * LANES;
  const int lanes = lanes_of(C + skip_C, block), x_lanes = C < c ? 0 : C - c < lanes ? int(C - c) : lanes;
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < columns; ++p) {
      const int64_t pixel = r * a.width + p;
      float values[2 * LANES]{};
      store(values, load(v + (r * TILE_COLUMNS + p) * LANES));
      if (x_lanes) store(x + pixel * C + c, load(values), x_lanes);
      if (x_lanes < lanes) store(skip + pixel * skip_C + c + x_lanes - C, load(values + x_lanes), lanes - x_lanes);
    }
}

// The gradient at the convolution's output is computed row by row, when a tile first needs it. A thread that works on
// chunks that follow each other computes each row once.
template <class T, class In>
class Backward {
 public:
  explicit Backward(const DepthwiseNormBackward& a)
      : a_(a),
        tile_rows_(a),
        C_(channels_of(a)),
        blocks_(block_count<In>(C_)),
        vectors_(blocks_ * BLOCK_VECTORS<In>),
        Cp_(vectors_ * LANES),
        sums_floats_(NormGradientSums::floats(Cp_, a.batch)),
        chunk_floats_(TAPS * Cp_ + sums_floats_),
        grad_in_place_(!a.gain && readable_in_place<T, In>(C_, 0)),
        arena_(caller_scratch((TAPS + 2) * Cp_ + ROW_CHUNKS * chunk_floats_ + 4 * 16)),
        reversed_weight_(arena_.allocate<float>(TAPS * Cp_)),
        gain_(arena_.allocate<float>(Cp_)),
        zeros_(arena_.allocate<float>(Cp_)),
        chunk_sums_(arena_.allocate<float>(ROW_CHUNKS * chunk_floats_)) {
    pack_channels<In>(a.weight, reversed_weight_, TAPS, C_, true);
    pack_channels<In>(a.gain, gain_, 1, C_);
    pack_channels<In>(nullptr, zeros_, 1, C_);
  }

  void run() const {
    Arena count{nullptr};
    Thread(count, *this);
    parallel_chunks(ROW_CHUNKS, [&](Chunks& chunks) {
      Arena arena{thread_scratch(count.used / sizeof(float))};
      Thread thread(arena, *this);
      memset(thread.sums, 0, ROW_CHUNKS * sums_floats_ * sizeof(float));
      for (int64_t chunk, last = -1; chunks.next(chunk); last = chunk) {
        if (chunk != last + 1 && !grad_in_place_) thread.grad_rows.invalidate();
        float *taps = chunk_sums_ + chunk * chunk_floats_, *sums = thread.sums + chunk * sums_floats_;
        memset(taps, 0, TAPS * Cp_ * sizeof(float));
        tile_rows_.for_each(chunk, [&](int64_t b, int64_t y, int rows) { tile_row(b, y, rows, thread, taps, sums); });
        memcpy(taps + TAPS * Cp_, sums, sums_floats_ * sizeof(float));
      }
    });
    parallel_for(vectors_, 1, [&](int64_t vector) { reduce(vector); });
  }

 private:
  // What a thread works with.
  struct Thread {
    float* sums;  // (ROW_CHUNKS, sums_floats_): rows around a chunk are of others
    InputWindow<T, In> inputs;
    RowCache<In> grad_rows;
    RowWindow<In> grad;

    Thread(Arena& arena, const Backward& backward)
        : sums(arena.allocate<float>(ROW_CHUNKS * backward.sums_floats_)),
          inputs(arena, backward.a_),
          grad_rows(backward.grad_in_place_
                        ? RowCache<In>(static_cast<const In*>(backward.a_.grad_out), backward.a_.width, backward.C_)
                        : RowCache<In>(arena, backward.a_.width, backward.Cp_)) {
      grad.first_block = 0;
    }
  };

  void fill_grad_row(int64_t row, float* thread_sums, In* to) const {
    if (!a_.gain) {
      const T* from = static_cast<const T*>(a_.grad_out) + row * a_.width * C_;
      if constexpr (BLOCK_VECTORS<In> == 1) copy_row<T>(from, C_, nullptr, 0, a_.width, to);
      return;
    }
    // Rows around a chunk are computed, too: those behind it begin the next, if this thread works on that.
    float* sums = thread_sums + tile_rows_.chunk_of(row) * sums_floats_;
    if (tile_rows_.begins_chunk(row)) memset(sums, 0, sums_floats_ * sizeof(float));
    layer_norm_backward<T, In>(a_, row, gain_, to, NormGradientSums(sums, Cp_));
  }

  void tile_row(int64_t b, int64_t y, int rows, Thread& thread, float* taps, float* sums) const {
    RowWindow<In>& grad = thread.grad;
    thread.inputs.slide(b, y);
    grad.slide(thread.grad_rows, a_, b, y, [&](int64_t row, In* to) { fill_grad_row(row, thread.sums, to); });
    float* shift = NormGradientSums(sums, Cp_).shift + b * Cp_;
    for (int r = 0; r < rows && !a_.gain; ++r)
      add_row_sums(grad.rows[RADIUS + r], grad.pixel_stride, a_.width, blocks_, shift);
    for (int64_t x = 0; x < a_.width; x += TILE_COLUMNS) {
      const Tile t(x, a_.width, rows);
      const int64_t first = (b * a_.height + y) * a_.width + x;
      thread.inputs.prefetch(RADIUS, x + TILE_COLUMNS);
      if (grad_in_place_) grad.prefetch(KERNEL_SIZE - 1, x + TILE_COLUMNS + RADIUS);
      if (a_.grad_x) prefetch_tile<T>(a_.grad_x, first, a_.channels, a_.width, t);
      if (a_.grad_x && a_.grad_skip) prefetch_tile<T>(a_.grad_skip, first, a_.skip_channels, a_.width, t);
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t at = block * BLOCK_VECTORS<In> * TAPS * LANES;
        if (a_.grad_weight) correlate(grad, thread.inputs.of_block(block), t, block, taps + at);
        if (!a_.grad_x) continue;
        alignas(64) float out[BLOCK_VECTORS<In> * TILE_PIXELS * LANES];
        convolve(grad, t, block, reversed_weight_ + at, zeros_, out);
        store_input_gradient(a_, thread.inputs, t, first, block, out);
      }
    }
  }

  // Adds the chunks in order, for one vector of channels.
  void reduce(int64_t vector) const {
    const auto total = [&](int64_t at) {
      vec_f32 sum{};
      for (int64_t chunk = 0; chunk < ROW_CHUNKS; ++chunk) sum += load(chunk_sums_ + chunk * chunk_floats_ + at);
      return sum;
    };
    const auto store_channels = [&](float* to, int64_t stride, vec_f32 value) {
      float lanes[LANES];
      store(lanes, value);
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const int64_t c = channel_of<In>(vector, lane);
        if (c < C_) to[c * stride] = lanes[lane];
      }
    };
    for (int t = 0; a_.grad_weight && t < TAPS; ++t)
      store_channels(a_.grad_weight + TAPS - 1 - t, TAPS, total((vector * TAPS + t) * LANES));
    const int64_t sums = TAPS * Cp_ + vector * LANES;
    if (a_.grad_gain) store_channels(a_.grad_gain, 1, total(sums));
    if (a_.grad_offset) store_channels(a_.grad_offset, 1, total(sums + Cp_));
    vec_f32 bias{};
    for (int64_t b = 0; b < a_.batch; ++b) {
      const vec_f32 shift = total(sums + (2 + b) * Cp_);
      bias += shift;
      if (a_.grad_shift) store_channels(a_.grad_shift + b * a_.grad_shift_stride, 1, shift);
    }
    if (a_.grad_bias) store_channels(a_.grad_bias, 1, bias);
  }

  const DepthwiseNormBackward& a_;
  const TileRows tile_rows_;
  const int64_t C_, blocks_, vectors_, Cp_;  // channels; blocks and vectors of them; channels with those lanes
  const int64_t sums_floats_, chunk_floats_;
  const bool grad_in_place_;  // the gradient at the convolution's output is grad_out
  Arena arena_;
  float *const reversed_weight_, *const gain_, *const zeros_;  // packed
  float* const chunk_sums_;  // (ROW_CHUNKS, chunk_floats_): taps (vectors, TAPS, LANES), in reverse; NormGradientSums
};

}  // namespace

void forward(const DepthwiseNormForward& a) {
  if (!a.bf16) return Forward<float, float>(a).run();
  const bool in_place = readable_in_place<bf16_t, bf16_t>(a.channels, a.skip_channels);
  in_place ? Forward<bf16_t, bf16_t>(a).run() : Forward<bf16_t, float>(a).run();
}
void backward(const DepthwiseNormBackward& a) {
  if (!a.bf16) return Backward<float, float>(a).run();
  const bool in_place = readable_in_place<bf16_t, bf16_t>(a.channels, a.skip_channels);
  in_place ? Backward<bf16_t, bf16_t>(a).run() : Backward<bf16_t, float>(a).run();
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
