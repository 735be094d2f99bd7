// How a kernel is called: by the type of its arguments, which says what is computed.
#pragma once

#include "arguments/common.h"
#include "cpu/pick.h"

namespace mpamatch {

// Runs task(context, i) for every i in [0, tasks), in any order and on any thread.
using ParallelTasks = void (*)(int64_t tasks, void (*task)(void* context, int64_t index), void* context);

namespace cuda {
struct Place;
}

}  // namespace mpamatch

// A call of an instruction set that was compiled; nothing otherwise.
#if defined(MPAMATCH_HAS_AVX2)
#define MPAMATCH_AVX2(call) \
    case InstructionSet::avx2: return avx2::call;
#else
#define MPAMATCH_AVX2(call)
#endif
#if defined(MPAMATCH_HAS_AVX512)
#define MPAMATCH_AVX512(call) \
    case InstructionSet::avx512: return avx512::call;
#else
#define MPAMATCH_AVX512(call)
#endif
#if defined(MPAMATCH_HAS_AMX)
#define MPAMATCH_AMX(call) \
    case InstructionSet::amx: return amx::call;
#else
#define MPAMATCH_AMX(call)
#endif

// Declares run_kernel(arguments, parallel), the CPU's kernel on the best instruction set, which cpu/<operation>.cpp
// defines once for each of them, and run_kernel(arguments, place), CUDA's, which cuda/<operation>.cu defines if there
// is one: calling a kernel that nobody wrote is an error of the linker.
#define MPAMATCH_KERNEL(Arguments)                                               \
    namespace baseline {                                                         \
    void run_kernel(const Arguments& arguments, ParallelTasks parallel);         \
    }                                                                            \
    namespace avx2 {                                                             \
    void run_kernel(const Arguments& arguments, ParallelTasks parallel);         \
    }                                                                            \
    namespace avx512 {                                                           \
    void run_kernel(const Arguments& arguments, ParallelTasks parallel);         \
    }                                                                            \
    namespace amx {                                                              \
    void run_kernel(const Arguments& arguments, ParallelTasks parallel);         \
    }                                                                            \
    namespace cuda {                                                             \
    void run_kernel(const Arguments& arguments, const Place& place);             \
    }                                                                            \
    inline void run_kernel(const Arguments& arguments, ParallelTasks parallel) { \
        switch (instruction_set()) {                                             \
            MPAMATCH_AVX2(run_kernel(arguments, parallel))                       \
            MPAMATCH_AVX512(run_kernel(arguments, parallel))                     \
            MPAMATCH_AMX(run_kernel(arguments, parallel))                        \
            default: return baseline::run_kernel(arguments, parallel);           \
        }                                                                        \
    }
