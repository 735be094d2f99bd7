// The operations as torch sees them: schemas, and the CPU kernels behind them, through the stable ABI alone, so that one
// build serves torch 2.10 and later. mpamatch/ops guarantees what is checked here again: never a crash, whoever calls.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/pick.h"

namespace mpamatch {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

constexpr int64_t largest_side = 1 << 14;  // 3·side² stays below 2^31: no squared distance overflows int32

void run_tasks(int64_t tasks, void (*task)(void*, int64_t), void* context) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) task(context, i);
    });
}

Element element_of(const Tensor& tensor, const char* name) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float: return Element::f32;
        case ScalarType::Double: return Element::f64;
        case ScalarType::Half: return Element::f16;
        case ScalarType::BFloat16: return Element::bf16;
        default: STD_TORCH_CHECK(false, name, ": expected a floating dtype.");
    }
    return Element::f32;
}

ScalarType working(Element element) { return element == Element::f64 ? ScalarType::Double : ScalarType::Float; }

// Contiguous, on the CPU, of this shape and dtype.
const void* data_of(const Tensor& tensor, const char* name, ScalarType dtype, std::vector<int64_t> shape) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), name, ": expected a contiguous tensor on the CPU.");
    STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": wrong dtype for the dtype of the pixels.");
    bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
    for (int64_t i = 0; fits && i < tensor.dim(); ++i) fits = tensor.size(i) == shape[static_cast<size_t>(i)];
    STD_TORCH_CHECK(fits, name, ": wrong shape for the shape of the others.");
    return tensor.const_data_ptr();
}

const void* data_of(const std::optional<Tensor>& tensor, const char* name, ScalarType dtype, std::vector<int64_t> shape) {
    return tensor.has_value() ? data_of(*tensor, name, dtype, shape) : nullptr;
}

Pixels pixels_of(const Tensor& embedding) {
    STD_TORCH_CHECK(embedding.is_cpu() && embedding.dim() == 2 && embedding.size(1) > 0,
                    "embedding: expected (N, D) on the CPU.");
    STD_TORCH_CHECK(embedding.stride(1) == 1 || embedding.size(1) == 1, "embedding: expected rows with unit stride.");
    return {embedding.const_data_ptr(), element_of(embedding, "embedding"), embedding.size(0), embedding.size(1),
            embedding.stride(0)};
}

Indices indices_of(const Tensor& tensor, const char* name, int64_t count) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.numel() == count, name,
                    ": expected one contiguous index per pixel, on the CPU.");
    switch (tensor.scalar_type()) {
        case ScalarType::Byte: return {tensor.const_data_ptr(), IndexType::u8};
        case ScalarType::Int: return {tensor.const_data_ptr(), IndexType::i32};
        case ScalarType::Long: return {tensor.const_data_ptr(), IndexType::i64};
        default: STD_TORCH_CHECK(false, name, ": expected uint8, int32 or int64.");
    }
    return {};
}

struct Prototypes {
    const void* data;
    int64_t classes, per_class, width;
    std::vector<int64_t> shape() const { return {classes, per_class, width}; }
};

Prototypes prototypes_of(const Tensor& prototypes, const Pixels& pixels) {
    STD_TORCH_CHECK(prototypes.dim() == 3 && prototypes.size(0) > 0 && prototypes.size(1) > 0,
                    "prototypes: expected (C, K, D), at least one of each.");
    const int64_t classes = prototypes.size(0), per_class = prototypes.size(1);
    STD_TORCH_CHECK(classes * per_class < (int64_t{1} << 31), "prototypes: too many for int32.");
    const void* data =
        data_of(prototypes, "prototypes", working(pixels.element), {classes, per_class, pixels.width});
    return {data, classes, per_class, pixels.width};
}

Logits logits_of(const Tensor& logits) {
    STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 4 && logits.is_contiguous() && logits.size(1) > 0,
                    "logits: expected contiguous (B, C, H, W) on the CPU.");
    return {logits.const_data_ptr(), element_of(logits, "logits"), logits.size(0), logits.size(1),
            logits.size(2) * logits.size(3)};
}

Tensor new_tensor(const Tensor& like, ScalarType dtype, std::vector<int64_t> shape) {
    return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), dtype);
}

Pair prototype_distance(const Tensor& embedding, const Tensor& prototypes) {
    const Pixels pixels = pixels_of(embedding);
    const Prototypes p = prototypes_of(prototypes, pixels);
    Tensor distance = new_tensor(embedding, working(pixels.element), {pixels.count, p.classes});
    Tensor nearest = new_tensor(embedding, ScalarType::Int, {pixels.count, p.classes});
    kernels().prototype_distance({pixels, p.data, p.classes, p.per_class, distance.mutable_data_ptr(),
                                  static_cast<int32_t*>(nearest.mutable_data_ptr()), run_tasks});
    return {distance, nearest};
}

Pair prototype_distance_backward(const Tensor& grad_distance, const Tensor& embedding, const Tensor& prototypes,
                                 const Tensor& distance, const Tensor& nearest, bool need_embedding,
                                 bool need_prototypes) {
    const Pixels pixels = pixels_of(embedding);
    const Prototypes p = prototypes_of(prototypes, pixels);
    const ScalarType dtype = working(pixels.element);
    const std::vector<int64_t> shape{pixels.count, p.classes}, none{0};
    const void* grad = data_of(grad_distance, "grad_distance", dtype, shape);
    const void* kept = data_of(distance, "distance", dtype, shape);
    const void* chosen = data_of(nearest, "nearest", ScalarType::Int, shape);
    for (int64_t i = 0; i < nearest.numel(); ++i) {
        const int32_t k = static_cast<const int32_t*>(chosen)[i];
        STD_TORCH_CHECK(k >= 0 && k < p.per_class, "nearest: expected in [0, K).");
    }
    Tensor in_embedding = new_tensor(embedding, embedding.scalar_type(),
                                     need_embedding ? std::vector<int64_t>{pixels.count, pixels.width} : none);
    Tensor in_prototypes = new_tensor(embedding, dtype, need_prototypes ? p.shape() : none);
    kernels().prototype_distance_backward(
        {grad, pixels, p.data, p.classes, p.per_class, kept, static_cast<const int32_t*>(chosen),
         need_embedding ? in_embedding.mutable_data_ptr() : nullptr,
         need_prototypes ? in_prototypes.mutable_data_ptr() : nullptr, run_tasks});
    return {in_embedding, in_prototypes};
}

std::tuple<Tensor, Tensor, Tensor> prototype_contrast(const Tensor& embedding, const Tensor& prototypes,
                                                      const Tensor& assignment, const std::optional<Tensor>& weight,
                                                      double temperature, bool same_class_negatives) {
    const Pixels pixels = pixels_of(embedding);
    const Prototypes p = prototypes_of(prototypes, pixels);
    const ScalarType dtype = working(pixels.element);
    STD_TORCH_CHECK(temperature > 0, "temperature: expected > 0.");
    Tensor contrast = new_tensor(embedding, dtype, {}), alignment = new_tensor(embedding, dtype, {});
    Tensor lse = new_tensor(embedding, dtype, {pixels.count});
    kernels().prototype_contrast({pixels, p.data, p.classes, p.per_class,
                                  indices_of(assignment, "assignment", pixels.count),
                                  data_of(weight, "weight", dtype, {pixels.count}), temperature, same_class_negatives,
                                  contrast.mutable_data_ptr(), alignment.mutable_data_ptr(), lse.mutable_data_ptr(),
                                  run_tasks});
    return {contrast, alignment, lse};
}

Pair prototype_contrast_backward(const Tensor& grad_contrast, const Tensor& grad_alignment, const Tensor& embedding,
                                 const Tensor& prototypes, const Tensor& assignment,
                                 const std::optional<Tensor>& weight, const Tensor& lse, double temperature,
                                 bool same_class_negatives, bool need_embedding, bool need_prototypes) {
    const Pixels pixels = pixels_of(embedding);
    const Prototypes p = prototypes_of(prototypes, pixels);
    const ScalarType dtype = working(pixels.element);
    STD_TORCH_CHECK(temperature > 0, "temperature: expected > 0.");
    const std::vector<int64_t> none{0};
    Tensor in_embedding = new_tensor(embedding, embedding.scalar_type(),
                                     need_embedding ? std::vector<int64_t>{pixels.count, pixels.width} : none);
    Tensor in_prototypes = new_tensor(embedding, dtype, need_prototypes ? p.shape() : none);
    kernels().prototype_contrast_backward(
        {data_of(grad_contrast, "grad_contrast", dtype, {}), data_of(grad_alignment, "grad_alignment", dtype, {}), pixels,
         p.data, p.classes, p.per_class, indices_of(assignment, "assignment", pixels.count),
         data_of(weight, "weight", dtype, {pixels.count}), data_of(lse, "lse", dtype, {pixels.count}), temperature,
         same_class_negatives, need_embedding ? in_embedding.mutable_data_ptr() : nullptr,
         need_prototypes ? in_prototypes.mutable_data_ptr() : nullptr, run_tasks});
    return {in_embedding, in_prototypes};
}

Pair sinkhorn_score(const Tensor& embedding, const Tensor& prototypes, const Tensor& label, double epsilon,
                    bool shifted) {
    const Pixels pixels = pixels_of(embedding);
    const Prototypes p = prototypes_of(prototypes, pixels);
    STD_TORCH_CHECK(epsilon > 0, "epsilon: expected > 0.");
    Tensor score = new_tensor(embedding, working(pixels.element), {pixels.count, p.per_class});
    Tensor reduced = new_tensor(embedding, working(pixels.element), {p.classes, p.per_class});
    kernels().sinkhorn_score({pixels, p.data, p.classes, p.per_class, indices_of(label, "label", pixels.count), epsilon,
                              shifted, score.mutable_data_ptr(), reduced.mutable_data_ptr(), run_tasks});
    return {score, reduced};
}

struct Scores {
    const void* data;
    Element element;
    int64_t count, classes, per_class;
    const void *log_u, *total;
};

Scores scores_of(const Tensor& score, const Tensor& log_u, const Tensor& total) {
    const Element element = element_of(score, "score");
    STD_TORCH_CHECK(score.dim() == 2 && log_u.dim() == 2, "score: expected (N, K), and log_u (C, K).");
    const int64_t classes = log_u.size(0), per_class = score.size(1);
    STD_TORCH_CHECK(per_class > 0, "score: expected at least one prototype per class.");
    return {data_of(score, "score", working(element), {score.size(0), per_class}), element, score.size(0), classes,
            per_class, data_of(log_u, "log_u", working(element), {classes, per_class}),
            data_of(total, "total", working(element), {classes, per_class})};
}

Pair sinkhorn_step(const Tensor& score, const Tensor& label, const Tensor& log_u, const Tensor& total, bool rows) {
    const Scores s = scores_of(score, log_u, total);
    Tensor new_log_u = torch::stable::empty_like(log_u), new_total = torch::stable::empty_like(log_u);
    kernels().sinkhorn_step({s.data, s.element, s.count, s.classes, s.per_class, indices_of(label, "label", s.count),
                             s.log_u, s.total, rows, new_log_u.mutable_data_ptr(), new_total.mutable_data_ptr(),
                             run_tasks});
    return {new_log_u, new_total};
}

Tensor sinkhorn_pick(const Tensor& score, const Tensor& label, const Tensor& log_u, const Tensor& total) {
    const Scores s = scores_of(score, log_u, total);
    Tensor assignment = new_tensor(score, ScalarType::Int, {s.count});
    kernels().sinkhorn_pick({s.data, s.element, s.count, s.classes, s.per_class, indices_of(label, "label", s.count),
                             s.log_u, s.total, static_cast<int32_t*>(assignment.mutable_data_ptr()), run_tasks});
    return assignment;
}

Tensor prototype_sum(const Tensor& embedding, const Tensor& assignment, const std::optional<Tensor>& weight,
                     int64_t prototypes) {
    const Pixels pixels = pixels_of(embedding);
    STD_TORCH_CHECK(prototypes > 0 && prototypes < (int64_t{1} << 31), "prototypes: expected at least one.");
    const ScalarType dtype = working(pixels.element);
    Tensor total = new_tensor(embedding, dtype, {prototypes, pixels.width});
    kernels().prototype_sum({pixels, indices_of(assignment, "assignment", pixels.count),
                             data_of(weight, "weight", dtype, {pixels.count}), prototypes, total.mutable_data_ptr(),
                             run_tasks});
    return total;
}

void prototype_move_(Tensor prototypes, Tensor updates, const Tensor& total, double momentum) {
    const Element element = element_of(prototypes, "prototypes");
    STD_TORCH_CHECK(prototypes.dim() == 3, "prototypes: expected (C, K, D).");
    STD_TORCH_CHECK(momentum >= 0 && momentum <= 1, "momentum: expected in [0, 1].");
    const int64_t classes = prototypes.size(0), per_class = prototypes.size(1), width = prototypes.size(2);
    data_of(prototypes, "prototypes", working(element), {classes, per_class, width});
    data_of(updates, "updates", ScalarType::Long, {classes, per_class});
    kernels().prototype_move_({prototypes.mutable_data_ptr(), static_cast<int64_t*>(updates.mutable_data_ptr()), element,
                               classes * per_class, width,
                               data_of(total, "total", working(element), {classes * per_class, width}), momentum});
}

Pair segmentation_loss(const Tensor& logits, const Tensor& label, const std::optional<Tensor>& weight) {
    const Logits x = logits_of(logits);
    const ScalarType dtype = working(x.element);
    Tensor cross_entropy = new_tensor(logits, dtype, {}), overlap = new_tensor(logits, dtype, {3, x.classes});
    kernels().segmentation_loss(
        {x, indices_of(label, "label", x.batch * x.pixels),
         data_of(weight, "weight", dtype, {x.batch, logits.size(2), logits.size(3)}), cross_entropy.mutable_data_ptr(),
         overlap.mutable_data_ptr(), run_tasks});
    return {cross_entropy, overlap};
}

Tensor segmentation_loss_backward(const Tensor& grad_cross_entropy, const Tensor& grad_overlap, const Tensor& logits,
                                  const Tensor& label, const std::optional<Tensor>& weight) {
    const Logits x = logits_of(logits);
    const ScalarType dtype = working(x.element);
    Tensor grad_logits = new_tensor(logits, logits.scalar_type(), {x.batch, x.classes, logits.size(2), logits.size(3)});
    kernels().segmentation_loss_backward(
        {data_of(grad_cross_entropy, "grad_cross_entropy", dtype, {}),
         data_of(grad_overlap, "grad_overlap", dtype, {3, x.classes}), x, indices_of(label, "label", x.batch * x.pixels),
         data_of(weight, "weight", dtype, {x.batch, logits.size(2), logits.size(3)}), grad_logits.mutable_data_ptr(),
         run_tasks});
    return grad_logits;
}

Pair pseudo_label(const Tensor& logits) {
    const Logits x = logits_of(logits);
    STD_TORCH_CHECK(x.classes <= 255, "logits: expected 1 to 255 classes.");
    const std::vector<int64_t> shape{x.batch, logits.size(2), logits.size(3)};
    Tensor label = new_tensor(logits, ScalarType::Byte, shape);
    Tensor confidence = new_tensor(logits, working(x.element), shape);
    kernels().pseudo_label(
        {x, static_cast<uint8_t*>(label.mutable_data_ptr()), confidence.mutable_data_ptr(), run_tasks});
    return {label, confidence};
}

Tensor signed_distance(const Tensor& label, int64_t num_classes) {
    STD_TORCH_CHECK(label.dim() == 3, "label: expected (B, H, W).");
    STD_TORCH_CHECK(num_classes >= 1 && num_classes <= 255, "num_classes: expected 1 to 255.");
    const int64_t batch = label.size(0), height = label.size(1), width = label.size(2);
    STD_TORCH_CHECK(height <= largest_side && width <= largest_side, "label: expected sides of at most 16384 pixels.");
    const Indices indices = indices_of(label, "label", batch * height * width);
    Tensor distance = new_tensor(label, ScalarType::Float, {batch, num_classes, height, width});
    kernels().signed_distance({indices, batch, num_classes, height, width,
                               static_cast<float*>(distance.mutable_data_ptr()), run_tasks});
    return distance;
}

}  // namespace

STABLE_TORCH_LIBRARY(mpamatch, m) {
    m.def("prototype_distance(Tensor embedding, Tensor prototypes) -> (Tensor, Tensor)");
    m.def("prototype_distance_backward(Tensor grad_distance, Tensor embedding, Tensor prototypes, Tensor distance, "
          "Tensor nearest, bool need_embedding, bool need_prototypes) -> (Tensor, Tensor)");
    m.def("prototype_contrast(Tensor embedding, Tensor prototypes, Tensor assignment, Tensor? weight, "
          "float temperature, bool same_class_negatives) -> (Tensor, Tensor, Tensor)");
    m.def("prototype_contrast_backward(Tensor grad_contrast, Tensor grad_alignment, Tensor embedding, "
          "Tensor prototypes, Tensor assignment, Tensor? weight, Tensor lse, float temperature, "
          "bool same_class_negatives, bool need_embedding, bool need_prototypes) -> (Tensor, Tensor)");
    m.def("sinkhorn_score(Tensor embedding, Tensor prototypes, Tensor label, float epsilon, bool shifted) "
          "-> (Tensor, Tensor)");
    m.def("sinkhorn_step(Tensor score, Tensor label, Tensor log_u, Tensor total, bool rows) -> (Tensor, Tensor)");
    m.def("sinkhorn_pick(Tensor score, Tensor label, Tensor log_u, Tensor total) -> Tensor");
    m.def("prototype_sum(Tensor embedding, Tensor assignment, Tensor? weight, int prototypes) -> Tensor");
    m.def("prototype_move_(Tensor(a!) prototypes, Tensor(b!) updates, Tensor total, float momentum) -> ()");
    m.def("segmentation_loss(Tensor logits, Tensor label, Tensor? weight) -> (Tensor, Tensor)");
    m.def("segmentation_loss_backward(Tensor grad_cross_entropy, Tensor grad_overlap, Tensor logits, Tensor label, "
          "Tensor? weight) -> Tensor");
    m.def("pseudo_label(Tensor logits) -> (Tensor, Tensor)");
    m.def("signed_distance(Tensor label, int num_classes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mpamatch, CPU, m) {
    m.impl("prototype_distance", TORCH_BOX(&prototype_distance));
    m.impl("prototype_distance_backward", TORCH_BOX(&prototype_distance_backward));
    m.impl("prototype_contrast", TORCH_BOX(&prototype_contrast));
    m.impl("prototype_contrast_backward", TORCH_BOX(&prototype_contrast_backward));
    m.impl("sinkhorn_score", TORCH_BOX(&sinkhorn_score));
    m.impl("sinkhorn_step", TORCH_BOX(&sinkhorn_step));
    m.impl("sinkhorn_pick", TORCH_BOX(&sinkhorn_pick));
    m.impl("prototype_sum", TORCH_BOX(&prototype_sum));
    m.impl("prototype_move_", TORCH_BOX(&prototype_move_));
    m.impl("segmentation_loss", TORCH_BOX(&segmentation_loss));
    m.impl("segmentation_loss_backward", TORCH_BOX(&segmentation_loss_backward));
    m.impl("pseudo_label", TORCH_BOX(&pseudo_label));
    m.impl("signed_distance", TORCH_BOX(&signed_distance));
}

}  // namespace mpamatch
