// The kernels of one instruction set.
#pragma once

#include "core/arguments.h"

namespace mpamatch {

struct Kernels {
    const char* instruction_set;
    void (*prototype_distance)(const PrototypeDistance&);
    void (*prototype_distance_backward)(const PrototypeDistanceBackward&);
    void (*prototype_contrast)(const PrototypeContrast&);
    void (*prototype_contrast_backward)(const PrototypeContrastBackward&);
    void (*sinkhorn_score)(const SinkhornScore&);
    void (*sinkhorn_step)(const SinkhornStep&);
    void (*sinkhorn_pick)(const SinkhornPick&);
    void (*prototype_sum)(const PrototypeSum&);
    void (*prototype_move_)(const PrototypeMove&);
    void (*segmentation_loss)(const SegmentationLoss&);
    void (*segmentation_loss_backward)(const SegmentationLossBackward&);
    void (*pseudo_label)(const PseudoLabel&);
    void (*signed_distance)(const SignedDistance&);
};

// Every operation's file fills in its entries; each instruction set has its own copies.
#define MPAMATCH_DECLARE(isa)                       \
    namespace isa {                                 \
    void add_prototype_distance(Kernels& kernels);  \
    void add_prototype_contrast(Kernels& kernels);  \
    void add_sinkhorn_assign(Kernels& kernels);     \
    void add_prototype_update_(Kernels& kernels);   \
    void add_segmentation_loss(Kernels& kernels);   \
    void add_pseudo_label(Kernels& kernels);        \
    void add_signed_distance(Kernels& kernels);     \
    const Kernels& kernels();                       \
    }
MPAMATCH_DECLARE(baseline)
MPAMATCH_DECLARE(avx2)
MPAMATCH_DECLARE(avx512)
#undef MPAMATCH_DECLARE

}  // namespace mpamatch
