// The thread pool alone, for a sanitizer: many small calls by several threads at once, with changing numbers of
// threads, chunks that throw, and forks. Prints `sound`, or ends with what was wrong.
#include <stdio.h>
#include <stdlib.h>
#if !defined(NO_FORK)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <chrono>
#include <new>
#include <thread>
#include <vector>

#include "../../csrc/cpu/threads.h"

using namespace sinfusion;

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "wrong: %s\n", what);
  _Exit(1);
}

// Every chunk is done once, by writes that nothing else orders.
void call(int64_t chunks, int64_t size) {
  std::vector<int> done(chunks * size, 0);
  parallel_for(chunks * size, size, [&](int64_t n) { ++done[n]; });
  for (const int times : done) check(times == 1, "a chunk is done once");
}

void failing_call() {
  bool thrown = false;
  try {
    parallel_for(64, 1, [](int64_t n) {
      if (n % 7 == 3) throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  check(thrown, "a chunk without memory is told");
}

void calls(unsigned seed, int count) {
  for (int n = 0; n < count; ++n) {
    seed = seed * 1664525 + 1013904223;
    set_num_threads(1 + (n / 100 + seed % 3) % 5);
    if (n % 50 == 7) failing_call();
    call(1 + (seed >> 8) % 40, 1 + (seed >> 16) % 3);
    if (n % 200 == 9) std::this_thread::sleep_for(std::chrono::microseconds(300));  // workers go to sleep
  }
}

#if !defined(NO_FORK)
void forked_calls() {
  const pid_t child = fork();
  if (child == 0) {
    calls(5, 200);
    _Exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  check(status == 0, "a forked child computes");
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? atoi(argv[1]) : 2000;
  for (const bool adapt : {false, true}) {
    adapt_threads(adapt);
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < 3; ++n) threads.emplace_back(calls, n, count);
    for (std::thread& thread : threads) thread.join();
#if !defined(NO_FORK)
    forked_calls();
#endif
  }
  puts("sound");
}
