// Compiled once per instruction set.
#include "core/prototype_distance.h"

#include "cpu/table.h"

namespace mpamatch::MPAMATCH_ISA {

void add_prototype_distance(Kernels& kernels) {
    kernels.prototype_distance = [](const PrototypeDistance& a) { a.embedding.element == Element::f64 ? prototype_distance<double>(a) : prototype_distance<float>(a); };
    kernels.prototype_distance_backward = [](const PrototypeDistanceBackward& a) { a.embedding.element == Element::f64 ? prototype_distance_backward<double>(a) : prototype_distance_backward<float>(a); };
}

}  // namespace mpamatch::MPAMATCH_ISA
