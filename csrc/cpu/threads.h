// The threads of the CPU's operators. A call is cut into pieces, which its threads claim one by one; see threads.cpp.
// For sources compiled once an instruction set: no C++ library here, templates in an unnamed namespace (see vector.h).
#pragma once
#include <stdint.h>

namespace sinfusion {

struct ChunkRange;

// What a thread works on: for (int64_t piece; pieces.next(piece);) ...
// Pieces that no other thread claims come in their order, so that what is kept from one serves the next.
class Chunks {
 public:
  Chunks(ChunkRange* ranges, int count, int own) : ranges_(ranges), count_(count), own_(own) {}
  bool next(int64_t& chunk);
  bool claim_ahead() { return claimed_ahead_ || (claimed_ahead_ = claim()); }  // then the next one is there
  int64_t claimed() const { return claimed_; }

 private:
  bool claim();
  ChunkRange* ranges_;
  int count_, own_;
  bool claimed_ahead_ = false;
  int64_t chunk_ = 0, claimed_ = 0;
};

// How many threads the calls of this thread may use; 1 before it is said.
void set_num_threads(int count);
int num_threads();

// Whether calls use fewer where they gain by that (as at first), or always as many as are allowed: for measurements.
void adapt_threads(bool wanted);

// Calls work(context, pieces of a thread) in each thread that comes, at least in this one, and returns when all pieces
// are done. Pieces that are `count`. Throws std::bad_alloc if one of them did.
void run_chunks(int64_t count, void (*work)(const void* context, Chunks& chunks), const void* context);

namespace {

template <class Work>
inline void parallel_chunks(int64_t count, const Work& work) {
  run_chunks(count, [](const void* w, Chunks& chunks) { (*static_cast<const Work*>(w))(chunks); }, &work);
}

// Calls work(n) for n from 0 to `count`, `size` of them in a piece, which should take some microseconds.
template <class Work>
inline void parallel_for(int64_t count, int64_t size, const Work& work) {
  parallel_chunks((count + size - 1) / size, [&](Chunks& chunks) {
    for (int64_t chunk; chunks.next(chunk);)
      for (int64_t n = chunk * size; n < count && n < (chunk + 1) * size; ++n) work(n);
  });
}

}  // namespace
}  // namespace sinfusion
