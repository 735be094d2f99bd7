// Compiled once per instruction set.
#include "core/prototype_update_.h"

#include "cpu/table.h"

namespace mpamatch::MPAMATCH_ISA {

void add_prototype_update_(Kernels& kernels) {
    kernels.prototype_sum = [](const PrototypeSum& a) { a.embedding.element == Element::f64 ? prototype_sum<double>(a) : prototype_sum<float>(a); };
    kernels.prototype_move_ = [](const PrototypeMove& a) { a.element == Element::f64 ? prototype_move_<double>(a) : prototype_move_<float>(a); };
}

}  // namespace mpamatch::MPAMATCH_ISA
