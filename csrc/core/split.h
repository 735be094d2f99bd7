// float32 products on tiles of bfloat16 (AMX): each number is the sum of two, and three of the four products are taken,
//   x·y ≈ hi(x)·hi(y) + hi(x)·lo(y) + lo(x)·hi(y),
// summed in float32. bfloat16 keeps 8 bits, so what is left out of a product is at most 2⁻¹⁵ of it. In a cosine of many
// columns these errors average out; in a gradient one product may be nearly all (the own prototype's), and three
// products missed float32's tolerance there (1.7e-5 of 1.2). So only cosines are split. The set amx alone has it.
#pragma once

#include <type_traits>

#include "core/parallel.h"

#if defined(__AMX_BF16__) && !defined(MPAMATCH_EMULATE_TILES)
#define MPAMATCH_TILES
#endif

namespace mpamatch::MPAMATCH_ISA {

#if defined(MPAMATCH_TILES) || defined(MPAMATCH_EMULATE_TILES)
template <class T>
constexpr bool SPLITS = std::is_same<T, float>::value;
#else
template <class T>
constexpr bool SPLITS = false;
#endif

constexpr int64_t TILE_SIDE = 16;                      // rows, and columns of float
constexpr int64_t TILE_DEPTH = 32;                     // numbers of bfloat16 in a row
constexpr int64_t TILE_SIZE = TILE_SIDE * TILE_DEPTH;  // of bfloat16: 1 kB
constexpr int64_t SPLIT_COLUMNS = 2 * TILE_SIDE;       // of a right factor
constexpr int64_t LEAST_SPLIT_WIDTH = 64;              // below, a tile is mostly padding and errors do not average out

template <class T>
inline bool splits(int64_t width) {
    return SPLITS<T> && width >= LEAST_SPLIT_WIDTH;
}

// The rows that a result needs room for, as tiles write whole.
template <class T>
inline int64_t with_whole_tiles(int64_t rows) {
    return SPLITS<T> ? round_up(rows, TILE_SIDE) : rows;
}

inline int64_t depth_tiles(int64_t depth) { return (depth + TILE_DEPTH - 1) / TILE_DEPTH; }

// The first `count` numbers, then 0.
inline Vec<float> load_some(const float* from, int64_t count) {
    if (count >= LANES<float>) return load(from);
    float numbers[LANES<float>] = {};
    for (int64_t i = 0; i < count; ++i) numbers[i] = from[i];
    return load(numbers);
}

using Words = VectorOf<uint32_t>::Type;

// The upper 16 bits of the nearest bfloat16, ties to even; NaN stays NaN.
inline Words rounded_up_bits(Vec<float> x) {
    const Words bits = (Words)x, kept = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    return x == x ? kept : (bits | 0x400000u) & 0xffff0000u;
}

struct TwoParts {
    Words high, low;  // bfloat16 in the upper 16 bits

    explicit TwoParts(Vec<float> x) : high(rounded_up_bits(x)), low(rounded_up_bits(x - (Vec<float>)high)) {}
};

// The left factor, rows × depth: by 16 rows, by 32 of depth, a tile of high parts and one of low ones; 0 beyond.
class SplitRows {
  public:
    SplitRows(int64_t most_rows, int64_t most_depth)
        : parts_(round_up(most_rows, TILE_SIDE) / TILE_SIDE * depth_tiles(most_depth) * 2 * TILE_SIZE) {}

    // value(r, k): LANES numbers of row r from depth k on, 0 beyond the last.
    template <class Value>
    void fill(int64_t rows, int64_t depth, const Value& value) {
        typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
        depth_ = depth;
        uint16_t* to = parts_.get();
        for (int64_t row = 0; row < rows; row += TILE_SIDE) {
            for (int64_t k = 0; k < depth; k += TILE_DEPTH, to += 2 * TILE_SIZE) {
                for (int64_t r = 0; r < TILE_SIDE; ++r) {
                    for (int64_t i = 0; i < TILE_DEPTH; i += LANES<float>) {
                        const bool beyond = row + r >= rows || k + i >= depth;
                        const TwoParts parts(beyond ? Vec<float>{} : value(row + r, k + i));
                        const Halves high = __builtin_convertvector(parts.high >> 16, Halves);
                        const Halves low = __builtin_convertvector(parts.low >> 16, Halves);
                        std::memcpy(to + r * TILE_DEPTH + i, &high, sizeof(high));
                        std::memcpy(to + TILE_SIZE + r * TILE_DEPTH + i, &low, sizeof(low));
                    }
                }
            }
        }
    }

    const uint16_t* tile(int64_t row) const {
        return parts_.get() + row / TILE_SIDE * depth_tiles(depth_) * 2 * TILE_SIZE;
    }
    int64_t depth() const { return depth_; }

  private:
    int64_t depth_ = 0;
    Buffer<uint16_t> parts_;
};

// The right factor, depth × 32 columns: by 32 of depth, tiles of high and of low parts of the first and of the second
// 16 columns; two numbers of a column lie side by side. 0 beyond the depth.
class SplitColumns {
  public:
    explicit SplitColumns(int64_t most_depth) : parts_(depth_tiles(most_depth) * 4 * TILE_SIZE) {}

    // column i at depth k is from[k · stride + i].
    void fill(const float* from, int64_t stride, int64_t depth) {
        uint16_t* to = parts_.get();
        for (int64_t first = 0; first < depth; first += TILE_DEPTH, to += 4 * TILE_SIZE) {
            for (int64_t pair = 0; pair < TILE_SIDE; ++pair) {
                for (int64_t i = 0; i < SPLIT_COLUMNS; i += LANES<float>) {
                    const int64_t k = first + 2 * pair;
                    const TwoParts even(k < depth ? load(from + k * stride + i) : Vec<float>{});
                    const TwoParts odd(k + 1 < depth ? load(from + (k + 1) * stride + i) : Vec<float>{});
                    const Words high = even.high >> 16 | odd.high, low = even.low >> 16 | odd.low;
                    uint16_t* place = to + i / TILE_SIDE * 2 * TILE_SIZE + 2 * (pair * TILE_SIDE + i % TILE_SIDE);
                    std::memcpy(place, &high, sizeof(high));
                    std::memcpy(place + TILE_SIZE, &low, sizeof(low));
                }
            }
        }
    }

    const uint16_t* get() const { return parts_.get(); }

  private:
    Buffer<uint16_t> parts_;
};

#if defined(MPAMATCH_TILES)

// Shapes the tiles of this thread while it lives: all of them 16 rows of 64 bytes.
class TileSession {
  public:
    TileSession() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    TileSession(const TileSession&) = delete;
    TileSession& operator=(const TileSession&) = delete;
    ~TileSession() { _tile_release(); }
};

// out (16, 32) = 16 rows times 32 columns, over `tiles` tiles of depth.
inline void multiply_split_tile(const uint16_t* left, const uint16_t* right, int64_t tiles, float* out,
                                int64_t stride) {
    const auto bytes = static_cast<size_t>(stride) * sizeof(float);
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t k = 0; k < tiles; ++k, left += 2 * TILE_SIZE, right += 4 * TILE_SIZE) {
        _tile_loadd(2, left, 64);
        _tile_loadd(3, left + TILE_SIZE, 64);
        _tile_loadd(4, right, 64);
        _tile_loadd(5, right + TILE_SIZE, 64);
        _tile_loadd(6, right + 2 * TILE_SIZE, 64);
        _tile_loadd(7, right + 3 * TILE_SIZE, 64);
        _tile_dpbf16ps(0, 3, 4);
        _tile_dpbf16ps(1, 3, 6);
        _tile_dpbf16ps(0, 2, 5);
        _tile_dpbf16ps(1, 2, 7);
        _tile_dpbf16ps(0, 2, 4);
        _tile_dpbf16ps(1, 2, 6);
    }
    _tile_stored(0, out, bytes);
    _tile_stored(1, out + TILE_SIDE, bytes);
}

#else

class TileSession {
  public:
    TileSession() {}
};

// What TDPBF16PS computes, pair after pair: the tests' stand-in where no processor with AMX is at hand.
inline void add_tile_product(const uint16_t* left, const uint16_t* right, float* out, int64_t stride) {
    for (int64_t r = 0; r < TILE_SIDE; ++r)
        for (int64_t k = 0; k < TILE_DEPTH; ++k)
            for (int64_t i = 0; i < TILE_SIDE; ++i) {
                const uint32_t a = uint32_t{left[r * TILE_DEPTH + k]} << 16;
                const uint32_t b = uint32_t{right[2 * (k / 2 * TILE_SIDE + i) + k % 2]} << 16;
                float x, y;
                std::memcpy(&x, &a, 4), std::memcpy(&y, &b, 4);
                out[r * stride + i] += x * y;
            }
}

inline void multiply_split_tile(const uint16_t* left, const uint16_t* right, int64_t tiles, float* out,
                                int64_t stride) {
    for (int64_t half = 0; half < 2; ++half) {
        float* to = out + half * TILE_SIDE;
        for (int64_t r = 0; r < TILE_SIDE; ++r)
            for (int64_t i = 0; i < TILE_SIDE; ++i) to[r * stride + i] = 0;
        for (int64_t k = 0; k < tiles; ++k) {
            const uint16_t *high = left + 2 * k * TILE_SIZE, *columns = right + (4 * k + 2 * half) * TILE_SIZE;
            add_tile_product(high + TILE_SIZE, columns, to, stride);
            add_tile_product(high, columns + TILE_SIZE, to, stride);
            add_tile_product(high, columns, to, stride);
        }
    }
}

#endif

// out (rows up to a multiple of 16, 32) = left · right.
inline void multiply_split(const SplitRows& left, int64_t rows, const SplitColumns& right, float* out, int64_t stride) {
    for (int64_t row = 0; row < rows; row += TILE_SIDE)
        multiply_split_tile(left.tile(row), right.get(), depth_tiles(left.depth()), out + row * stride, stride);
}

}  // namespace mpamatch::MPAMATCH_ISA
