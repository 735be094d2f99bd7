// Reading and writing numbers as they are stored, and the unit vector.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "arguments/common.h"
#include "core/vector.h"

namespace mpamatch::MPAMATCH_ISA {

constexpr double ZERO_NORM = 1e-6;  // a shorter vector has unit vector 0 and gradient 0

// Calls `use` with a number of the type that this storage is computed in.
template <class Use>
inline void with_working(Element element, const Use& use) {
    if (element == Element::f64)
        use(double{});
    else
        use(float{});
}

inline int64_t bytes_of(Element element) { return element == Element::f64 ? 8 : element == Element::f32 ? 4 : 2; }

inline const void* at(const void* data, Element element, int64_t index) {
    return static_cast<const char*>(data) + index * bytes_of(element);
}

inline void* at(void* data, Element element, int64_t index) {
    return static_cast<char*>(data) + index * bytes_of(element);
}

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bf16(uint16_t stored) { return from_bits(uint32_t{stored} << 16); }

inline uint16_t to_bf16(float value) {  // to the nearest, ties to even; NaN stays NaN
    const uint32_t bits = bits_of(value);
    if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if defined(__F16C__)
inline float from_f16(uint16_t stored) { return _cvtsh_ss(stored); }
inline uint16_t to_f16(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
#else
// Shifting exponent and mantissa into place leaves the exponent short by 112: a product with 2^112 also makes
// subnormal numbers right.
inline float from_f16(uint16_t stored) {
    const uint32_t sign = uint32_t{stored} >> 15 << 31, rest = uint32_t{stored} & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | rest << 13);  // infinity, NaN
    return from_bits(sign | bits_of(from_bits(rest << 13) * 5.192296858534828e33f));
}

inline uint16_t to_f16(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
    if (rest >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // from 65520 on: infinity
    if (rest < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
        const uint32_t shifted = bits_of(from_bits(rest) + 0.5f) - bits_of(0.5f);
        return static_cast<uint16_t>(sign | shifted);
    }
    return static_cast<uint16_t>(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
}
#endif

// `count` numbers stored as `element`, as T.
template <class T>
inline void read(const void* from, Element element, int64_t count, T* to) {
    const auto* halves = static_cast<const uint16_t*>(from);
    switch (element) {
        case Element::f32:
            for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<const float*>(from)[i]);
            break;
        case Element::f64:
            for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<const double*>(from)[i]);
            break;
        case Element::f16: {
            int64_t i = 0;
#if defined(__F16C__)
            if constexpr (sizeof(T) == 4) {
                for (; i + 8 <= count; i += 8) {
                    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
                    _mm256_storeu_ps(reinterpret_cast<float*>(to + i), _mm256_cvtph_ps(eight));
                }
            }
#endif
            for (; i < count; ++i) to[i] = from_f16(halves[i]);
            break;
        }
        case Element::bf16:
            for (int64_t i = 0; i < count; ++i) to[i] = from_bf16(halves[i]);
            break;
    }
}

template <class T>
inline void write(const T* from, Element element, int64_t count, void* to) {
    auto* halves = static_cast<uint16_t*>(to);
    switch (element) {
        case Element::f32:
            for (int64_t i = 0; i < count; ++i) static_cast<float*>(to)[i] = static_cast<float>(from[i]);
            break;
        case Element::f64:
            for (int64_t i = 0; i < count; ++i) static_cast<double*>(to)[i] = static_cast<double>(from[i]);
            break;
        case Element::f16:
            for (int64_t i = 0; i < count; ++i) halves[i] = to_f16(static_cast<float>(from[i]));
            break;
        case Element::bf16:
            for (int64_t i = 0; i < count; ++i) halves[i] = to_bf16(static_cast<float>(from[i]));
            break;
    }
}

// Whether T reads this storage in place, without conversion.
template <class T>
inline bool is_stored_as(Element element) {
    return element == (sizeof(T) == 8 ? Element::f64 : Element::f32);
}

// The index, or −1 where it is not in [0, limit).
inline int32_t index_at(const Indices& indices, int64_t i, int64_t limit) {
    int64_t value = 0;
    switch (indices.type) {
        case IndexType::u8: value = static_cast<const uint8_t*>(indices.data)[i]; break;
        case IndexType::i32: value = static_cast<const int32_t*>(indices.data)[i]; break;
        case IndexType::i64: value = static_cast<const int64_t*>(indices.data)[i]; break;
    }
    return value >= 0 && value < limit ? static_cast<int32_t>(value) : -1;
}

template <class T>
inline T dot(const T* a, const T* b, int64_t count) {
    Vec<T> sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES<T> <= count; i += 4 * LANES<T>)
        for (int j = 0; j < 4; ++j) sums[j] += load(a + i + j * LANES<T>) * load(b + i + j * LANES<T>);
    T total = sum_of<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < count; ++i) total += a[i] * b[i];
    return total;
}

// 1/‖x‖ from ‖x‖², or 0 for a vector shorter than ZERO_NORM.
template <class T>
inline T inverse_of(T squared) {
    return squared >= static_cast<T>(ZERO_NORM * ZERO_NORM) ? T{1} / std::sqrt(squared) : T{0};
}

template <class T>
inline T inverse_norm(const T* x, int64_t width) {
    return inverse_of(dot(x, x, width));
}

}  // namespace mpamatch::MPAMATCH_ISA
