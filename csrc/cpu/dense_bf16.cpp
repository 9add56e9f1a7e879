// Convolutions of bf16 activations on machines that multiply bf16: in AMX tiles, or in AVX512-BF16 vectors. Weights are
// rounded to bf16; sums are fp32.
//
//   dense_bf16/packing.h             the layout of packed inputs and weights, with a drawing; the loops over them
//   dense_bf16/amx_microkernel.h     the innermost products in AMX tiles; what a microkernel has
//   dense_bf16/avx512_microkernel.h  the same in AVX512-BF16
//   dense_bf16/epilogue.h            + bias, GELU, + residual
//   dense_bf16/gelu_table.h          GELU and its gradient by piecewise cubics
//   dense_bf16/weight_gradient.h     the gradients of weight and bias
//
// This file is the driver of the forward and of the input's gradient. A thread convolves some rows of an image at a
// time. Their inputs pass through a ring buffer that stays in cache. Each microkernel call sums MR pixels x NR outputs
// over all taps and channels in registers; while it runs, the epilogue of the block before and the packing for the next
// blocks are interleaved with it, a few pixels after each step (software pipelining).
//
// The C++ library stays out of this file: see depthwise_norm.cpp.
#include "arena.h"
#include "dense.h"
#include "dense_bf16/amx_microkernel.h"
#include "dense_bf16/avx512_microkernel.h"
#include "dense_bf16/epilogue.h"
#include "dense_bf16/gelu_table.h"
#include "dense_bf16/packing.h"
#include "dense_bf16/weight_gradient.h"
#include "scratch.h"
#include "threads.h"

namespace sinfusion {
namespace {

constexpr int64_t TASK_PIXELS = 512;         // padded pixels of a task, at most
constexpr int64_t MIN_TASKS = 8;             // of a batch
constexpr int64_t TILES_PER_PACK_TASK = 64;  // of weights
constexpr int64_t L1_BYTES = 40 << 10;       // of the weights of NR outputs that stay in L1

struct Convolution {
  int64_t batch;
  PaddedImage image;
  InputTensor input;
  OutputTensor outputs[2];  // the channels of the second follow those of the first
  const float* weight;
  bool transposed;    // see Weights
  const float* bias;  // or null

  int64_t n_blocks(int output) const { return ceil_div(outputs[output].channels, NR); }
  int64_t n_blocks() const { return n_blocks(0) + n_blocks(1); }
  int64_t out_channels() const { return outputs[0].channels + outputs[1].channels; }
  int64_t in_channels() const { return input.first_channels + input.second_channels; }

  // Where a block of NR outputs goes: never to both outputs.
  int output_of(int64_t n_block) const { return n_block >= n_blocks(0); }
  int64_t channel_of(int64_t n_block) const { return (n_block - output_of(n_block) * n_blocks(0)) * NR; }
};

// How many rows a task has: so many that few pixels of its last microkernel are behind its end.
int64_t rows_per_task(const PaddedImage& image, int64_t batch, int64_t mr) {
  const int64_t limit = min(TASK_PIXELS / image.pitch, batch * image.height / MIN_TASKS);
  int64_t best = max(1, image.kernel_size - 1);  // rows that the next task packs again
  for (int64_t rows = best + 1; rows <= limit; ++rows)
    if (ceil_div(rows * image.pitch, mr) * best < ceil_div(best * image.pitch, mr) * rows) best = rows;
  return best;
}

struct Blocking {
  int64_t k_blocks, k_steps;  // k_steps: of a microkernel, over taps and k blocks
  int64_t n_blocks;
  int64_t mc;  // padded pixels that meet the weights of NR outputs before those of the next: see packing.h
  int64_t task_rows, tasks_per_image;

  Blocking(const Convolution& v, int64_t mr)
      : k_blocks(v.input.k_blocks()), k_steps(v.image.taps() * k_blocks), n_blocks(v.n_blocks()) {
    const bool weights_fit = k_steps * PANEL_ELEMENTS * int64_t(sizeof(bf16_t)) <= L1_BYTES;
    mc = weights_fit ? ceil_div(v.image.pitch, mr) * mr : mr;
    task_rows = rows_per_task(v.image, v.batch, mr);
    tasks_per_image = ceil_div(v.image.height, task_rows);
  }
};

struct PackedWeights {
  bf16_t* panels;  // (n_blocks, taps, k_blocks, 2 tiles)
  float* bias;     // (n_blocks, NR)

  PackedWeights(Arena& arena, const Blocking& blocking)
      : panels(arena.allocate<bf16_t>(blocking.n_blocks * blocking.k_steps * PANEL_ELEMENTS)),
        bias(arena.allocate<float>(blocking.n_blocks * NR)) {}

  void pack(const Convolution& v, const Blocking& blocking) const {
    memset(bias, 0, blocking.n_blocks * NR * sizeof(float));
    if (v.bias) memcpy(bias, v.bias, v.out_channels() * sizeof(float));
    const Weights weights{v.weight, v.image.taps(), v.in_channels(), v.out_channels(), v.transposed};
    const int64_t steps = blocking.k_steps;
    parallel_for(blocking.n_blocks * steps * 2, TILES_PER_PACK_TASK, [&](int64_t n) {
      const int64_t n_block = n / (steps * 2), half = n % 2, step = n / 2 % steps;
      const int output = v.output_of(n_block);
      const int64_t channel = v.channel_of(n_block) + half * FP32_LANES;
      pack_tile(weights, step / blocking.k_blocks, step % blocking.k_blocks, output * v.outputs[0].channels + channel,
                v.outputs[output].channels - channel, panels + n * TILE_ELEMENTS);
    });
  }
};

template <Activation A>
struct ThreadBuffers {
  PackedInputRing<A> ring;
  float* c[2];  // (MR, NR): one is written while the epilogue reads the other

  ThreadBuffers(Arena& arena, const Convolution& v, const Blocking& blocking, int64_t mr)
      : ring(arena, v.image, v.input, 2 * blocking.mc + v.image.last_tap_offset(), mr),
        c{arena.allocate<float>(mr * NR), arena.allocate<float>(mr * NR)} {}
};

// Convolves the rows of one task.
template <class Microkernel, Activation A>
ALWAYS_INLINE void convolve_rows(const Convolution& v, const Blocking& blocking, const PackedWeights& packed,
                                 const int64_t* tap_offsets, int64_t task, const Microkernel& microkernel,
                                 ThreadBuffers<A>& buffers, Epilogue<A>& epilogue, const GeluTable<A>& activation) {
  constexpr int64_t MR = Microkernel::MR;
  const PaddedImage& image = v.image;
  PackedInputRing<A>& ring = buffers.ring;
  const int64_t mc = blocking.mc, k_steps = blocking.k_steps, reach = image.last_tap_offset();
  const int64_t image_index = task / blocking.tasks_per_image;
  const int64_t y = task % blocking.tasks_per_image * blocking.task_rows;
  const int64_t rows = min(blocking.task_rows, image.height - y), pixels = rows * image.pitch;
  const int64_t epilogue_pixels = ceil_div(MR, k_steps);  // after each k step
  int current = 0;
  ring.start_rows(image_index, y, rows);
  ring.advance(ring.set_end(min(mc, pixels) + reach), activation);
  for (int64_t begin = 0; begin < pixels; begin += mc) {
    const int64_t end = min(begin + mc, pixels), calls = ceil_div(end - begin, MR) * blocking.n_blocks;
    const int64_t packing_steps = ceil_div(ring.set_end(end + mc + reach), calls * k_steps);  // after each k step
    const auto pipelined_work = [&]() __attribute__((always_inline)) {
      epilogue.advance(epilogue_pixels, activation);
      ring.advance(packing_steps, activation);
    };
    compiler_barrier();
    for (int64_t n_block = 0; n_block < blocking.n_blocks; ++n_block)
      for (int64_t p = begin; p < end; p += MR) {
        microkernel.igemm(ring.pixel(p), ring.lda(), tap_offsets, image.taps(), blocking.k_blocks,
                          packed.panels + n_block * k_steps * PANEL_ELEMENTS, buffers.c[current], pipelined_work);
        epilogue.finish(activation);
        const int64_t x = p % image.pitch, row = image_index * image.height + y + p / image.pitch;
        epilogue.start(buffers.c[current], min(MR, end - p), x, row * image.width + min(x, image.width),
                       v.outputs[v.output_of(n_block)], v.channel_of(n_block), packed.bias + n_block * NR);
        current ^= 1;
      }
    ring.advance(packing_steps * calls * k_steps, activation);
  }
  epilogue.finish(activation);
}

// A: GELU of what is stored, or GELU'(z) that is multiplied with what is read.
template <class Microkernel, Activation A>
void convolve(const Convolution& v) {
  constexpr int64_t MR = Microkernel::MR;
  const Blocking blocking(v, MR);
  Arena shared_count{nullptr}, thread_count{nullptr};
  PackedWeights(shared_count, blocking);
  ThreadBuffers<A>(thread_count, v, blocking, MR);
  Arena arena{caller_scratch(shared_count.used / sizeof(float))};
  const PackedWeights packed(arena, blocking);
  packed.pack(v, blocking);
  int64_t tap_offsets[9];
  for (int64_t tap = 0; tap < v.image.taps(); ++tap) tap_offsets[tap] = v.image.tap_offset(tap);

  parallel_chunks(v.batch * blocking.tasks_per_image, [&](Chunks& chunks) {
    const Microkernel microkernel;
    Arena thread_arena{thread_scratch(thread_count.used / sizeof(float))};
    ThreadBuffers<A> buffers(thread_arena, v, blocking, MR);
    Epilogue<A> epilogue(v.image);
    const GeluTable<A> activation;
    buffers.ring.initialize();
    for (int64_t task; chunks.next(task);)
      convolve_rows(v, blocking, packed, tap_offsets, task, microkernel, buffers, epilogue, activation);
  });
}

// product = grad_out * GELU'(z), where no input gradient is computed, which would do it on the way.
void multiply_by_gelu_gradient(const InputTensor& grad, int64_t pixels) {
  parallel_chunks(ceil_div(pixels, TASK_PIXELS), [&](Chunks& chunks) {
    const GeluTable<Activation::gelu_gradient> gelu_gradient;
    for (int64_t task; chunks.next(task);)
      for (int64_t pixel = task * TASK_PIXELS; pixel < min(pixels, (task + 1) * TASK_PIXELS); ++pixel)
        for (int64_t n = 0; n < grad.k_blocks(); ++n)
          grad.load_times_gelu_gradient(pixel, grad.channel_block(n), gelu_gradient, true);
  });
}

InputTensor input_of(const Dense& a) {
  return {static_cast<const bf16_t*>(a.x),
          static_cast<const bf16_t*>(a.skip),
          a.channels,
          a.skip_channels,
          nullptr,
          nullptr};
}

template <class Microkernel>
void forward_with(const DenseForward& a) {
  const OutputTensor out{static_cast<bf16_t*>(a.out), a.out_channels, static_cast<bf16_t*>(a.z),
                         static_cast<const bf16_t*>(a.residual)};
  const Convolution v{a.batch, PaddedImage(a), input_of(a), {out, {}}, a.weight, false, a.bias};
  a.gelu ? convolve<Microkernel, Activation::gelu>(v) : convolve<Microkernel, Activation::none>(v);
}

template <class Microkernel>
void backward_with(const DenseBackward& a) {
  const InputTensor grad_out{
      static_cast<const bf16_t*>(a.grad_out), nullptr, a.out_channels, 0, static_cast<const bf16_t*>(a.z),
      static_cast<bf16_t*>(a.grad_z)};
  const void* before_gelu = a.z ? a.grad_z : a.grad_out;  // the gradient there
  const InputTensor grad{static_cast<const bf16_t*>(before_gelu), nullptr, a.out_channels, 0, nullptr, nullptr};
  if (a.grad_x) {
    const OutputTensor grad_x{static_cast<bf16_t*>(a.grad_x), a.channels, nullptr, nullptr};
    const OutputTensor grad_skip{static_cast<bf16_t*>(a.grad_skip), a.skip_channels, nullptr, nullptr};
    const Convolution v{a.batch, PaddedImage(a), grad_out, {grad_x, grad_skip}, a.weight, true, nullptr};
    a.z ? convolve<Microkernel, Activation::gelu_gradient>(v) : convolve<Microkernel, Activation::none>(v);
  } else if (a.z) {
    multiply_by_gelu_gradient(grad_out, a.batch * a.height * a.width);
  }
  if (a.grad_weight || a.grad_bias) weight_gradient<Microkernel>(a, input_of(a), grad);
}

}  // namespace

namespace amx {
void dense_forward(const DenseForward& a) { forward_with<AmxMicrokernel>(a); }
void dense_backward(const DenseBackward& a) { backward_with<AmxMicrokernel>(a); }
}  // namespace amx
namespace avx512_bf16 {
void dense_forward(const DenseForward& a) { forward_with<Avx512Microkernel>(a); }
void dense_backward(const DenseBackward& a) { backward_with<Avx512Microkernel>(a); }
}  // namespace avx512_bf16

}  // namespace sinfusion
