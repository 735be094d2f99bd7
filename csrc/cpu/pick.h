// The choice of the instruction set, once per process.
#pragma once

#include "cpu/table.h"

namespace mpamatch {

// The kernels of the best instruction set that this processor has, or of the one named by MPAMATCH_CPU.
// Throws std::runtime_error where that name is unknown or the processor lacks it.
const Kernels& kernels();

const char* instruction_set();

}  // namespace mpamatch
