// Numbers and indices as the kernels get them, and outputs between guard bytes. The conversions are plain double
// arithmetic, so that those of the kernels are checked against something else.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "arguments/common.h"
#include "check.h"

namespace test {

using mpamatch::Element;
using mpamatch::IndexType;
using Values = std::vector<double>;
using Whole = std::vector<int64_t>;

constexpr Element ELEMENTS[] = {Element::f64, Element::f32, Element::f16, Element::bf16};
constexpr double NaN = std::numeric_limits<double>::quiet_NaN();

inline Element working(Element element) { return element == Element::f64 ? Element::f64 : Element::f32; }
inline int64_t size_of(Element element) { return element == Element::f64 ? 8 : element == Element::f32 ? 4 : 2; }
inline const int32_t* as_int32(const std::vector<char>& bytes) {
    return reinterpret_cast<const int32_t*>(bytes.data());
}
inline const char* name_of(Element element) {
    return element == Element::f64 ? "f64" : element == Element::f32 ? "f32" : element == Element::f16 ? "f16" : "bf16";
}

// Of an output in this storage, relative to its size.
inline double tolerance(Element element) {
    return element == Element::f64 ? 1e-12 : element == Element::f32 ? 1e-5 : element == Element::f16 ? 1e-3 : 1e-2;
}

// A 16-bit format: its numbers are q · 2^(e − mantissa) with |q| < 2^(mantissa + 1) and e ≥ lowest.
struct Half {
    int mantissa, lowest, highest;
};
inline Half half_of(Element element) { return element == Element::f16 ? Half{10, -14, 15} : Half{7, -126, 127}; }

inline double decode_half(uint16_t bits, Half format) {
    const int exponents = 1 << (15 - format.mantissa);
    const int exponent = bits >> format.mantissa & (exponents - 1), fraction = bits & ((1 << format.mantissa) - 1);
    const double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == exponents - 1) return fraction ? NaN : sign * std::numeric_limits<double>::infinity();
    const int whole = exponent > 0 ? fraction | 1 << format.mantissa : fraction;
    return sign * std::ldexp(whole, std::max(exponent - 1, 0) + format.lowest - format.mantissa);
}

// To the nearest, ties to even (the rounding mode of nearbyint).
inline uint16_t encode_half(double value, Half format) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const int infinity = ((1 << (15 - format.mantissa)) - 1) << format.mantissa;
    if (std::isnan(value)) return static_cast<uint16_t>(sign | infinity | 1 << (format.mantissa - 1));
    if (value == 0) return sign;
    const int exponent = std::isinf(value) ? format.highest + 1 : std::max(std::ilogb(value), format.lowest);
    if (exponent > format.highest) return static_cast<uint16_t>(sign | infinity);
    // adding the biased exponent to the mantissa carries into the exponent where rounding reaches the next power of 2
    const double whole = std::nearbyint(std::ldexp(std::fabs(value), format.mantissa - exponent));
    return static_cast<uint16_t>(sign | (static_cast<int>(whole) + ((exponent - format.lowest) << format.mantissa)));
}

inline double decode(Element element, const void* data, int64_t i) {
    const char* from = static_cast<const char*>(data) + i * size_of(element);
    if (element == Element::f64) {
        double value;
        std::memcpy(&value, from, 8);
        return value;
    }
    if (element == Element::f32) {
        float value;
        std::memcpy(&value, from, 4);
        return static_cast<double>(value);
    }
    uint16_t bits;
    std::memcpy(&bits, from, 2);
    return decode_half(bits, half_of(element));
}

inline void encode(Element element, double value, void* data, int64_t i) {
    char* to = static_cast<char*>(data) + i * size_of(element);
    if (element == Element::f64) {
        std::memcpy(to, &value, 8);
    } else if (element == Element::f32) {
        const float rounded = static_cast<float>(value);
        std::memcpy(to, &rounded, 4);
    } else {
        const uint16_t bits = encode_half(value, half_of(element));
        std::memcpy(to, &bits, 2);
    }
}

// Rows of numbers in memory that ends with the last of them, NaN in the gaps between rows, so that a read too far is a
// finding of AddressSanitizer and one into a gap makes a NaN. `values` are what is stored, exactly.
class Stored {
  public:
    Stored(Element element, const Values& wanted, int64_t rows = 1, int64_t gap = 0, int64_t offset = 0)
        : element(element), offset_(offset) {
        const int64_t width = rows > 0 ? static_cast<int64_t>(wanted.size()) / rows : 0;
        stride = width + gap;
        const int64_t count = rows > 0 ? (rows - 1) * stride + width : 0;
        bytes_.resize(static_cast<size_t>((offset + count) * size_of(element)));
        for (int64_t i = 0; i < offset + count; ++i) encode(element, NaN, bytes_.data(), i);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t d = 0; d < width; ++d) {
                encode(element, wanted[static_cast<size_t>(r * width + d)], bytes_.data(), offset + r * stride + d);
                values.push_back(decode(element, bytes_.data(), offset + r * stride + d));
            }
    }

    const void* data() const { return bytes_.data() + offset_ * size_of(element); }

    Element element;
    int64_t stride;
    Values values;

  private:
    int64_t offset_;
    std::vector<char> bytes_;
};

class StoredIndices {
  public:
    StoredIndices(IndexType type, const Whole& values) : type_(type) {
        const size_t size = type == IndexType::u8 ? 1 : type == IndexType::i32 ? 4 : 8;
        bytes_.resize(values.size() * size);
        for (size_t i = 0; i < values.size(); ++i) {
            const uint8_t byte = static_cast<uint8_t>(values[i]);
            const int32_t word = static_cast<int32_t>(values[i]);
            const void* from = size == 1   ? static_cast<const void*>(&byte)
                               : size == 4 ? &word
                                           : static_cast<const void*>(&values[i]);
            std::memcpy(bytes_.data() + i * size, from, size);
        }
    }

    mpamatch::Indices view() const { return {bytes_.data(), type_}; }

  private:
    IndexType type_;
    std::vector<char> bytes_;
};

// Memory that a kernel writes: poisoned (every byte 0xff: NaN, or −1), between guards that must stay as they are.
class Output {
  public:
    Output(const char* name, int64_t size, int64_t count) : name(name), count(count), size_(size) {
        bytes_.resize(static_cast<size_t>(2 * GUARD + size * count));
        poison();
    }
    Output(const char* name, Element element, int64_t count) : Output(name, size_of(element), count) {
        this->element = element;
    }

    void poison(unsigned char fill = 0xff) {
        std::memset(bytes_.data(), 0xa5, bytes_.size());
        std::memset(data(), fill, static_cast<size_t>(size_ * count));
    }
    void check_guards() const {
        const auto touched = [](char byte) { return static_cast<unsigned char>(byte) != 0xa5; };
        CHECK(std::none_of(bytes_.begin(), bytes_.begin() + GUARD, touched), "%s: written before its begin", name);
        CHECK(std::none_of(bytes_.end() - GUARD, bytes_.end(), touched), "%s: written beyond its end", name);
    }

    void* data() { return bytes_.data() + GUARD; }
    const void* data() const { return bytes_.data() + GUARD; }
    // Without the guards, in memory that ends with the last byte: what another kernel reads.
    std::vector<char> content() const { return {bytes_.begin() + GUARD, bytes_.end() - GUARD}; }
    void fill(const Values& values) {
        for (int64_t i = 0; i < count; ++i) encode(element, values[static_cast<size_t>(i)], data(), i);
    }
    double operator[](int64_t i) const { return decode(element, data(), i); }
    template <class T>
    T* as() {
        return static_cast<T*>(data());
    }
    template <class T>
    const T* as() const {
        return static_cast<const T*>(data());
    }

    const char* name;
    int64_t count;
    Element element = Element::f32;

  private:
    static constexpr int64_t GUARD = 64;
    int64_t size_;
    std::vector<char> bytes_;
};

// Within the tolerance of the storage, relative to the largest number of the truth, or to `size` where that is larger.
inline void check_near(const Output& ours, const Values& truth, double size = 0, double factor = 1) {
    CHECK(ours.count == static_cast<int64_t>(truth.size()), "%s: the test compares different sizes", ours.name);
    double scale = size, worst = -1;
    int64_t place = 0;
    for (const double value : truth) scale = std::max(scale, std::fabs(value));
    for (int64_t i = 0; i < ours.count; ++i) {
        const double error = std::fabs(ours[i] - truth[static_cast<size_t>(i)]);
        if (std::isnan(error) || error > worst) worst = error, place = i;
        if (std::isnan(error)) break;
    }
    const double allowed = factor * tolerance(ours.element) * scale;
    CHECK(worst <= allowed, "%s[%ld] is %.17g, expected %.17g: off by %.3g, allowed %.3g", ours.name,
          static_cast<long>(place), ours[place], truth[static_cast<size_t>(place)], worst, allowed);
}

}  // namespace test
