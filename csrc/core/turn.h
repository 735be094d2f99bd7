// Rows turned into columns: the k-th numbers of many pixels side by side, so that a lane of a vector is a pixel.
#pragma once

#include <utility>

#include "core/rows.h"

namespace mpamatch::MPAMATCH_ISA {

// A vector of 16 bytes: what every processor shuffles in one step, and the rows' numbers that are turned at once.
template <class T>
constexpr int QUARTER = 16 / sizeof(T);

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MPAMATCH_SHUFFLES
#endif
#endif

#if defined(MPAMATCH_SHUFFLES)

template <class T, int BYTES>
struct PieceOf {
    typedef T Type __attribute__((vector_size(BYTES)));
};

template <class V, class W, int... I>
inline W joined(V a, V b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, I...);
}

// The next 16 bytes of rows[0], rows[QUARTER], rows[2·QUARTER] …, as many as BYTES holds.
template <class T, int BYTES = VECTOR_BYTES>
inline typename PieceOf<T, BYTES>::Type gather(const T* const* rows, int64_t begin) {
    typename PieceOf<T, BYTES>::Type value;
    if constexpr (BYTES == 16) {
        std::memcpy(&value, rows[0] + begin, 16);
    } else {
        const auto low = gather<T, BYTES / 2>(rows, begin);
        const auto high = gather<T, BYTES / 2>(rows + BYTES / 2 / sizeof(T), begin);
        value = joined<typename PieceOf<T, BYTES / 2>::Type, typename PieceOf<T, BYTES>::Type>(
            low, high, std::make_integer_sequence<int, BYTES / sizeof(T)>{});
    }
    return value;
}

// Within each 16 bytes: pairs of `unit` numbers of a and of b in turns, those of the lower (upper) half.
template <class T, int UNIT, bool UPPER, int... I>
inline Vec<T> in_turns(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
    constexpr int Q = QUARTER<T>, L = LANES<T>;
    return __builtin_shufflevector(
        a, b, (I / Q * Q + (UPPER ? Q / 2 : 0) + I % Q / (2 * UNIT) * UNIT + I % UNIT + (I % Q / UNIT % 2) * L)...);
}

template <class T, int UNIT, bool UPPER>
inline Vec<T> in_turns(Vec<T> a, Vec<T> b) {
    return in_turns<T, UNIT, UPPER>(a, b, std::make_integer_sequence<int, LANES<T>>{});
}

// column[j] = the (begin + j)-th numbers of LANES rows, for j in [0, QUARTER).
template <class T>
inline void turn_quarter(const T* const* rows, int64_t begin, Vec<T>* column) {
    Vec<T> piece[QUARTER<T>];
    for (int j = 0; j < QUARTER<T>; ++j) piece[j] = gather<T>(rows + j, begin);
    if constexpr (QUARTER<T> == 2) {
        column[0] = in_turns<T, 1, false>(piece[0], piece[1]);
        column[1] = in_turns<T, 1, true>(piece[0], piece[1]);
    } else {
        const Vec<T> a = in_turns<T, 1, false>(piece[0], piece[1]), b = in_turns<T, 1, true>(piece[0], piece[1]);
        const Vec<T> c = in_turns<T, 1, false>(piece[2], piece[3]), d = in_turns<T, 1, true>(piece[2], piece[3]);
        column[0] = in_turns<T, 2, false>(a, c), column[1] = in_turns<T, 2, true>(a, c);
        column[2] = in_turns<T, 2, false>(b, d), column[3] = in_turns<T, 2, true>(b, d);
    }
}

#else

template <class T>
inline void turn_quarter(const T* const* rows, int64_t begin, Vec<T>* column) {
    for (int j = 0; j < QUARTER<T>; ++j)
        for (int i = 0; i < LANES<T>; ++i) column[j][i] = rows[i][begin + j];
}

#endif

// to[d · stride + i] = rows[i][d] for LANES rows; returns their Σ_d x², in as many sums as a quarter has numbers.
template <class T>
inline Vec<T> turn(const T* const* rows, int64_t width, T* to, int64_t stride) {
    constexpr int Q = QUARTER<T>;
    Vec<T> squares[Q] = {};
    int64_t d = 0;
    for (; d + Q <= width; d += Q) {
        Vec<T> column[Q];
        turn_quarter(rows, d, column);
        for (int j = 0; j < Q; ++j) {
            store(to + (d + j) * stride, column[j]);
            squares[j] += column[j] * column[j];
        }
    }
    for (int last = 1; last < Q && d < width; ++last, ++d) {
        Vec<T> column;
        for (int i = 0; i < LANES<T>; ++i) column[i] = rows[i][d];
        store(to + d * stride, column);
        squares[0] += column * column;
    }
    for (int j = 1; j < Q; ++j) squares[0] += squares[j];
    return squares[0];
}

}  // namespace mpamatch::MPAMATCH_ISA
