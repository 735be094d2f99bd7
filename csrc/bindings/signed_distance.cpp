#include "arguments/signed_distance.h"
#include "bindings/tensors.h"

namespace mpamatch {
namespace {

constexpr int64_t LARGEST_SIDE = 1 << 14;  // 3·side² stays below 2^31: no squared distance overflows int32

Tensor signed_distance(const Tensor& label, int64_t num_classes) {
    const Call call(label, "label");
    STD_TORCH_CHECK(label.dim() == 3, "label: expected (B, H, W).");
    STD_TORCH_CHECK(num_classes >= 1 && num_classes <= MOST_CLASSES, "num_classes: expected 1 to 255.");
    const int64_t batch = label.size(0), height = label.size(1), width = label.size(2);
    STD_TORCH_CHECK(height <= LARGEST_SIDE && width <= LARGEST_SIDE, "label: expected sides of at most 16384 pixels.");
    const Indices indices = call.indices(label, "label", batch * height * width);
    Tensor distance = call.empty(ScalarType::Float, {batch, num_classes, height, width});
    call.run(SignedDistanceArguments{indices, batch, num_classes, height, width,
                                     static_cast<float*>(distance.mutable_data_ptr())});
    return distance;
}

}  // namespace

MPAMATCH_SCHEMAS(m) { m.def("signed_distance(Tensor label, int num_classes) -> Tensor"); }

MPAMATCH_IMPLEMENTATIONS(m) { m.impl("signed_distance", TORCH_BOX(&signed_distance)); }

}  // namespace mpamatch
