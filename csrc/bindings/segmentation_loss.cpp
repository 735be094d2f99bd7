#include "arguments/segmentation_loss.h"
#include "bindings/tensors.h"

namespace mpamatch {
namespace {

Pair segmentation_loss(const Tensor& logits, const Tensor& label, const std::optional<Tensor>& weight) {
    const Call call(logits, "logits");
    const Logits x = call.logits(logits);
    const ScalarType dtype = working(x.element);
    Tensor cross_entropy = call.empty(dtype, {}), overlap = call.empty(dtype, {3, x.classes});
    call.run(SegmentationLossArguments{x, call.indices(label, "label", x.batch * x.pixels),
                                       call.data(weight, "weight", dtype, {x.batch, logits.size(2), logits.size(3)}),
                                       cross_entropy.mutable_data_ptr(), overlap.mutable_data_ptr()});
    return {cross_entropy, overlap};
}

Tensor segmentation_loss_backward(const Tensor& grad_cross_entropy, const Tensor& grad_overlap, const Tensor& logits,
                                  const Tensor& label, const std::optional<Tensor>& weight) {
    const Call call(logits, "logits");
    const Logits x = call.logits(logits);
    const ScalarType dtype = working(x.element);
    Tensor grad_logits = call.empty(logits.scalar_type(), {x.batch, x.classes, logits.size(2), logits.size(3)});
    call.run(SegmentationLossBackwardArguments{
        call.data(grad_cross_entropy, "grad_cross_entropy", dtype, {}),
        call.data(grad_overlap, "grad_overlap", dtype, {3, x.classes}), x,
        call.indices(label, "label", x.batch * x.pixels),
        call.data(weight, "weight", dtype, {x.batch, logits.size(2), logits.size(3)}), grad_logits.mutable_data_ptr()});
    return grad_logits;
}

}  // namespace

MPAMATCH_SCHEMAS(m) {
    m.def("segmentation_loss(Tensor logits, Tensor label, Tensor? weight) -> (Tensor, Tensor)");
    m.def(
        "segmentation_loss_backward(Tensor grad_cross_entropy, Tensor grad_overlap, Tensor logits, Tensor label, "
        "Tensor? weight) -> Tensor");
}

MPAMATCH_IMPLEMENTATIONS(m) {
    m.impl("segmentation_loss", TORCH_BOX(&segmentation_loss));
    m.impl("segmentation_loss_backward", TORCH_BOX(&segmentation_loss_backward));
}

}  // namespace mpamatch
