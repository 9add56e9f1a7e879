// How many of the allowed threads calls should use: all, half of them, ... or one. On a busy machine a thread that the
// scheduler does not run delays a call by more than it saves. Which it is, the calls' own times tell.
#pragma once
#include <cstdint>

namespace sinfusion {

class ThreadChoice {
 public:
  explicit ThreadChoice(int allowed = 0) : allowed_(allowed), used_(allowed) {}

  // For the next call.
  int used(int allowed) {
    if (allowed != allowed_) *this = ThreadChoice(allowed);
    return used_;
  }

  // Whether a call that begins at `now`, in seconds, is to be added. While all is well one window in four is measured.
  bool measures(double now) const { return now >= idle_until_; }

  // A call took `wall` seconds up to `now`. In these its caller computed for `cpu` seconds, and did `caller_chunks` of
  // the chunks.
  void add(double cpu, double wall, int64_t caller_chunks, int64_t chunks, double now) {
    cpu_ += cpu, wall_ += wall, caller_chunks_ += double(caller_chunks), chunks_ += double(chunks);
    if (++calls_ < MIN_CALLS || wall_ < WINDOW) return;
    // The speed: how many seconds of computation, by one thread that is never preempted, are done in a second.
    if (evaluate(caller_chunks_ > 0 ? cpu_ * chunks_ / caller_chunks_ / wall_ : 0)) idle_until_ = now + IDLE;
    cpu_ = wall_ = caller_chunks_ = chunks_ = 0, calls_ = 0;
  }

 private:
  static constexpr double WINDOW = 0.02;          // seconds of calls that are evaluated together: some time slices
  static constexpr double IDLE = 0.06;            // seconds without measurements
  static constexpr int MIN_CALLS = 4;             // of a window
  static constexpr int TRIAL_WINDOWS = 5;         // of another number of threads, unless it is clear before ...
  static constexpr double CLEAR_RATIO = 0.7;      // ... by this ratio of speeds
  static constexpr double SUDDEN_SLOWDOWN = 0.5;  // a ratio of speeds at which the machine's load must have changed
  static constexpr int MIN_INTERVAL = 2, INTERVAL = 8, MAX_INTERVAL = 40;  // windows until the next trial

  bool evaluate(double speed) {  // whether all is well
    ++windows_;
    if (baseline_threads_) return evaluate_trial(speed), false;
    if (speed < SUDDEN_SLOWDOWN * speed_) interval_ = MIN_INTERVAL;
    speed_ = speed_ > 0 ? 0.8 * speed_ + 0.2 * speed : speed;
    // Half of the threads cannot be faster than their number.
    const bool try_fewer = used_ > 1 && speed_ < used_ / 2, try_more = used_ < allowed_;
    if (!try_fewer && !try_more) return speed > used_ / 2;
    if (windows_ < interval_) return false;
    tried_more_ = try_more && (!try_fewer || !tried_more_);
    baseline_threads_ = used_, baseline_speed_ = speed_, windows_ = 0, speed_ = 0;
    used_ = tried_more_ ? (2 * used_ < allowed_ ? 2 * used_ : allowed_) : used_ / 2;
    return false;
  }

  void evaluate_trial(double speed) {
    speed_ += (speed - speed_) / windows_;
    const bool clear = speed_ < CLEAR_RATIO * baseline_speed_ || baseline_speed_ < CLEAR_RATIO * speed_;
    if (!clear && windows_ < TRIAL_WINDOWS) return;
    if (speed_ > baseline_speed_) {
      interval_ = INTERVAL;
    } else {
      used_ = baseline_threads_, speed_ = baseline_speed_;
      interval_ = 2 * interval_ < MAX_INTERVAL ? 2 * interval_ : MAX_INTERVAL;
    }
    baseline_threads_ = windows_ = 0;
  }

  int allowed_, used_;
  double idle_until_ = 0;
  double cpu_ = 0, wall_ = 0, caller_chunks_ = 0, chunks_ = 0;  // of this window
  int calls_ = 0, windows_ = 0, interval_ = MIN_INTERVAL;
  bool tried_more_ = false;
  double speed_ = 0;
  int baseline_threads_ = 0;  // in a trial, what is compared with; else 0
  double baseline_speed_ = 0;
};

}  // namespace sinfusion
