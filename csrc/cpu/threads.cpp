// A thread pool whose callers do not wait for threads that have no work.
//
// A call is cut into chunks, which its shape fixes. Each thread claims the chunks of its own range in order (which
// keeps their data in its cache), then steals what is left of the other ranges. A call ends when its chunks are done: a
// worker that comes late, or never, delays nothing, and one that is preempted delays one chunk. Claiming a chunk is one
// atomic increment, and only a thread that has claimed one reads the call, which cannot end before that chunk is done.
//
// Workers spin for the next call for SPIN_TIME, then sleep; a call wakes them once, as a binary tree. The caller waits
// for the last chunks the same way: asleep, it leaves its core to the threads that have them.
//
// Why not OpenMP: its barrier waits for all threads. Measured on two cores with one busy process beside them, training
// `tiny` at 64x36, a step takes 83 ms with OpenMP (22 ms on a quiet machine), 39 ms with two threads here, 35 ms with
// one, which ThreadChoice finds. A whole recording as one parallel region would have one barrier a step, but would keep
// the cores from other processes between its calls.
//
// One caller at a time has the workers; others compute alone meanwhile. A forked child has none and starts its own.
#include "threads.h"

#include <time.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "thread_choice.h"

namespace sinfusion {

// The chunks of one thread: in the lower 32 bits the first unclaimed one, in the upper the end.
struct alignas(64) ChunkRange {
  std::atomic<uint64_t> begin_end{0};
};

bool Chunks::claim() {
  for (int tried = 0; tried < count_; ++tried, own_ = own_ + 1 < count_ ? own_ + 1 : 0) {
    std::atomic<uint64_t>& range = ranges_[own_].begin_end;
    for (uint64_t seen = range.load(std::memory_order_acquire); uint32_t(seen) < seen >> 32;)
      if (range.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        chunk_ = uint32_t(seen);
        ++claimed_;
        return true;
      }
  }
  return false;
}

bool Chunks::next(int64_t& chunk) {
  const bool found = claim_ahead();
  claimed_ahead_ = false;
  chunk = chunk_;
  return found;
}

namespace {

constexpr int MAX_THREADS = 256;
constexpr auto SPIN_TIME = std::chrono::microseconds(30);
constexpr double BACK_TO_BACK = 1e-4;  // seconds: a shorter pause between two calls counts as theirs

using Clock = std::chrono::steady_clock;

inline double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }
inline double cpu_time() {  // of this thread
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec time;
  if (!clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)) return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
#endif
  return now();
}

inline void cpu_relax() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `done` comes true within SPIN_TIME.
template <class Done>
bool spin_until(const Done& done) {
  for (const auto end = Clock::now() + SPIN_TIME; Clock::now() < end;)
    for (int i = 0; i < 16; ++i, cpu_relax())
      if (done()) return true;
  return done();
}

// Rounding mode and flush-to-zero, which PyTorch sets for one thread alone (MXCSR).
inline unsigned fp_mode() {
#if defined(__SSE2__)
  return _mm_getcsr();
#else
  return 0;
#endif
}
inline void set_fp_mode(unsigned wanted) {
#if defined(__SSE2__)
  if ((_mm_getcsr() ^ wanted) & ~0x3fu) _mm_setcsr(wanted);  // all but the exception flags
#endif
  (void)wanted;
}

std::atomic<bool> adapts{true};

struct Waiter {
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<bool> asleep{false};
};

struct Call {
  void (*work)(const void*, Chunks&);
  const void* context;
  unsigned fp_mode;

  // False where it throws, for want of memory; chunks are then claimed but not done.
  bool work_on(Chunks& chunks) const {
    try {
      work(context, chunks);
      return true;
    } catch (...) {
      for (int64_t chunk; chunks.next(chunk);) {
      }
      return false;
    }
  }
};

struct Pool {
  std::atomic<bool> taken{false};
  ChunkRange ranges[MAX_THREADS];
  Call call;                                       // read by threads that have claimed a chunk
  alignas(64) std::atomic<int64_t> unfinished{0};  // chunks
  std::atomic<bool> failed{false};
  Waiter caller;
  alignas(64) std::atomic<uint32_t> calls{0};
  std::atomic<int> wanted{0};  // threads of the last call
  int started = 1;             // threads, the caller among them
  ThreadChoice choice;
  std::thread::id last_caller;
  double last_end = 0, last_cpu = 0;  // of its last call
  Waiter workers[MAX_THREADS];

  // Wakes the two workers below thread `own` in the tree.
  void wake(int own, int count) {
    for (int next = 2 * own + 1; next <= 2 * own + 2 && next < count; ++next)
      if (workers[next].asleep.load()) workers[next].wake.notify_one();  // one that is about to sleep may miss it
  }

  void worker_loop(int own) {
    const unsigned mine = fp_mode();
    for (uint32_t seen = 0;;) {
      const int count = wanted.load(std::memory_order_relaxed);
      const bool needed = own < count;
      if (needed) {
        wake(own, count);
        Chunks chunks(ranges, count, own);
        if (chunks.claim_ahead()) {
          set_fp_mode(call.fp_mode);
          if (!call.work_on(chunks)) failed.store(true);
          set_fp_mode(mine);
          if (unfinished.fetch_sub(chunks.claimed()) == chunks.claimed() && caller.asleep.load()) {
            {
              std::lock_guard<std::mutex> lock(caller.mutex);
            }
            caller.wake.notify_one();
          }
        }
      }
      const auto called = [&] { return calls.load() != seen; };
      if (!needed || !spin_until(called)) {
        Waiter& me = workers[own];
        std::unique_lock<std::mutex> lock(me.mutex);
        me.asleep.store(true);
        me.wake.wait(lock, called);
        me.asleep.store(false);
      }
      seen = calls.load();
    }
  }

  void start(int count) {
    for (; started < count; ++started) try {
        std::thread(&Pool::worker_loop, this, started).detach();
      } catch (...) {
        return;  // the caller goes on with those that started
      }
  }

  bool run(int64_t chunks, int allowed, const Call& new_call) {
    const double begin = now();
    const bool adapt = adapts.load(), watched = adapt && choice.measures(begin);
    const int limit = adapt ? choice.used(allowed) : allowed, count = int(chunks < limit ? chunks : limit);
    const bool again = begin - last_end < BACK_TO_BACK && std::this_thread::get_id() == last_caller;
    const double from = again ? last_end : begin, cpu = again ? last_cpu : watched ? cpu_time() : 0;
    int64_t own = chunks;
    double spun = 0;  // seconds that the caller waited awake
    const bool done = count == 1 ? alone(chunks, new_call) : together(chunks, count, new_call, own, spun);
    if (!watched) return last_end = 0, done;
    last_cpu = cpu_time(), last_caller = std::this_thread::get_id();
    last_end = now();  // after cpu_time(), at which the scheduler likes to preempt
    choice.add(last_cpu - cpu - spun, last_end - from, own, chunks, last_end);
    return done;
  }

  static bool alone(int64_t chunks, const Call& new_call) {
    ChunkRange all;
    all.begin_end.store(uint64_t(chunks) << 32, std::memory_order_relaxed);
    Chunks mine(&all, 1, 0);
    return new_call.work_on(mine);
  }

  bool together(int64_t chunks, int count, const Call& new_call, int64_t& own, double& spun) {
    start(count);
    call = new_call;
    unfinished.store(chunks, std::memory_order_relaxed);
    failed.store(false, std::memory_order_relaxed);
    for (int n = 0; n < count; ++n)
      ranges[n].begin_end.store(uint64_t(chunks * (n + 1) / count) << 32 | uint64_t(chunks * n / count),
                                std::memory_order_release);
    wanted.store(count, std::memory_order_relaxed);
    calls.fetch_add(1);
    wake(0, count);
    Chunks mine(ranges, count, 0);
    const bool done = new_call.work_on(mine);
    own = mine.claimed();
    const auto over = [&] { return unfinished.load() == 0; };
    if (unfinished.fetch_sub(mine.claimed()) != mine.claimed()) {
      const double wait_begin = now(), spin = std::chrono::duration<double>(SPIN_TIME).count();
      const bool done_soon = spin_until(over);
      spun = now() - wait_begin < spin ? now() - wait_begin : spin;
      if (!done_soon) {
        std::unique_lock<std::mutex> lock(caller.mutex);
        caller.asleep.store(true);
        caller.wake.wait(lock, over);
        caller.asleep.store(false);
      }
    }
    return done && !failed.load();
  }
};

std::atomic<Pool*> shared{nullptr};
void drop_pool() { shared.store(nullptr); }  // a child has none of its parent's threads

Pool& pool() {
  Pool* existing = shared.load();
  if (existing) return *existing;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, drop_pool);
  (void)registered;
#endif
  Pool* created = new Pool;
  if (shared.compare_exchange_strong(existing, created)) return *created;
  delete created;
  return *existing;
}

thread_local int allowed = 1;

}  // namespace

void set_num_threads(int count) { allowed = count < 1 ? 1 : count < MAX_THREADS ? count : MAX_THREADS; }
int num_threads() { return allowed; }
void adapt_threads(bool wanted) { adapts.store(wanted); }

void run_chunks(int64_t count, void (*work)(const void*, Chunks&), const void* context) {
  const Call call{work, context, fp_mode()};
  Pool* workers = count > 1 && allowed > 1 ? &pool() : nullptr;
  bool done;
  if (workers && !workers->taken.exchange(true)) {
    done = workers->run(count, allowed, call);
    workers->taken.store(false);
  } else {  // another caller has the workers, or none are needed
    done = Pool::alone(count, call);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace sinfusion
