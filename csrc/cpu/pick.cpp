#include "cpu/pick.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mpamatch {
namespace {

// Which sets were compiled is the build's business (MPAMATCH_HAS_…), which of them runs the processor's.
const Kernels* find(const std::string& name) {
    if (name == "baseline") return &baseline::kernels();
#if defined(MPAMATCH_HAS_AVX2)
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (name == "avx2" && has_avx2) return &avx2::kernels();
#endif
#if defined(MPAMATCH_HAS_AVX512)
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (name == "avx512" && has_avx512) return &avx512::kernels();
#endif
    return nullptr;
}

const Kernels& choose() {
    const char* wanted = std::getenv("MPAMATCH_CPU");
    if (wanted == nullptr || *wanted == '\0') {
        for (const char* name : {"avx512", "avx2"})
            if (const Kernels* best = find(name)) return *best;
        return baseline::kernels();
    }
    const Kernels* found = find(wanted);
    if (found == nullptr)
        throw std::runtime_error(std::string("MPAMATCH_CPU: expected baseline, avx2 or avx512 as this processor has, got ") +
                                 wanted + ".");
    return *found;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

const char* instruction_set() { return kernels().instruction_set; }

}  // namespace mpamatch
