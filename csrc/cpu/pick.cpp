#include "cpu/pick.h"

#if defined(MPAMATCH_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mpamatch {
namespace {

#if defined(MPAMATCH_HAS_AMX)
// Intel's manual, volume 1, section 13.3, and Linux's documentation of XSTATE: the processor has tiles, the system
// saves them (bits 17 and 18 of XCR0), and this process asks for them; later threads have the permission too.
bool has_tiles() {
#if defined(MPAMATCH_EMULATE_TILES)
    return true;
#else
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, SAVES = 1u << 27, STATE = 3u << 17;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || (c & SAVES) == 0) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BF16) == 0 || (d & TILE) == 0) return false;
    unsigned low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & STATE) == STATE && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#endif
}
#endif

// Which sets were compiled is the build's business (MPAMATCH_HAS_…), which of them runs the processor's.
bool runs(InstructionSet set) {
    switch (set) {
        case InstructionSet::baseline: return true;
#if defined(MPAMATCH_HAS_AVX2)
        case InstructionSet::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#if defined(MPAMATCH_HAS_AVX512)
        case InstructionSet::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
#if defined(MPAMATCH_HAS_AMX)
        case InstructionSet::amx: return runs(InstructionSet::avx512) && has_tiles();
#endif
        default: return false;
    }
}

InstructionSet choose() {
    const char* named = std::getenv("MPAMATCH_CPU");
    const std::string wanted = named == nullptr ? "" : named;
    if (wanted == name_of(InstructionSet::amx) && runs(InstructionSet::amx)) return InstructionSet::amx;
    for (const InstructionSet set : {InstructionSet::avx512, InstructionSet::avx2, InstructionSet::baseline})
        if (runs(set) && (wanted.empty() || wanted == name_of(set))) return set;
    throw std::runtime_error("MPAMATCH_CPU: expected baseline, avx2, avx512 or amx as this processor has, got " +
                             wanted + ".");
}

}  // namespace

InstructionSet instruction_set() {
    static const InstructionSet chosen = choose();
    return chosen;
}

const char* name_of(InstructionSet set) {
    switch (set) {
        case InstructionSet::amx: return "amx";
        case InstructionSet::avx512: return "avx512";
        case InstructionSet::avx2: return "avx2";
        default: return "baseline";
    }
}

}  // namespace mpamatch
