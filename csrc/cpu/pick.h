// The choice of the instruction set, once per process.
#pragma once

namespace mpamatch {

enum class InstructionSet { baseline, avx2, avx512, amx };

// The best that was compiled and this processor has, or the one that MPAMATCH_CPU names. amx (AVX-512 and tiles of
// bfloat16) is taken only by name: its kernels were tested on emulated tiles, and no processor has run them yet.
// Throws std::runtime_error if that name is unknown or the processor lacks it.
InstructionSet instruction_set();

const char* name_of(InstructionSet set);

}  // namespace mpamatch
