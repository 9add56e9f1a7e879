// How many of the threads that are allowed calls should use: all, half of them, ... or one. On a busy machine a thread
// that is not given time holds up more than it takes over; which it is, the calls themselves tell.
#pragma once
#include <cstdint>

namespace sinfusion {

class ThreadChoice {
 public:
  explicit ThreadChoice(int allowed = 0) : allowed_(allowed), used_(allowed) {}

  // For the next call, where `allowed` are.
  int used(int allowed) {
    if (allowed != allowed_) *this = ThreadChoice(allowed);
    return used_;
  }

  // Whether a call that begins at `now`, in seconds, is to be added: where all is well, one window of four is.
  bool watches(double now) const { return now >= rest_; }

  // A call took `wall` seconds up to `now`, in which its caller computed for `cpu` seconds and did `own` of the pieces.
  void add(double cpu, double wall, int64_t own, int64_t chunks, double now) {
    cpu_ += cpu, wall_ += wall, own_ += double(own), pieces_ += double(chunks);
    if (++calls_ < CALLS || wall_ < WINDOW) return;
    // Seconds that one thread would have computed for all of them, which is never interrupted, in a second.
    if (judge(own_ > 0 ? cpu_ * pieces_ / own_ / wall_ : 0)) rest_ = now + REST;
    cpu_ = wall_ = own_ = pieces_ = 0, calls_ = 0;
  }

 private:
  static constexpr double WINDOW = 0.02;  // seconds of calls that are judged together: some turns of the scheduler
  static constexpr double REST = 0.06;
  static constexpr int CALLS = 4;       // at least
  static constexpr int TRIAL = 5;       // windows of another number, where the first ones do not make it clear ...
  static constexpr double CLEAR = 0.7;  // ... by so much
  static constexpr int SHORT = 2, USUAL = 8, LONG = 40;  // windows until another number is tried
  static constexpr double SUDDENLY = 0.5;                // so much slower than before: the machine has changed

  bool judge(double rate) {  // whether all is well
    ++windows_;
    if (before_) return judge_trial(rate), false;
    if (rate < SUDDENLY * rate_) patience_ = SHORT;
    rate_ = rate_ > 0 ? 0.8 * rate_ + 0.2 * rate : rate;
    // Half of the threads do at most as many seconds of work in a second as they are.
    const bool fewer = used_ > 1 && rate_ < used_ / 2, more = used_ < allowed_;
    if (!fewer && !more) return rate > used_ / 2;
    if (windows_ < patience_) return false;
    up_ = more && (!fewer || !up_);
    before_ = used_, rate_before_ = rate_, windows_ = 0, rate_ = 0;
    used_ = up_ ? (2 * used_ < allowed_ ? 2 * used_ : allowed_) : used_ / 2;
    return false;
  }

  void judge_trial(double rate) {
    rate_ += (rate - rate_) / windows_;
    const bool clear = rate_ < CLEAR * rate_before_ || rate_before_ < CLEAR * rate_;
    if (!clear && windows_ < TRIAL) return;
    if (rate_ > rate_before_)
      patience_ = USUAL;
    else
      used_ = before_, rate_ = rate_before_, patience_ = 2 * patience_ < LONG ? 2 * patience_ : LONG;
    before_ = windows_ = 0;
  }

  int allowed_, used_;
  double rest_ = 0;  // until then
  double cpu_ = 0, wall_ = 0, own_ = 0, pieces_ = 0;
  int calls_ = 0, windows_ = 0, patience_ = SHORT;
  bool up_ = false;
  double rate_ = 0;         // seconds of work in a second
  int before_ = 0;          // in a trial: the number it is compared with,
  double rate_before_ = 0;  // and its rate
};

}  // namespace sinfusion
