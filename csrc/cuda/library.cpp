// The CUDA kernels as torch sees them, through the stable ABI. The schemas stand in ../schemas.cpp, in another library,
// because only a CUDA build of torch has a current CUDA stream to ask for.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "launch.h"

namespace mpamatch::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

constexpr int64_t int_limit = int64_t{1} << 31;
constexpr int64_t most_classes = 255;  // label 255 means ignored
constexpr int64_t largest_side = 1 << 14;  // 3·side² stays below 2^31: no squared distance overflows int32

Tensor new_tensor(const Tensor& like, ScalarType dtype, std::vector<int64_t> shape) {
    return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), dtype);
}

// The device and current stream of a tensor, and workspaces that are freed when this is: the caching allocator hands
// them on to later work of the same stream only.
class Session {
public:
    explicit Session(const Tensor& tensor) : like_(tensor), guard_(device_of(tensor)) {
        place_.device = device_of(tensor);
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(place_.device, &place_.stream));
        place_.allocate = [this](int64_t bytes) {
            workspaces_.push_back(new_tensor(like_, ScalarType::Byte, {bytes}));
            return static_cast<unsigned char*>(workspaces_.back().mutable_data_ptr());
        };
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    const Place& place() const { return place_; }

private:
    static int32_t device_of(const Tensor& tensor) { return tensor.get_device_index(); }

    Tensor like_;
    torch::stable::accelerator::DeviceGuard guard_;
    Place place_;
    std::vector<Tensor> workspaces_;
};

void check_device(const Tensor& tensor, const char* name, const Tensor& first) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == first.get_device_index(), name,
                    ": expected a tensor on the CUDA device of the others.");
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

// float64, or what is computed in float32: only these two dtypes for scores, sums and prototypes.
bool is_f64(const Tensor& tensor, const char* name) {
    const ScalarType dtype = tensor.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, ": expected float32 or float64.");
    return dtype == ScalarType::Double;
}

ScalarType working(bool f64) { return f64 ? ScalarType::Double : ScalarType::Float; }

void check_tensor(const Tensor& tensor, const char* name, const Tensor& first, ScalarType dtype,
                  std::vector<int64_t> shape) {
    check_device(tensor, name, first);
    STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor.");
    STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": wrong dtype for the dtype of the pixels.");
    bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
    for (int64_t i = 0; fits && i < tensor.dim(); ++i) fits = tensor.size(i) == shape[static_cast<size_t>(i)];
    STD_TORCH_CHECK(fits, name, ": wrong shape for the shape of the others.");
}

Rows rows_of(const Tensor& embedding) {
    STD_TORCH_CHECK(embedding.is_cuda() && embedding.dim() == 2, "embedding: expected (N, D) on a CUDA device.");
    const int64_t width = embedding.size(1);
    STD_TORCH_CHECK(width > 0 && width < int_limit, "embedding: expected at least one column, fewer than 2^31.");
    STD_TORCH_CHECK(embedding.stride(1) == 1 || width == 1, "embedding: expected rows with unit stride.");
    STD_TORCH_CHECK(embedding.stride(0) < int64_t{1} << 24, "embedding: expected rows less than 2^24 elements apart.");
    return {embedding.const_data_ptr(), element_of(embedding, "embedding"), embedding.size(0), embedding.stride(0),
            static_cast<int>(width)};
}

Index index_of(const Tensor& tensor, const char* name, const Tensor& first, int64_t count) {
    check_device(tensor, name, first);
    STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == count, name,
                    ": expected one contiguous index per pixel.");
    switch (tensor.scalar_type()) {
        case ScalarType::Byte: return {tensor.const_data_ptr(), IndexKind::u8};
        case ScalarType::Int: return {tensor.const_data_ptr(), IndexKind::i32};
        case ScalarType::Long: return {tensor.const_data_ptr(), IndexKind::i64};
        default: STD_TORCH_CHECK(false, name, ": expected uint8, int32 or int64.");
    }
    return {};
}

Pair sinkhorn_score(const Tensor& embedding, const Tensor& prototypes, const Tensor& label, double epsilon,
                    bool shifted) {
    const Rows rows = rows_of(embedding);
    const ScalarType dtype = working(rows.element == Element::f64);
    STD_TORCH_CHECK(prototypes.dim() == 3, "prototypes: expected (C, K, D).");
    const int64_t classes = prototypes.size(0), per_class = prototypes.size(1);
    check_tensor(prototypes, "prototypes", embedding, dtype, {classes, per_class, rows.width});
    STD_TORCH_CHECK(classes > 0 && per_class > 0, "prototypes: expected at least one.");
    STD_TORCH_CHECK(classes <= most_classes, "prototypes: expected at most 255 classes.");
    STD_TORCH_CHECK(prototypes.numel() < int_limit, "prototypes: expected fewer than 2^31 elements.");
    STD_TORCH_CHECK(epsilon > 0, "epsilon: expected > 0.");
    const Index index = index_of(label, "label", embedding, rows.count);

    const Session session(embedding);
    Tensor score = new_tensor(embedding, dtype, {rows.count, per_class});
    Tensor reduced = new_tensor(embedding, dtype, {classes, per_class});
    launch_score({rows, prototypes.const_data_ptr(), static_cast<int>(classes), static_cast<int>(per_class), index,
                  epsilon, shifted, score.mutable_data_ptr(), reduced.mutable_data_ptr()},
                 session.place());
    return {score, reduced};
}

StepArguments step_arguments(const Tensor& score, const Tensor& label, const Tensor& log_u, const Tensor& total) {
    const bool f64 = is_f64(score, "score");
    STD_TORCH_CHECK(score.is_cuda() && score.dim() == 2, "score: expected (N, K) on a CUDA device.");
    STD_TORCH_CHECK(log_u.dim() == 2, "log_u: expected (C, K).");
    const int64_t pixels = score.size(0), classes = log_u.size(0), per_class = score.size(1);
    check_tensor(score, "score", score, working(f64), {pixels, per_class});
    check_tensor(log_u, "log_u", score, working(f64), {classes, per_class});
    check_tensor(total, "total", score, working(f64), {classes, per_class});
    STD_TORCH_CHECK(classes > 0 && classes <= most_classes, "log_u: expected 1 to 255 classes.");
    STD_TORCH_CHECK(per_class > 0 && log_u.numel() < int_limit, "score: expected 1 to 2^31 prototypes.");
    return {f64,
            score.const_data_ptr(),
            index_of(label, "label", score, pixels),
            pixels,
            static_cast<int>(classes),
            static_cast<int>(per_class),
            log_u.const_data_ptr(),
            total.const_data_ptr()};
}

Pair sinkhorn_step(const Tensor& score, const Tensor& label, const Tensor& log_u, const Tensor& total, bool rows) {
    const StepArguments arguments = step_arguments(score, label, log_u, total);
    const Session session(score);
    Tensor new_log_u = new_tensor(log_u, log_u.scalar_type(), {log_u.size(0), log_u.size(1)});
    Tensor new_total = new_tensor(log_u, log_u.scalar_type(), {log_u.size(0), log_u.size(1)});
    launch_step(arguments, rows, new_log_u.mutable_data_ptr(), new_total.mutable_data_ptr(), session.place());
    return {new_log_u, new_total};
}

Tensor sinkhorn_pick(const Tensor& score, const Tensor& label, const Tensor& log_u, const Tensor& total) {
    const StepArguments arguments = step_arguments(score, label, log_u, total);
    const Session session(score);
    Tensor assignment = new_tensor(score, ScalarType::Int, {arguments.pixels});
    launch_pick(arguments, static_cast<int32_t*>(assignment.mutable_data_ptr()), session.place());
    return assignment;
}

Tensor prototype_sum(const Tensor& embedding, const Tensor& assignment, const std::optional<Tensor>& weight,
                     int64_t prototypes) {
    const Rows rows = rows_of(embedding);
    const ScalarType dtype = working(rows.element == Element::f64);
    STD_TORCH_CHECK(prototypes > 0 && prototypes < int_limit, "prototypes: expected at least one, fewer than 2^31.");
    if (weight.has_value()) check_tensor(*weight, "weight", embedding, dtype, {rows.count});
    const Index index = index_of(assignment, "assignment", embedding, rows.count);

    const Session session(embedding);
    Tensor total = new_tensor(embedding, dtype, {prototypes, rows.width});
    launch_sum({rows, index, weight.has_value() ? weight->const_data_ptr() : nullptr, static_cast<int>(prototypes),
                total.mutable_data_ptr()},
               session.place());
    return total;
}

void prototype_move_(Tensor prototypes, Tensor updates, const Tensor& total, double momentum) {
    STD_TORCH_CHECK(prototypes.is_cuda() && prototypes.dim() == 3, "prototypes: expected (C, K, D) on a CUDA device.");
    const bool f64 = is_f64(prototypes, "prototypes");
    const int64_t classes = prototypes.size(0), per_class = prototypes.size(1), width = prototypes.size(2);
    const int64_t count = classes * per_class;
    check_tensor(prototypes, "prototypes", prototypes, working(f64), {classes, per_class, width});
    check_tensor(updates, "updates", prototypes, ScalarType::Long, {classes, per_class});
    check_tensor(total, "total", prototypes, working(f64), {count, width});
    STD_TORCH_CHECK(count > 0 && count < int_limit && width < int_limit, "prototypes: expected 1 to 2^31.");
    STD_TORCH_CHECK(momentum >= 0 && momentum <= 1, "momentum: expected in [0, 1].");

    const Session session(prototypes);
    launch_move({f64, prototypes.mutable_data_ptr(), static_cast<int64_t*>(updates.mutable_data_ptr()),
                 total.const_data_ptr(), static_cast<int>(count), static_cast<int>(width), momentum},
                session.place());
}

Tensor signed_distance(const Tensor& label, int64_t num_classes) {
    STD_TORCH_CHECK(label.is_cuda() && label.dim() == 3, "label: expected (B, H, W) on a CUDA device.");
    STD_TORCH_CHECK(num_classes >= 1 && num_classes <= most_classes, "num_classes: expected 1 to 255.");
    const int64_t batch = label.size(0), height = label.size(1), width = label.size(2);
    STD_TORCH_CHECK(height <= largest_side && width <= largest_side, "label: expected sides of at most 16384 pixels.");
    const Index index = index_of(label, "label", label, batch * height * width);

    const Session session(label);
    Tensor distance = new_tensor(label, ScalarType::Float, {batch, num_classes, height, width});
    launch_distance({index, batch, static_cast<int>(num_classes), static_cast<int>(height), static_cast<int>(width),
                     static_cast<float*>(distance.mutable_data_ptr())},
                    session.place());
    return distance;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mpamatch, CUDA, m) {
    m.impl("sinkhorn_score", TORCH_BOX(&sinkhorn_score));
    m.impl("sinkhorn_step", TORCH_BOX(&sinkhorn_step));
    m.impl("sinkhorn_pick", TORCH_BOX(&sinkhorn_pick));
    m.impl("prototype_sum", TORCH_BOX(&prototype_sum));
    m.impl("prototype_move_", TORCH_BOX(&prototype_move_));
    m.impl("signed_distance", TORCH_BOX(&signed_distance));
}

}  // namespace mpamatch::cuda
