#pragma once

namespace mpamatch::cuda {

// Integers of any of the three dtypes that labels and assignments come in.
enum class IndexKind { u8, i32, i64 };

struct Index {
    const void* data;
    IndexKind kind;
};

}  // namespace mpamatch::cuda
