#include "arguments/sinkhorn_assign.h"
#include "bindings/tensors.h"

namespace mpamatch {
namespace {

Tensor sinkhorn_assign(const Tensor& embedding, const Tensor& prototypes, const Tensor& label, double epsilon,
                       int64_t iterations, bool shifted) {
    const Call call(embedding, "embedding");
    const Pixels pixels = call.pixels(embedding);
    const Prototypes p = call.prototypes(prototypes, pixels);
    STD_TORCH_CHECK(epsilon > 0, "epsilon: expected > 0.");
    STD_TORCH_CHECK(iterations >= 0, "iterations: expected >= 0.");
    Tensor assignment = call.empty(ScalarType::Int, {pixels.count});
    call.run(SinkhornAssignArguments{pixels, p.data, p.classes, p.per_class, call.indices(label, "label", pixels.count),
                                     epsilon, iterations, shifted,
                                     static_cast<int32_t*>(assignment.mutable_data_ptr())});
    return assignment;
}

Pair sinkhorn_score(const Tensor& embedding, const Tensor& prototypes, const Tensor& label, double epsilon,
                    bool shifted) {
    const Call call(embedding, "embedding");
    const Pixels pixels = call.pixels(embedding);
    const Prototypes p = call.prototypes(prototypes, pixels);
    const ScalarType dtype = working(pixels.element);
    STD_TORCH_CHECK(epsilon > 0, "epsilon: expected > 0.");
    Tensor score = call.empty(dtype, {pixels.count, p.per_class});
    Tensor reduced = call.empty(dtype, {p.classes, p.per_class});
    call.run(SinkhornScoreArguments{pixels, p.data, p.classes, p.per_class, call.indices(label, "label", pixels.count),
                                    epsilon, shifted, score.mutable_data_ptr(), reduced.mutable_data_ptr()});
    return {score, reduced};
}

// What the stages after the first are given: (N, K) scores and two (C, K).
struct Scores {
    const void* data;
    Element element;
    int64_t count, classes, per_class;
    const void *log_u, *total;
    ScalarType dtype() const { return working(element); }
};

Scores scores_of(const Call& call, const Tensor& score, const Tensor& log_u, const Tensor& total) {
    const Element element = element_of(score, "score");
    STD_TORCH_CHECK(score.dim() == 2 && log_u.dim() == 2, "score: expected (N, K), and log_u (C, K).");
    const int64_t count = score.size(0), classes = log_u.size(0), per_class = score.size(1);
    STD_TORCH_CHECK(per_class > 0, "score: expected at least one prototype per class.");
    const ScalarType dtype = working(element);
    return {call.data(score, "score", dtype, {count, per_class}),
            element,
            count,
            classes,
            per_class,
            call.data(log_u, "log_u", dtype, {classes, per_class}),
            call.data(total, "total", dtype, {classes, per_class})};
}

Pair sinkhorn_step(const Tensor& score, const Tensor& label, const Tensor& log_u, const Tensor& total, bool rows) {
    const Call call(score, "score");
    const Scores s = scores_of(call, score, log_u, total);
    Tensor new_log_u = call.empty(s.dtype(), {s.classes, s.per_class});
    Tensor new_total = call.empty(s.dtype(), {s.classes, s.per_class});
    call.run(SinkhornStepArguments{s.data, s.element, s.count, s.classes, s.per_class,
                                   call.indices(label, "label", s.count), s.log_u, s.total, rows,
                                   new_log_u.mutable_data_ptr(), new_total.mutable_data_ptr()});
    return {new_log_u, new_total};
}

Tensor sinkhorn_pick(const Tensor& score, const Tensor& label, const Tensor& log_u, const Tensor& total) {
    const Call call(score, "score");
    const Scores s = scores_of(call, score, log_u, total);
    Tensor assignment = call.empty(ScalarType::Int, {s.count});
    call.run(SinkhornPickArguments{s.data, s.element, s.count, s.classes, s.per_class,
                                   call.indices(label, "label", s.count), s.log_u, s.total,
                                   static_cast<int32_t*>(assignment.mutable_data_ptr())});
    return assignment;
}

}  // namespace

MPAMATCH_SCHEMAS(m) {
    m.def(
        "sinkhorn_assign(Tensor embedding, Tensor prototypes, Tensor label, float epsilon, int iterations, "
        "bool shifted) -> Tensor");
    m.def(
        "sinkhorn_score(Tensor embedding, Tensor prototypes, Tensor label, float epsilon, bool shifted) "
        "-> (Tensor, Tensor)");
    m.def("sinkhorn_step(Tensor score, Tensor label, Tensor log_u, Tensor total, bool rows) -> (Tensor, Tensor)");
    m.def("sinkhorn_pick(Tensor score, Tensor label, Tensor log_u, Tensor total) -> Tensor");
}

MPAMATCH_IMPLEMENTATIONS(m) {
    m.impl("sinkhorn_assign", TORCH_BOX(&sinkhorn_assign));
    m.impl("sinkhorn_score", TORCH_BOX(&sinkhorn_score));
    m.impl("sinkhorn_step", TORCH_BOX(&sinkhorn_step));
    m.impl("sinkhorn_pick", TORCH_BOX(&sinkhorn_pick));
}

}  // namespace mpamatch
