// Compiled once per instruction set.
#include "core/signed_distance.h"

namespace mpamatch::MPAMATCH_ISA {

void run_kernel(const SignedDistanceArguments& a, ParallelTasks parallel) { signed_distance(a, parallel); }

}  // namespace mpamatch::MPAMATCH_ISA
