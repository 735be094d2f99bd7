// What the tests of the CUDA kernels on the processor share: random inputs with their exact values, comparisons, and a
// launch that is repeated with other numbers of blocks at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cuda/primitives.h"

namespace mpamatch::cuda {

inline int cases = 0;
inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::printf("FAILED: %s\n", what.c_str());
    ++failures;
}

template <class Storage>
Storage to_storage(double value) {
    if constexpr (std::is_same_v<Storage, Float16>) {
        const auto half = static_cast<_Float16>(value);
        Float16 result;
        std::memcpy(&result, &half, sizeof(half));
        return result;
    } else if constexpr (std::is_same_v<Storage, BFloat16>) {
        const auto single = static_cast<float>(value);
        std::uint32_t bits;
        std::memcpy(&bits, &single, sizeof(bits));
        return {static_cast<std::uint16_t>(bits >> 16)};
    } else {
        return static_cast<Storage>(value);
    }
}

// Relative to the size of the result: a few roundings of the working type.
template <class Real>
constexpr double tolerance = sizeof(Real) == 8 ? 1e-12 : 1e-5;

template <class T>
constexpr T poison = std::numeric_limits<T>::has_quiet_NaN ? std::numeric_limits<T>::quiet_NaN() : T(-77);

class Random {
  public:
    explicit Random(unsigned seed) : engine_(seed) {}
    double normal() { return std::normal_distribution<double>()(engine_); }
    double uniform() { return std::uniform_real_distribution<double>()(engine_); }
    int below(int bound) { return std::uniform_int_distribution<int>(0, bound - 1)(engine_); }

  private:
    std::mt19937 engine_;
};

// Rows of `width` elements, `stride` apart with poison between them; exact[i * width + d] is what is stored.
template <class Storage>
struct RandomRows {
    std::vector<Storage> data;
    std::vector<double> exact;

    RandomRows(Random& random, std::int64_t count, int width, std::int64_t stride)
        : data(static_cast<std::size_t>(count * stride), to_storage<Storage>(std::nan(""))),
          exact(static_cast<std::size_t>(count * width)) {
        for (std::int64_t i = 0; i < count; ++i) {
            for (int d = 0; d < width; ++d) {
                Storage& element = data[static_cast<std::size_t>(i * stride + d)];
                element = to_storage<Storage>(random.normal());
                exact[static_cast<std::size_t>(i * width + d)] = to_working(element);
            }
        }
    }
    void clear_row(std::int64_t i, int width, std::int64_t stride) {
        for (int d = 0; d < width; ++d) {
            data[static_cast<std::size_t>(i * stride + d)] = to_storage<Storage>(0.0);
            exact[static_cast<std::size_t>(i * width + d)] = 0.0;
        }
    }
};

// A label or assignment in one of its three dtypes; `value` outside [0, bound) means ignored.
struct StoredIndices {
    std::vector<std::int64_t> value;
    std::vector<unsigned char> bytes;
    IndexType type;

    StoredIndices(std::vector<std::int64_t> values, IndexType type) : value(std::move(values)), type(type) {
        const std::size_t size = type == IndexType::u8 ? 1 : type == IndexType::i32 ? 4 : 8;
        bytes.resize(value.size() * size);
        for (std::size_t i = 0; i < value.size(); ++i) std::memcpy(bytes.data() + i * size, &value[i], size);
    }
    Indices view() const { return {bytes.data(), type}; }
    int at(std::int64_t i, int bound) const {
        std::int64_t v = value[static_cast<std::size_t>(i)];
        if (type == IndexType::u8) v &= 0xff;
        return v >= 0 && v < bound ? static_cast<int>(v) : -1;
    }
};

// Runs of the same value, as in an image, or shuffled; the last of several values is absent.
inline StoredIndices random_indices(Random& random, std::int64_t count, int bound, double ignored, IndexType type) {
    const int present = bound > 1 ? bound - 1 : 1;
    const std::int64_t outside[] = {type == IndexType::u8 ? 255 : -1, type == IndexType::u8 ? 255 : bound,
                                    type == IndexType::i64 ? (std::int64_t{1} << 40) : 255 + std::int64_t(bound)};
    const bool runs = random.uniform() < 0.5;
    std::vector<std::int64_t> value(static_cast<std::size_t>(count));
    int now = random.below(present);
    for (auto& v : value) {
        if (!runs || random.uniform() < 0.1) now = random.below(present);
        v = now;
        if (random.uniform() < ignored) v = type == IndexType::u8 ? 255 : outside[random.below(3)];
    }
    return StoredIndices(std::move(value), type);
}

inline double length(const double* x, int width) {
    double squared = 0;
    for (int d = 0; d < width; ++d) squared += x[d] * x[d];
    return std::sqrt(squared);
}

// x/||x||, 0 below 1e-6.
inline std::vector<double> unit(const double* x, int width) {
    const double norm = length(x, width);
    std::vector<double> result(static_cast<std::size_t>(width), 0.0);
    if (norm < 1e-6) return result;
    for (int d = 0; d < width; ++d) result[static_cast<std::size_t>(d)] = x[d] / norm;
    return result;
}

template <class Real>
void expect_near(const std::vector<Real>& ours, const std::vector<double>& truth, double size,
                 const std::string& what) {
    expect(ours.size() == truth.size(), what + ": size");
    for (double t : truth) size = std::max(size, std::abs(t) < 1e30 ? std::abs(t) : 0.0);
    for (std::size_t i = 0; i < ours.size(); ++i) {
        const double error = std::abs(static_cast<double>(ours[i]) - truth[i]);
        if (error <= tolerance<Real> * size) continue;
        expect(false, what + "[" + std::to_string(i) + "]: " + std::to_string(static_cast<double>(ours[i])) +
                          ", truth " + std::to_string(truth[i]));
        return;
    }
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Exit status of a test program. No case would prove nothing.
inline int finish() {
    std::printf("%d cases, %d failures\n", cases, failures);
    return failures == 0 && cases > 0 ? 0 : 1;
}

}  // namespace mpamatch::cuda
