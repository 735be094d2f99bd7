// Compiled once per instruction set.
#include "core/prototype_contrast.h"

#include "cpu/table.h"

namespace mpamatch::MPAMATCH_ISA {

void add_prototype_contrast(Kernels& kernels) {
    kernels.prototype_contrast = [](const PrototypeContrast& a) { a.embedding.element == Element::f64 ? prototype_contrast<double>(a) : prototype_contrast<float>(a); };
    kernels.prototype_contrast_backward = [](const PrototypeContrastBackward& a) { a.embedding.element == Element::f64 ? prototype_contrast_backward<double>(a) : prototype_contrast_backward<float>(a); };
}

}  // namespace mpamatch::MPAMATCH_ISA
