// The choice of the instruction set, once per process.
#pragma once

namespace mpamatch {

enum class InstructionSet { baseline, avx2, avx512 };

// The best that was compiled and this processor has, or the one that MPAMATCH_CPU names.
// Throws std::runtime_error if that name is unknown or the processor lacks it.
InstructionSet instruction_set();

const char* name_of(InstructionSet set);

}  // namespace mpamatch
