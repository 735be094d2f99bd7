// Compiled once per instruction set.
#include "core/signed_distance.h"

#include "cpu/table.h"

namespace mpamatch::MPAMATCH_ISA {

void add_signed_distance(Kernels& kernels) { kernels.signed_distance = &signed_distance; }

}  // namespace mpamatch::MPAMATCH_ISA
