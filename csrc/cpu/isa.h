// Which instruction set the CPU library uses: the best of the machine's, at most the one that SINFUSION_ISA names.
#pragma once
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#if defined(SINFUSION_BF16)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sinfusion {

// amx and avx512_bf16 differ from avx512 in bf16 convolutions; avx512_bf16 in 1x1 ones alone, since for 3x3 Winograd's
// algorithm in fp32 is faster. And in products of int16, which all machines that have it sum at once (VNNI).
enum class Isa { plain, avx2, avx512, avx512_bf16, amx };
constexpr const char* ISA_NAMES[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(SINFUSION_BF16)  // the compiler knows these instructions
inline bool has_amx() {
#if defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned xgetbv = 1u << 27, bf16 = 1u << 22, tile = 1u << 24;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & xgetbv)) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (bf16 | tile)) != (bf16 | tile)) return false;
  constexpr unsigned saved = 3u << 17;  // XCR0: the system saves tiles and their configuration for each process
  asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  if ((eax & saved) != saved) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

inline bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
#if defined(SINFUSION_BF16)
    case Isa::amx:
      return supported(Isa::avx512_bf16) && has_amx();
    case Isa::avx512_bf16:
      return supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
    case Isa::amx:
    case Isa::avx512_bf16:
      return false;
#endif
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

// Throws std::invalid_argument.
inline int named_isa(const char* name) {
  std::string choices;
  for (int isa = 0; isa <= int(Isa::amx); ++isa) {
    if (!std::strcmp(name, ISA_NAMES[isa])) return isa;
    choices += std::string(isa ? ", " : "") + ISA_NAMES[isa];
  }
  throw std::invalid_argument("SINFUSION_ISA must be one of " + choices + ", not '" + name + "'.");
}

inline Isa best_isa() {
  const char* name = std::getenv("SINFUSION_ISA");
  int limit = name ? named_isa(name) : int(Isa::amx);
  while (limit && !supported(Isa(limit))) --limit;
  return Isa(limit);
}

// Chosen at the first call; throws as long as SINFUSION_ISA has an unknown name.
inline Isa isa() {
  static const Isa chosen = best_isa();
  return chosen;
}

inline const char* isa_name() { return ISA_NAMES[int(isa())]; }

// Whether the hardware multiplies bf16, in AMX tiles or AVX-512 vectors: then bf16 is the faster precision.
inline bool has_bf16() { return isa() >= Isa::avx512_bf16; }

}  // namespace sinfusion
