#include "arguments/pseudo_label.h"
#include "bindings/tensors.h"

namespace mpamatch {
namespace {

Pair pseudo_label(const Tensor& logits) {
    const Call call(logits, "logits");
    const Logits x = call.logits(logits);
    STD_TORCH_CHECK(x.classes <= MOST_CLASSES, "logits: expected 1 to 255 classes.");
    const Shape shape{x.batch, logits.size(2), logits.size(3)};
    Tensor label = call.empty(ScalarType::Byte, shape), confidence = call.empty(working(x.element), shape);
    call.run(PseudoLabelArguments{x, static_cast<uint8_t*>(label.mutable_data_ptr()), confidence.mutable_data_ptr()});
    return {label, confidence};
}

}  // namespace

MPAMATCH_SCHEMAS(m) { m.def("pseudo_label(Tensor logits) -> (Tensor, Tensor)"); }

MPAMATCH_IMPLEMENTATIONS(m) { m.impl("pseudo_label", TORCH_BOX(&pseudo_label)); }

}  // namespace mpamatch
