// The threads of the CPU's operators. A call is cut into pieces, which its threads claim one by one; see threads.cpp.
// For sources compiled once an instruction set: no C++ library here, templates in an unnamed namespace (see vector.h).
#pragma once
#include <stdint.h>

namespace sinfusion {

struct Range;

// What a thread works on: for (int64_t piece; pieces.next(piece);) ...
// Pieces that no other thread claims come in their order, so that what is kept from one serves the next.
class Pieces {
 public:
  Pieces(Range* ranges, int count, int own) : ranges_(ranges), count_(count), own_(own) {}
  bool next(int64_t& piece);
  bool any() { return held_ || (held_ = claim()); }  // then the next one is there
  int64_t claimed() const { return claimed_; }

 private:
  bool claim();
  Range* ranges_;
  int count_, own_;
  bool held_ = false;
  int64_t piece_ = 0, claimed_ = 0;
};

// How many threads the calls of this thread may use; 1 before it is said.
void use_threads(int count);
int threads();

// Whether calls use fewer where they gain by that (as at first), or always as many as are allowed: for measurements.
void adapt_threads(bool wanted);

// Calls work(context, pieces of a thread) in each thread that comes, at least in this one, and returns when all pieces
// are done. Pieces that are `count`. Throws std::bad_alloc if one of them did.
void share(int64_t count, void (*work)(const void* context, Pieces& pieces), const void* context);

namespace {

template <class Work>
inline void each_thread(int64_t count, const Work& work) {
  share(count, [](const void* w, Pieces& pieces) { (*static_cast<const Work*>(w))(pieces); }, &work);
}

// Calls work(n) for n from 0 to `count`, `size` of them in a piece, which should take some microseconds.
template <class Work>
inline void each(int64_t count, int64_t size, const Work& work) {
  each_thread((count + size - 1) / size, [&](Pieces& pieces) {
    for (int64_t piece; pieces.next(piece);)
      for (int64_t n = piece * size; n < count && n < (piece + 1) * size; ++n) work(n);
  });
}

}  // namespace
}  // namespace sinfusion
