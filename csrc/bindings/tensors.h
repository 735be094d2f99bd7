// What the bindings of all operations share: torch's tensors as kernels want them, through torch's stable ABI alone, so
// that one build serves torch 2.10 and later. mpamatch/ops guarantees what is checked here again: never a crash,
// whoever calls. A binding is compiled into _C, with its schemas, and into _cuda if the operation has CUDA kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#if defined(USE_CUDA)
#include "bindings/cuda.h"
#else
#include "bindings/cpu.h"
#endif

// Before the body that says which function implements which schema on the device of this library.
#define MPAMATCH_IMPLEMENTATIONS(library) STABLE_TORCH_LIBRARY_IMPL(mpamatch, MPAMATCH_DISPATCH_KEY, library)

namespace mpamatch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::tuple<Tensor, Tensor>;
using Shape = std::vector<int64_t>;

constexpr int64_t INT32_LIMIT = int64_t{1} << 31;
constexpr int64_t MOST_CLASSES = 255;  // a label is a byte, 255 means ignored

inline Element element_of(const Tensor& tensor, const char* name) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float: return Element::f32;
        case ScalarType::Double: return Element::f64;
        case ScalarType::Half: return Element::f16;
        case ScalarType::BFloat16: return Element::bf16;
        default: STD_TORCH_CHECK(false, name, ": expected a floating dtype.");
    }
    return Element::f32;
}

// What this storage is computed in: float64 or float32.
inline ScalarType working(Element element) { return element == Element::f64 ? ScalarType::Double : ScalarType::Float; }

struct Prototypes {
    const void* data;
    int64_t classes, per_class, width;
    Shape shape() const { return {classes, per_class, width}; }
};

// A gradient that nobody needs is an empty tensor, and null to the kernel.
struct Gradient {
    Tensor tensor;
    void* data;
};

// One call of an operation, on the device of its first tensor: the other tensors are read through it, which checks
// them.
class Call {
  public:
    Call(const Tensor& first, const char* name) : first_(first), device_(first, name) {}

    template <class Arguments>
    void run(const Arguments& arguments) const {
        device_.run(arguments);
    }

    Tensor empty(ScalarType dtype, const Shape& shape) const {
        Tensor tensor = torch::stable::new_empty(
            first_, torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), dtype);
        device_.will_fill(tensor.mutable_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()));
        return tensor;
    }

    Gradient gradient(bool needed, ScalarType dtype, const Shape& shape) const {
        Tensor tensor = empty(dtype, needed ? shape : Shape{0});
        return {tensor, needed ? tensor.mutable_data_ptr() : nullptr};
    }

    // Contiguous, of this dtype and shape.
    const void* data(const Tensor& tensor, const char* name, ScalarType dtype, const Shape& shape) const {
        check_contiguous(tensor, name);
        STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": wrong dtype for the dtype of the pixels.");
        bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
        for (int64_t i = 0; fits && i < tensor.dim(); ++i) fits = tensor.size(i) == shape[static_cast<size_t>(i)];
        STD_TORCH_CHECK(fits, name, ": wrong shape for the shape of the others.");
        return tensor.const_data_ptr();
    }
    const void* data(const std::optional<Tensor>& tensor, const char* name, ScalarType dtype,
                     const Shape& shape) const {
        return tensor.has_value() ? data(*tensor, name, dtype, shape) : nullptr;
    }

    // One contiguous index of uint8, int32 or int64 per pixel, in any shape.
    Indices indices(const Tensor& tensor, const char* name, int64_t count) const {
        check_contiguous(tensor, name);
        STD_TORCH_CHECK(tensor.numel() == count, name, ": expected one index per pixel.");
        switch (tensor.scalar_type()) {
            case ScalarType::Byte: return {tensor.const_data_ptr(), IndexType::u8};
            case ScalarType::Int: return {tensor.const_data_ptr(), IndexType::i32};
            case ScalarType::Long: return {tensor.const_data_ptr(), IndexType::i64};
            default: STD_TORCH_CHECK(false, name, ": expected uint8, int32 or int64.");
        }
        return {};
    }

    // The embedding, (N, D), any stride between rows.
    Pixels pixels(const Tensor& embedding) const {
        check_device(embedding, "embedding");
        STD_TORCH_CHECK(embedding.dim() == 2 && embedding.size(1) > 0, "embedding: expected (N, D), D at least 1.");
        STD_TORCH_CHECK(embedding.stride(1) == 1 || embedding.size(1) == 1,
                        "embedding: expected rows with unit stride.");
        return {embedding.const_data_ptr(), element_of(embedding, "embedding"), embedding.size(0), embedding.size(1),
                embedding.stride(0)};
    }

    // (C, K, D) in the dtype that the pixels are computed in.
    Prototypes prototypes(const Tensor& prototypes, const Pixels& pixels) const {
        STD_TORCH_CHECK(prototypes.dim() == 3 && prototypes.size(0) > 0 && prototypes.size(1) > 0,
                        "prototypes: expected (C, K, D), at least one of each.");
        Prototypes p{nullptr, prototypes.size(0), prototypes.size(1), pixels.width};
        STD_TORCH_CHECK(p.classes * p.per_class < INT32_LIMIT, "prototypes: too many for int32.");
        p.data = data(prototypes, "prototypes", working(pixels.element), p.shape());
        return p;
    }

    Logits logits(const Tensor& logits) const {
        check_contiguous(logits, "logits");
        STD_TORCH_CHECK(logits.dim() == 4 && logits.size(1) > 0, "logits: expected (B, C, H, W), C at least 1.");
        return {logits.const_data_ptr(), element_of(logits, "logits"), logits.size(0), logits.size(1),
                logits.size(2) * logits.size(3)};
    }

  private:
    void check_device(const Tensor& tensor, const char* name) const {
        STD_TORCH_CHECK(device_.holds(tensor), name, ": expected a tensor on ", Device::place, ".");
    }
    void check_contiguous(const Tensor& tensor, const char* name) const {
        check_device(tensor, name);
        STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor.");
    }

    Tensor first_;
    Device device_;
};

}  // namespace mpamatch
