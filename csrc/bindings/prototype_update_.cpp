#include "arguments/prototype_update_.h"
#include "bindings/tensors.h"

namespace mpamatch {
namespace {

Tensor prototype_sum(const Tensor& embedding, const Tensor& assignment, const std::optional<Tensor>& weight,
                     int64_t prototypes) {
    const Call call(embedding, "embedding");
    const Pixels pixels = call.pixels(embedding);
    STD_TORCH_CHECK(prototypes > 0 && prototypes < INT32_LIMIT, "prototypes: expected at least one, fewer than 2^31.");
    const ScalarType dtype = working(pixels.element);
    Tensor total = call.empty(dtype, {prototypes, pixels.width});
    call.run(PrototypeSumArguments{pixels, call.indices(assignment, "assignment", pixels.count),
                                   call.data(weight, "weight", dtype, {pixels.count}), prototypes,
                                   total.mutable_data_ptr()});
    return total;
}

void prototype_move_(Tensor prototypes, Tensor updates, const Tensor& total, double momentum) {
    const Call call(prototypes, "prototypes");
    const Element element = element_of(prototypes, "prototypes");
    STD_TORCH_CHECK(prototypes.dim() == 3, "prototypes: expected (C, K, D).");
    STD_TORCH_CHECK(momentum >= 0 && momentum <= 1, "momentum: expected in [0, 1].");
    const int64_t classes = prototypes.size(0), per_class = prototypes.size(1), width = prototypes.size(2);
    const ScalarType dtype = working(element);
    call.data(prototypes, "prototypes", dtype, {classes, per_class, width});
    call.data(updates, "updates", ScalarType::Long, {classes, per_class});
    call.run(PrototypeMoveArguments{prototypes.mutable_data_ptr(), static_cast<int64_t*>(updates.mutable_data_ptr()),
                                    element, classes * per_class, width,
                                    call.data(total, "total", dtype, {classes * per_class, width}), momentum});
}

}  // namespace

MPAMATCH_SCHEMAS(m) {
    m.def("prototype_sum(Tensor embedding, Tensor assignment, Tensor? weight, int prototypes) -> Tensor");
    m.def("prototype_move_(Tensor(a!) prototypes, Tensor(b!) updates, Tensor total, float momentum) -> ()");
}

MPAMATCH_IMPLEMENTATIONS(m) {
    m.impl("prototype_sum", TORCH_BOX(&prototype_sum));
    m.impl("prototype_move_", TORCH_BOX(&prototype_move_));
}

}  // namespace mpamatch
