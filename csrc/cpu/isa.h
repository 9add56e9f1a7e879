// Which instruction set the CPU library uses: the best the machine has, or what SINFUSION_ISA names.
#pragma once
#include <cstdlib>
#include <cstring>

namespace sinfusion {

enum class Isa { plain, avx2, avx512 };

inline bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return isa == Isa::plain;
#endif
}

inline Isa best_isa() {
  Isa limit = Isa::avx512;
  if (const char* forced = std::getenv("SINFUSION_ISA")) {
    if (!std::strcmp(forced, "plain")) limit = Isa::plain;
    if (!std::strcmp(forced, "avx2")) limit = Isa::avx2;
  }
  for (Isa isa : {Isa::avx512, Isa::avx2})
    if (isa <= limit && supported(isa)) return isa;
  return Isa::plain;
}

// Chosen once, when first asked.
inline Isa isa() {
  static const Isa chosen = best_isa();
  return chosen;
}

inline const char* isa_name() {
  return isa() == Isa::avx512 ? "avx512" : isa() == Isa::avx2 ? "avx2" : "plain";
}

// bf16 arithmetic in hardware, in AMX tiles or AVX-512 lanes: then PyTorch's dense convolutions are fast in bf16.
inline bool has_bf16() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace sinfusion
