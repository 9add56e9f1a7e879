// Which instruction set the CPU library uses: the best the machine has, or at most what SINFUSION_ISA names.
// SINFUSION_ISA=emulated_amx: amx, whatever the machine has, for tests that emulate its instructions.
#pragma once
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sinfusion {

// The last two differ from avx512 in dense convolutions of bf16, avx512_bf16 in those of single pixels alone: of 3x3
// pixels, Winograd's algorithm in fp32 is faster.
enum class Isa { plain, avx2, avx512, avx512_bf16, amx };
constexpr const char* ISA_NAMES[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};

// Linux lets a process use tiles when it has asked.
inline bool amx_permitted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

inline bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::amx:
      return supported(Isa::avx512_bf16) && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
             amx_permitted();
    case Isa::avx512_bf16:
      return supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
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
  int limit = int(Isa::amx);
  if (const char* named = std::getenv("SINFUSION_ISA")) {
    if (!std::strcmp(named, "emulated_amx")) return Isa::amx;
    for (int isa = 0; isa <= int(Isa::amx); ++isa)
      if (!std::strcmp(named, ISA_NAMES[isa])) limit = isa;
  }
  while (limit && !supported(Isa(limit))) --limit;
  return Isa(limit);
}

// Chosen once, when first asked.
inline Isa isa() {
  static const Isa chosen = best_isa();
  return chosen;
}

inline const char* isa_name() { return ISA_NAMES[int(isa())]; }

// Products of bf16 in hardware, in AMX tiles or AVX-512 lanes: then bf16 is the faster precision.
inline bool has_bf16() { return isa() >= Isa::avx512_bf16; }

}  // namespace sinfusion
