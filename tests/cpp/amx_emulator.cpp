// Emulates AMX on machines without it: a SIGILL handler executes the instructions.
//
// Written after Intel's manual (SDM volume 2: LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1,
// TILESTORED, TDPBF16PS). Other illegal instructions go to the previous handler. Each thread has its
// own tiles.
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <atomic>

namespace {

constexpr int TILES = 8, ROWS = 16, BYTES = 64;
enum Kind { LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBF16PS, KINDS };

struct Configuration {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Configuration) == BYTES, "as LDTILECFG reads it");

struct State {
  Configuration configuration;
  uint8_t tiles[TILES][ROWS][BYTES];
};
thread_local State state;
std::atomic<uint64_t> counts[KINDS];
struct sigaction previous;

float widened(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// The even and the odd elements of pairs are summed apart, by fused multiply-adds in order, then added to each other
// and to c. Denormals are zero and rounding is to nearest even, whatever the thread's own MXCSR.
void dot_products(float* c, const uint16_t* a, const uint16_t* b, int rows, int pairs, int columns) {
  const unsigned own = _mm_getcsr();
  _mm_setcsr(0x1f80 | 0x8040);
  float even[ROWS], odd[ROWS], b_even[ROWS][ROWS], b_odd[ROWS][ROWS];
  for (int k = 0; k < pairs; ++k)
    for (int n = 0; n < columns; ++n) {
      b_even[k][n] = widened(b[k * 32 + 2 * n]);
      b_odd[k][n] = widened(b[k * 32 + 2 * n + 1]);
    }
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < ROWS; ++n) even[n] = odd[n] = 0;
    for (int k = 0; k < pairs; ++k) {
      const float a_even = widened(a[m * 32 + 2 * k]), a_odd = widened(a[m * 32 + 2 * k + 1]);
      for (int n = 0; n < columns; ++n) {
        even[n] = __builtin_fmaf(a_even, b_even[k][n], even[n]);
        odd[n] = __builtin_fmaf(a_odd, b_odd[k][n], odd[n]);
      }
    }
    for (int n = 0; n < columns; ++n) c[m * 16 + n] += even[n] + odd[n];
  }
  _mm_setcsr(own);
}

struct Instruction {
  Kind kind;
  int length, reg, rm, vvvv;
  uint8_t* memory;
  int64_t stride;
};

constexpr int REGISTERS[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// A VEX-coded instruction of three prefix bytes: C4, RXB and map 2, W vvvv L pp; then opcode, ModRM, SIB, displacement.
bool decode(const uint8_t* code, const greg_t* registers, Instruction& it) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return false;  // W = 0, L = 0
  const int not_r = code[1] >> 7, not_x = code[1] >> 6 & 1, not_b = code[1] >> 5 & 1, prefix = code[2] & 3;
  const int opcode = code[3], mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
  enum { NONE, P66, F3, F2 };
  it.vvvv = ~(code[2] >> 3) & 15, it.reg = reg, it.rm = rm, it.length = 5;
  it.memory = nullptr, it.stride = 0;
  if (opcode == 0x5c && prefix == F3 && mod == 3) {
    it.kind = TDPBF16PS;
    return not_r && not_b && it.vvvv < TILES;
  }
  if (opcode == 0x49 && mod == 3) {
    it.kind = prefix == F2 ? TILEZERO : TILERELEASE;
    return it.vvvv == 0 && not_r && not_b && rm == 0 && (prefix == F2 || (prefix == NONE && reg == 0));
  }
  if (opcode == 0x49 && reg == 0 && (prefix == NONE || prefix == P66))
    it.kind = prefix == P66 ? STTILECFG : LDTILECFG;
  else if (opcode == 0x4b && rm == 4 && mod != 3 && prefix != NONE)
    it.kind = prefix == F3 ? TILESTORED : TILELOADD;  // F2; with 66 it is TILELOADDT1
  else
    return false;
  if (it.vvvv || !not_r) return false;

  uint64_t address = 0;
  if (rm == 4) {
    const int sib = code[it.length++], index = (sib >> 3 & 7) | (not_x ? 0 : 8), base = (sib & 7) | (not_b ? 0 : 8);
    if (index != 4) it.stride = registers[REGISTERS[index]] * (int64_t(1) << (sib >> 6));
    if ((sib & 7) == 5 && mod == 0) {
      int32_t displacement;
      memcpy(&displacement, code + it.length, 4);
      address = int64_t(displacement), it.length += 4;
    } else {
      address = registers[REGISTERS[base]];
    }
  } else if (rm == 5 && mod == 0) {  // from the next instruction
    int32_t displacement;
    memcpy(&displacement, code + it.length, 4);
    it.length += 4;
    address = registers[REG_RIP] + it.length + int64_t(displacement);
  } else {
    address = registers[REGISTERS[rm | (not_b ? 0 : 8)]];
  }
  if (mod == 1) address += int64_t(int8_t(code[it.length++]));
  if (mod == 2) {
    int32_t displacement;
    memcpy(&displacement, code + it.length, 4);
    address += int64_t(displacement), it.length += 4;
  }
  if (opcode == 0x49) address += it.stride;  // no tile: an ordinary address
  it.memory = reinterpret_cast<uint8_t*>(address);
  return true;
}

// Returns false where the processor would fault.
bool execute(const Instruction& it) {
  Configuration& configuration = state.configuration;
  const auto rows = [&](int tile) { return int(configuration.rows[tile]); };
  const auto bytes = [&](int tile) { return int(configuration.bytes[tile]); };
  const auto valid = [&](int tile) { return rows(tile) > 0 && bytes(tile) > 0; };
  if (it.kind == LDTILECFG) {
    Configuration given;
    memcpy(&given, it.memory, BYTES);
    if (given.palette > 1) return false;
    for (int tile = 0; given.palette && tile < 16; ++tile)
      if (given.bytes[tile] > BYTES || given.rows[tile] > ROWS || !given.bytes[tile] != !given.rows[tile] ||
          (tile >= TILES && given.rows[tile]))
        return false;
    memset(&state, 0, sizeof state);
    if (given.palette) configuration = given;
    return true;
  }
  if (it.kind == TILERELEASE) {
    memset(&state, 0, sizeof state);
    return true;
  }
  if (it.kind == STTILECFG) {
    memcpy(it.memory, &configuration, BYTES);
    return true;
  }
  if (!configuration.palette || !valid(it.reg)) return false;
  auto& tile = state.tiles[it.reg];
  switch (it.kind) {
    case TILEZERO:
      memset(tile, 0, sizeof tile);
      return true;
    case TILELOADD:
      memset(tile, 0, sizeof tile);
      for (int row = 0; row < rows(it.reg); ++row) memcpy(tile[row], it.memory + row * it.stride, bytes(it.reg));
      return true;
    case TILESTORED:
      for (int row = 0; row < rows(it.reg); ++row) memcpy(it.memory + row * it.stride, tile[row], bytes(it.reg));
      return true;
    default: {
      const int a = it.rm, b = it.vvvv;  // in Intel's order of operands: c, a, b
      if (it.reg == a || it.reg == b || a == b || !valid(a) || !valid(b)) return false;
      if (bytes(it.reg) % 4 || bytes(a) % 4 || bytes(b) % 4) return false;
      if (rows(a) != rows(it.reg) || bytes(b) != bytes(it.reg) || bytes(a) / 4 != rows(b)) return false;
      dot_products(reinterpret_cast<float*>(tile), reinterpret_cast<uint16_t*>(state.tiles[a]),
                   reinterpret_cast<uint16_t*>(state.tiles[b]), rows(it.reg), rows(b), bytes(it.reg) / 4);
      return true;
    }
  }
}

void illegal(int number, siginfo_t* info, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  Instruction it;
  if (decode(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers, it) && execute(it)) {
    counts[it.kind].fetch_add(1, std::memory_order_relaxed);
    registers[REG_RIP] += it.length;
  } else if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(number);
  } else {
    signal(SIGILL, SIG_DFL);  // the instruction is executed again, and kills the process
  }
}

}  // namespace

extern "C" {
int install() {
  struct sigaction action{};
  action.sa_sigaction = illegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, &previous);
}
uint64_t executed(int kind) { return counts[kind]; }

// c (rows, 16) += a (rows, 2 pairs of numbers) b (pairs, 2 columns), in lines of 16 and 32: by dot_products, and by
// instructions.
void product(float* c, const uint16_t* a, const uint16_t* b, int rows, int pairs, int columns) {
  dot_products(c, a, b, rows, pairs, columns);
}
void product_by_instructions(float* c, const uint16_t* a, const uint16_t* b, int rows, int pairs, int columns) {
  alignas(64) Configuration given{}, held{};
  given.palette = 1;
  given.rows[2] = given.rows[5] = uint8_t(rows), given.rows[7] = uint8_t(pairs);
  given.bytes[2] = given.bytes[7] = uint16_t(4 * columns), given.bytes[5] = uint16_t(4 * pairs);
  // The intrinsics do not say how much memory they touch.
  asm volatile("ldtilecfg %0" ::"m"(given));
  asm volatile("sttilecfg %0" : "=m"(held));
  if (memcmp(&given, &held, sizeof given)) return;
  asm volatile("" ::: "memory");
  _tile_loadd(2, c, 64);
  _tile_stream_loadd(5, a, 64);
  // Every form of address: registers of the upper half, a scaled index, a displacement of one byte and of four.
  asm volatile("mov %0, %%r13; mov $16, %%r9d; tileloadd 64(%%r13,%%r9,4), %%tmm7"
               :
               : "r"(b - 32)
               : "r9", "r13", "memory");
  _tile_dpbf16ps(2, 5, 7);
  asm volatile("mov $8, %%r10d; tilestored %%tmm2, 4096(%0,%%r10,8)" ::"r"(c - 1024) : "r10", "memory");
  _tile_zero(2);
  _tile_release();
}
}
