// Compiled once per instruction set.
#include "core/sinkhorn_assign.h"

#include "cpu/table.h"

namespace mpamatch::MPAMATCH_ISA {

void add_sinkhorn_assign(Kernels& kernels) {
    kernels.sinkhorn_score = [](const SinkhornScore& a) { a.embedding.element == Element::f64 ? sinkhorn_score<double>(a) : sinkhorn_score<float>(a); };
    kernels.sinkhorn_step = [](const SinkhornStep& a) { a.element == Element::f64 ? sinkhorn_step<double>(a) : sinkhorn_step<float>(a); };
    kernels.sinkhorn_pick = [](const SinkhornPick& a) { a.element == Element::f64 ? sinkhorn_pick<double>(a) : sinkhorn_pick<float>(a); };
}

}  // namespace mpamatch::MPAMATCH_ISA
