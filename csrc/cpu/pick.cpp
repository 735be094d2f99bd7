#include "cpu/pick.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mpamatch {
namespace {

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
        default: return false;
    }
}

InstructionSet choose() {
    const char* named = std::getenv("MPAMATCH_CPU");
    const std::string wanted = named == nullptr ? "" : named;
    for (const InstructionSet set : {InstructionSet::avx512, InstructionSet::avx2, InstructionSet::baseline})
        if (runs(set) && (wanted.empty() || wanted == name_of(set))) return set;
    throw std::runtime_error("MPAMATCH_CPU: expected baseline, avx2 or avx512 as this processor has, got " + wanted +
                             ".");
}

}  // namespace

InstructionSet instruction_set() {
    static const InstructionSet chosen = choose();
    return chosen;
}

const char* name_of(InstructionSet set) {
    switch (set) {
        case InstructionSet::avx512: return "avx512";
        case InstructionSet::avx2: return "avx2";
        default: return "baseline";
    }
}

}  // namespace mpamatch
