// The threads of the CPU's operators. A call is cut into chunks, which threads claim one by one; see threads.cpp.
//
// For sources that are compiled once for each instruction set: no C++ library here, and templates in an unnamed
// namespace; see vector.h.
#pragma once
#include <stdint.h>

namespace sinfusion {

struct ChunkRange;

// The chunks that a thread works on: for (int64_t chunk; chunks.next(chunk);) ...
// They come in order, but for those that other threads have claimed, so that data kept from one may serve the next.
class Chunks {
 public:
  Chunks(ChunkRange* ranges, int count, int own) : ranges_(ranges), count_(count), own_(own) {}
  bool next(int64_t& chunk);
  bool claim_ahead() {
    return claimed_ahead_ || (claimed_ahead_ = claim());
  }  // whether there is a next one; it is then this thread's
  int64_t claimed() const { return claimed_; }

 private:
  bool claim();
  ChunkRange* ranges_;
  int count_, own_;
  bool claimed_ahead_ = false;
  int64_t chunk_ = 0, claimed_ = 0;
};

// How many threads calls from this thread may use; 1 by default.
void set_num_threads(int count);
int num_threads();

// Whether calls use fewer threads where that is faster (the default). Without, measurements are steadier.
void adapt_threads(bool wanted);

// Calls work(context, chunks) in this thread and in workers, and returns when all `count` chunks are done. Throws
// std::bad_alloc if `work` threw in any of them.
void run_chunks(int64_t count, void (*work)(const void* context, Chunks& chunks), const void* context);

namespace {

template <class Work>
inline void parallel_chunks(int64_t count, const Work& work) {
  run_chunks(count, [](const void* w, Chunks& chunks) { (*static_cast<const Work*>(w))(chunks); }, &work);
}

// Calls work(n) for n in 0 .. count. `size` of them are a chunk, which should take some microseconds.
template <class Work>
inline void parallel_for(int64_t count, int64_t size, const Work& work) {
  parallel_chunks((count + size - 1) / size, [&](Chunks& chunks) {
    for (int64_t chunk; chunks.next(chunk);)
      for (int64_t n = chunk * size; n < count && n < (chunk + 1) * size; ++n) work(n);
  });
}

}  // namespace
}  // namespace sinfusion
