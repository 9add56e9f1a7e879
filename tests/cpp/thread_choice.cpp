// ThreadChoice on modelled machines, whose speed with each number of threads is given; there is no clock.
#include "../../csrc/cpu/thread_choice.h"

#include <stdio.h>
#include <stdlib.h>

using sinfusion::ThreadChoice;

namespace {

double clock_now = 0;

// A call that computes for a millisecond in one thread; speed(threads): seconds of computation in a second. Returns how
// long it takes.
double call(ThreadChoice& choice, int allowed, double (*speed)(int)) {
  const int used = choice.used(allowed);
  const double wall = 1e-3 / speed(used);
  if (choice.measures(clock_now)) choice.add(1e-3 / used, wall, 100 / used, 100, clock_now + wall);
  clock_now += wall;
  return wall;
}

// How long `count` calls take, in seconds.
double calls(ThreadChoice& choice, int allowed, double (*speed)(int), int count) {
  double sum = 0;
  for (int n = 0; n < count; ++n) sum += call(choice, allowed, speed);
  return sum;
}

double quiet(int used) { return 0.9 * used + 0.1; }
double one_busy(int used) { return used == 1 ? 1.0 : 0.5; }
double two_busy(int used) { return used == 1 ? 0.62 : 0.76; }
double half_busy(int used) { return used == 8 ? 1.5 : used == 4 ? 3.5 : used == 2 ? 1.8 : 1; }

void check(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "wrong: %s\n", what);
  exit(1);
}

}  // namespace

int main() {
  ThreadChoice choice;
  check(calls(choice, 2, quiet, 5000) < 1.0001 * 5 / quiet(2), "on a quiet machine all threads work, always");

  calls(choice, 2, one_busy, 500);  // about half a second
  check(calls(choice, 2, one_busy, 5000) < 5 / 0.97, "beside a busy process one thread works, but for short trials");
  calls(choice, 2, quiet, 2000);
  check(choice.used(2) == 2, "two threads work again within two seconds of quiet");
  check(calls(choice, 2, quiet, 5000) < 1.0001 * 5 / quiet(2), "and go on");

  calls(choice, 2, two_busy, 500);
  check(calls(choice, 2, two_busy, 10000) < 10 / 0.76 / 0.95, "beside two busy processes the faster number works");

  ThreadChoice many;
  calls(many, 8, half_busy, 2000);
  check(calls(many, 8, half_busy, 10000) < 10 / 3.5 / 0.95, "half of the threads work where that is best");
  check(many.used(3) == 3, "another number of threads begins anew");
}
