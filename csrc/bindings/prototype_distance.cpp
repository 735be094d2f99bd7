#include "arguments/prototype_distance.h"
#include "bindings/tensors.h"

namespace mpamatch {
namespace {

Pair prototype_distance(const Tensor& embedding, const Tensor& prototypes) {
    const Call call(embedding, "embedding");
    const Pixels pixels = call.pixels(embedding);
    const Prototypes p = call.prototypes(prototypes, pixels);
    Tensor distance = call.empty(working(pixels.element), {pixels.count, p.classes});
    Tensor nearest = call.empty(ScalarType::Int, {pixels.count, p.classes});
    call.run(PrototypeDistanceArguments{pixels, p.data, p.classes, p.per_class, distance.mutable_data_ptr(),
                                        static_cast<int32_t*>(nearest.mutable_data_ptr())});
    return {distance, nearest};
}

Pair prototype_distance_backward(const Tensor& grad_distance, const Tensor& embedding, const Tensor& prototypes,
                                 const Tensor& distance, const Tensor& nearest, bool need_embedding,
                                 bool need_prototypes) {
    const Call call(embedding, "embedding");
    const Pixels pixels = call.pixels(embedding);
    const Prototypes p = call.prototypes(prototypes, pixels);
    const ScalarType dtype = working(pixels.element);
    const Shape shape{pixels.count, p.classes};
    const void* grad = call.data(grad_distance, "grad_distance", dtype, shape);
    const void* kept = call.data(distance, "distance", dtype, shape);
    const auto* chosen = static_cast<const int32_t*>(call.data(nearest, "nearest", ScalarType::Int, shape));
    for (int64_t i = 0; i < nearest.numel(); ++i)
        STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < p.per_class, "nearest: expected in [0, K).");
    const Gradient in_embedding = call.gradient(need_embedding, embedding.scalar_type(), {pixels.count, pixels.width});
    const Gradient in_prototypes = call.gradient(need_prototypes, dtype, p.shape());
    call.run(PrototypeDistanceBackwardArguments{grad, pixels, p.data, p.classes, p.per_class, kept, chosen,
                                                in_embedding.data, in_prototypes.data});
    return {in_embedding.tensor, in_prototypes.tensor};
}

}  // namespace

MPAMATCH_SCHEMAS(m) {
    m.def("prototype_distance(Tensor embedding, Tensor prototypes) -> (Tensor, Tensor)");
    m.def(
        "prototype_distance_backward(Tensor grad_distance, Tensor embedding, Tensor prototypes, Tensor distance, "
        "Tensor nearest, bool need_embedding, bool need_prototypes) -> (Tensor, Tensor)");
}

MPAMATCH_IMPLEMENTATIONS(m) {
    m.impl("prototype_distance", TORCH_BOX(&prototype_distance));
    m.impl("prototype_distance_backward", TORCH_BOX(&prototype_distance_backward));
}

}  // namespace mpamatch
