// Compiled once per instruction set.
#include "core/pseudo_label.h"

#include "cpu/table.h"

namespace mpamatch::MPAMATCH_ISA {

void add_pseudo_label(Kernels& kernels) {
    kernels.pseudo_label = [](const PseudoLabel& a) { a.logits.element == Element::f64 ? pseudo_label<double>(a) : pseudo_label<float>(a); };
}

}  // namespace mpamatch::MPAMATCH_ISA
