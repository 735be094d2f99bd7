// Compiled once per instruction set.
#include "cpu/table.h"

#define MPAMATCH_NAME_OF(isa) #isa
#define MPAMATCH_NAME(isa) MPAMATCH_NAME_OF(isa)

namespace mpamatch::MPAMATCH_ISA {

const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels all{};
        all.instruction_set = MPAMATCH_NAME(MPAMATCH_ISA);
        add_prototype_distance(all);
        add_prototype_contrast(all);
        add_sinkhorn_assign(all);
        add_prototype_update_(all);
        add_segmentation_loss(all);
        add_pseudo_label(all);
        add_signed_distance(all);
        return all;
    }();
    return table;
}

}  // namespace mpamatch::MPAMATCH_ISA
