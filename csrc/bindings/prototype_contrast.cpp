#include "arguments/prototype_contrast.h"
#include "bindings/tensors.h"

namespace mpamatch {
namespace {

std::tuple<Tensor, Tensor, Tensor> prototype_contrast(const Tensor& embedding, const Tensor& prototypes,
                                                      const Tensor& assignment, const std::optional<Tensor>& weight,
                                                      double temperature, bool same_class_negatives) {
    const Call call(embedding, "embedding");
    const Pixels pixels = call.pixels(embedding);
    const Prototypes p = call.prototypes(prototypes, pixels);
    const ScalarType dtype = working(pixels.element);
    STD_TORCH_CHECK(temperature > 0, "temperature: expected > 0.");
    Tensor contrast = call.empty(dtype, {}), alignment = call.empty(dtype, {}), lse = call.empty(dtype, {pixels.count});
    call.run(PrototypeContrastArguments{
        pixels, p.data, p.classes, p.per_class, call.indices(assignment, "assignment", pixels.count),
        call.data(weight, "weight", dtype, {pixels.count}), temperature, same_class_negatives,
        contrast.mutable_data_ptr(), alignment.mutable_data_ptr(), lse.mutable_data_ptr()});
    return {contrast, alignment, lse};
}

Pair prototype_contrast_backward(const Tensor& grad_contrast, const Tensor& grad_alignment, const Tensor& embedding,
                                 const Tensor& prototypes, const Tensor& assignment,
                                 const std::optional<Tensor>& weight, const Tensor& lse, double temperature,
                                 bool same_class_negatives, bool need_embedding, bool need_prototypes) {
    const Call call(embedding, "embedding");
    const Pixels pixels = call.pixels(embedding);
    const Prototypes p = call.prototypes(prototypes, pixels);
    const ScalarType dtype = working(pixels.element);
    STD_TORCH_CHECK(temperature > 0, "temperature: expected > 0.");
    const Gradient in_embedding = call.gradient(need_embedding, embedding.scalar_type(), {pixels.count, pixels.width});
    const Gradient in_prototypes = call.gradient(need_prototypes, dtype, p.shape());
    call.run(PrototypeContrastBackwardArguments{
        call.data(grad_contrast, "grad_contrast", dtype, {}), call.data(grad_alignment, "grad_alignment", dtype, {}),
        pixels, p.data, p.classes, p.per_class, call.indices(assignment, "assignment", pixels.count),
        call.data(weight, "weight", dtype, {pixels.count}), call.data(lse, "lse", dtype, {pixels.count}), temperature,
        same_class_negatives, in_embedding.data, in_prototypes.data});
    return {in_embedding.tensor, in_prototypes.tensor};
}

}  // namespace

MPAMATCH_SCHEMAS(m) {
    m.def(
        "prototype_contrast(Tensor embedding, Tensor prototypes, Tensor assignment, Tensor? weight, "
        "float temperature, bool same_class_negatives) -> (Tensor, Tensor, Tensor)");
    m.def(
        "prototype_contrast_backward(Tensor grad_contrast, Tensor grad_alignment, Tensor embedding, "
        "Tensor prototypes, Tensor assignment, Tensor? weight, Tensor lse, float temperature, "
        "bool same_class_negatives, bool need_embedding, bool need_prototypes) -> (Tensor, Tensor)");
}

MPAMATCH_IMPLEMENTATIONS(m) {
    m.impl("prototype_contrast", TORCH_BOX(&prototype_contrast));
    m.impl("prototype_contrast_backward", TORCH_BOX(&prototype_contrast_backward));
}

}  // namespace mpamatch
