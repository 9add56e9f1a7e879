// Threads of a CUDA block on one thread of the host: each runs until it waits for others, then the next one does.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

struct int2 {
  int32_t x, y;
};
struct Index {
  unsigned x, y, z;
};

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __CUDA_ARCH__ 800

inline Index threadIdx, blockIdx, gridDim;

namespace emulated {

constexpr int WARP = 32;

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};

struct Meeting {  // of a warp or of a block
  int expected = 0, here = 0;
  unsigned turn = 0;
};

inline std::vector<Thread> threads;
inline std::vector<Meeting> warps;
inline Meeting block;
inline std::vector<int64_t> said;  // by each thread, to its warp
inline ucontext_t caller;
inline const std::function<void()>* body;
inline unsigned current;

inline void run_current() {
  (*body)();
  threads[current].done = true;
  swapcontext(&threads[current].context, &caller);
}

inline void yield() {
  const unsigned self = current;
  swapcontext(&threads[self].context, &caller);
}

inline void meet(Meeting& meeting) {
  const unsigned turn = meeting.turn;
  if (++meeting.here == meeting.expected) {
    meeting.here = 0, ++meeting.turn;
    return;
  }
  while (meeting.turn == turn) yield();
}

// Every thread of the block runs `kernel` to its end.
inline void run_block(unsigned index, unsigned count, const std::function<void()>& kernel) {
  blockIdx = {index, 0, 0};
  body = &kernel;
  threads.resize(count);
  said.assign(count, 0);
  warps.assign((count + WARP - 1) / WARP, {WARP});
  block = {int(count)};
  for (Thread& thread : threads) {
    thread.stack.resize(64 * 1024);
    thread.done = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    makecontext(&thread.context, run_current, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (current = 0; current < count; ++current) {
      if (threads[current].done) continue;
      threadIdx = {current, 0, 0};
      swapcontext(&caller, &threads[current].context);
      left = true;
    }
  }
}

// What all threads of the warp say, once all have.
inline const int64_t* all_of_warp(int64_t value) {
  Meeting& warp = warps[current / WARP];
  said[current] = value;
  meet(warp);
  return said.data() + current / WARP * WARP;
}

}  // namespace emulated

inline void __syncthreads() { emulated::meet(emulated::block); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  static_assert(sizeof(T) <= sizeof(int64_t));
  int64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  T found;
  std::memcpy(&found, emulated::all_of_warp(bits) + from, sizeof(T));
  emulated::meet(emulated::warps[emulated::current / emulated::WARP]);  // all have read it
  return found;
}

inline uint32_t __reduce_or_sync(unsigned, uint32_t bits) {
  uint32_t any = 0;
  const int64_t* const all = emulated::all_of_warp(int64_t(bits));
  for (int i = 0; i < emulated::WARP; ++i) any |= uint32_t(all[i]);
  emulated::meet(emulated::warps[emulated::current / emulated::WARP]);
  return any;
}

inline int32_t __reduce_add_sync(unsigned, int32_t value) {
  int32_t sum = 0;
  const int64_t* const all = emulated::all_of_warp(value);
  for (int i = 0; i < emulated::WARP; ++i) sum += int32_t(all[i]);
  emulated::meet(emulated::warps[emulated::current / emulated::WARP]);
  return sum;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
