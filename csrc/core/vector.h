// A vector of one register, with exp and log. The compiler's vector extension writes the same source for every
// instruction set; everything lies in a namespace of that set, so that no inline function is shared between them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef MPAMATCH_ISA
#define MPAMATCH_ISA baseline
#endif

namespace mpamatch::MPAMATCH_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class T>
struct VectorOf {
    typedef T Type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vec = typename VectorOf<T>::Type;
template <class T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);

template <class T>
inline Vec<T> load(const T* from) {
    Vec<T> value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

template <class T>
inline void store(T* to, Vec<T> value) {
    std::memcpy(to, &value, sizeof(value));
}

// Writes around the caches what is too large to be found in them: a line is not read before it is written. `to` is
// aligned to a vector. Before another thread may read it: after_stores_around().
template <class T>
inline void store_around(T* to, Vec<T> value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(reinterpret_cast<float*>(to), (__m512)value);
#elif defined(__AVX__)
    _mm256_stream_ps(reinterpret_cast<float*>(to), (__m256)value);
#elif defined(__SSE2__)
    _mm_stream_ps(reinterpret_cast<float*>(to), (__m128)value);
#else
    store(to, value);
#endif
}

inline void after_stores_around() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

template <class T>
inline Vec<T> broadcast(T value) {
    Vec<T> result;
    for (int i = 0; i < LANES<T>; ++i) result[i] = value;
    return result;
}

template <class T>
inline Vec<T> larger(Vec<T> a, Vec<T> b) {
    return a > b ? a : b;
}

template <class T>
inline T sum_of(Vec<T> value) {
    T parts[LANES<T>];
    store(parts, value);
    for (int half = LANES<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    return parts[0];
}

template <class T>
inline T largest_of(Vec<T> value) {
    T parts[LANES<T>];
    store(parts, value);
    for (int half = LANES<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] = parts[i] > parts[i + half] ? parts[i] : parts[i + half];
    return parts[0];
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// exp of numbers below 88, 0 below −87: e^x = 2^n · e^r with n the integer nearest to x / ln 2, so |r| ≤ ln 2 / 2,
// where Taylor's polynomial of degree 7 is off by r⁸/8! < 6e-9, less than float's rounding. ln 2 is subtracted in two
// parts, the first exact in float.
inline Vec<float> exponential(Vec<float> x) {
    using Bits = typename VectorOf<uint32_t>::Type;  // unsigned: they wrap
    constexpr float ROUND = 12582912.0f;             // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
    const Vec<float> inside = x < -87.0f ? broadcast(-87.0f) : x;
    const Vec<float> shifted = inside * 1.44269504f + ROUND;
    const Vec<float> n = shifted - ROUND;
    const Vec<float> r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec<float> p = r * 1.98412698e-4f + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const Bits scaled = (Bits)p + ((Bits)shifted << 23);
    return x < -87.0f ? Vec<float>{} : (Vec<float>)scaled;
}

inline Vec<double> exponential(Vec<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
    return x;
}

// log of normal positive numbers: x = 2^n · m with m in [√½, √2), log m = 2 atanh t with t = (m − 1) / (m + 1), whose
// odd series up to t⁹ is within 1e-8 there (|t| ≤ 0.172).
inline Vec<float> logarithm(Vec<float> x) {
    using Integers = typename VectorOf<int32_t>::Type;
    using Bits = typename VectorOf<uint32_t>::Type;
    const Integers n = ((Integers)x - 0x3f3504f3) >> 23;  // 0x3f3504f3 = √½
    const Vec<float> m = (Vec<float>)((Bits)x - ((Bits)n << 23));
    const Vec<float> t = (m - 1.0f) / (m + 1.0f);
    const Vec<float> q = t * t;
    Vec<float> p = q * 0.222222222f + 0.285714286f;
    p = p * q + 0.4f;
    p = p * q + 0.666666667f;
    const Vec<float> whole = __builtin_convertvector(n, Vec<float>);
    return whole * 0.693359375f + (t * 2.0f + (p * q * t - whole * 2.12194440e-4f));
}

inline Vec<double> logarithm(Vec<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = std::log(x[i]);
    return x;
}

}  // namespace mpamatch::MPAMATCH_ISA
