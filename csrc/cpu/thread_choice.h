// How many of the threads that are allowed a call should use: all, half of them, ... or one. On a busy machine a thread
// that is not given time holds more up than it takes over; which it is, is measured by the calls themselves.
#pragma once
#include <cstdint>

namespace sinfusion {

// Seconds of calls, each with the short pause before it. One thread alone would have computed for `alone` in place of
// `took`, at the pace of its own pieces; it slept while others had the last ones.
struct Spent {
  double wall = 0, cpu = 0, slept = 0, alone = 0, took = 0;
};

class ThreadChoice {
 public:
  // For the next call, where `allowed` are.
  int used(int allowed) {
    if (allowed != allowed_) *this = ThreadChoice(allowed);
    return used_;
  }

  void add(const Spent& call) {
    sum_.wall += call.wall, sum_.cpu += call.cpu, sum_.slept += call.slept;
    sum_.alone += call.alone, sum_.took += call.took;
    if (++calls_ < CALLS || sum_.wall < WINDOW) return;
    // Seconds of one thread's computing that are done in a second. The share of a core that this thread had does not
    // count as slow work: it might have had no more alone.
    const double share = sum_.wall > sum_.slept ? sum_.cpu / (sum_.wall - sum_.slept) : 1;
    judge(used_ == 1 ? share : share * sum_.alone / sum_.took);
    sum_ = Spent{};
    calls_ = 0;
  }

  explicit ThreadChoice(int allowed = 0) : allowed_(allowed), used_(allowed) {}

 private:
  static constexpr double WINDOW = 0.02;  // seconds of calls that are judged together: some turns of the scheduler
  static constexpr int CALLS = 4;         // at least
  static constexpr int SHORT = 1, LONG = 64;  // windows until another number is tried
  static constexpr double SUDDENLY = 0.75;    // so much slower than before: the machine has changed

  void judge(double rate) {
    if (before_) {  // this was a trial
      const bool better = rate > rate_before_;
      patience_ = better ? SHORT : patience_ * 2 < LONG ? patience_ * 2 : LONG;
      if (better) rate_ = rate;
      if (!better) used_ = before_, rate_ = rate_before_;
      before_ = windows_ = 0;
      return;
    }
    if (rate < SUDDENLY * rate_) patience_ = SHORT;
    rate_ = rate_ > 0 ? 0.7 * rate_ + 0.3 * rate : rate;
    if (++windows_ < patience_) return;
    // Half of the threads cannot do more than half of their number.
    const bool fewer = used_ > 1 && rate_ < 1.1 * (used_ / 2), more = used_ < allowed_;
    if (!fewer && !more) return;
    up_ = more && (!fewer || !up_);
    before_ = used_, rate_before_ = rate_;
    used_ = up_ ? (2 * used_ < allowed_ ? 2 * used_ : allowed_) : used_ / 2;
  }

  int allowed_, used_;
  Spent sum_;
  int calls_ = 0, windows_ = 0, patience_ = SHORT;
  int before_ = 0;  // in a trial: the number it is compared with
  bool up_ = false;
  double rate_ = 0, rate_before_ = 0;
};

}  // namespace sinfusion
