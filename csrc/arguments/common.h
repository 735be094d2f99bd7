// What kernels are given, whatever they compute: plain pointers and sizes, no torch. N pixels, D width, C classes, K
// prototypes per class, M = C·K in all. Pointers to void are float, or double if the pixels or logits are; a null
// weight means 1 everywhere.
#pragma once

#include <cstdint>

namespace mpamatch {

// How a number is stored. All arithmetic is float, or double if the storage is.
enum class Element : int32_t { f32, f64, f16, bf16 };

enum class IndexType : int32_t { u8, i32, i64 };

struct Pixels {  // (N, D), rows with unit column stride
    const void* data;
    Element element;
    int64_t count;
    int64_t width;
    int64_t stride;  // elements from row to row
};

struct Indices {  // labels or assignments; what lies outside the allowed range is ignored
    const void* data;
    IndexType type;
};

struct Logits {  // (B, C, H, W), contiguous
    const void* data;
    Element element;
    int64_t batch, classes, pixels;  // pixels = H·W
};

}  // namespace mpamatch
