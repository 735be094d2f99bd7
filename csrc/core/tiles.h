// The matrix products of pixels and prototypes: a tile of sums held in registers, rows of one factor times a panel of
// columns of the other. The lanes are pixels where the products are wanted, so what follows them (the highest, the
// softmax) needs no step across lanes, and 50 prototypes are 50 rows, not 64 lanes.
#pragma once

#include "core/panels.h"
#include "core/split.h"
#include "core/turn.h"

namespace mpamatch::MPAMATCH_ISA {

// A tile holds 24 sums in 32 registers (12 in 16), beside them the two vectors of the panel and a number of the row.
constexpr int GROUP_VECTORS = 2;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_ROWS = 12;
#else
constexpr int MOST_ROWS = 6;
#endif
template <class T>
constexpr int64_t GROUP = GROUP_VECTORS * LANES<T>;  // columns of a panel

// Rows cut into tiles of nearly equal numbers of rows, at most MOST_ROWS: no row is added to fill the last one.
struct Tiles {
    int64_t rows;

    int64_t count() const { return (rows + MOST_ROWS - 1) / MOST_ROWS; }
    int64_t first(int64_t index) const { return rows * index / count(); }
    int64_t height(int64_t index) const { return first(index + 1) - first(index); }
};

// Memory that is read soon: `step` bytes of it are asked for at each step of a product, into the second cache.
struct Ahead {
    uintptr_t next;
    int64_t step;

    void fetch() {
        __builtin_prefetch(reinterpret_cast<const void*>(next), 0, 2);
        next += static_cast<uintptr_t>(step);
    }
};

struct Nothing {
    void fetch() {}
};

// use(r, v, Σ_k a[r · ROW + k · step] · b[k][v-th vector]) for ROWS rows; the sums begin with start(r, v).
template <class T, int ROWS, int ROW, class Next, class Start, class Use>
inline void multiply_tile(const T* a, int64_t step, int64_t depth, const T* b, Next& ahead, const Start& start,
                          const Use& use) {
    Vec<T> sums[ROWS][GROUP_VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < GROUP_VECTORS; ++v) sums[r][v] = start(r, v);
    for (int64_t k = 0; k < depth; ++k, a += step, b += GROUP<T>) {
        ahead.fetch();
        Vec<T> column[GROUP_VECTORS];
        for (int v = 0; v < GROUP_VECTORS; ++v) column[v] = load(b + v * LANES<T>);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < GROUP_VECTORS; ++v) sums[r][v] += a[r * ROW] * column[v];
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < GROUP_VECTORS; ++v) use(r, v, sums[r][v]);
}

// The same for a number of rows known at run time, 1 … MOST_ROWS.
template <class T, int ROW, int ROWS = MOST_ROWS, class Next, class Start, class Use>
inline void multiply_rows(int64_t rows, const T* a, int64_t step, int64_t depth, const T* b, Next& ahead,
                          const Start& start, const Use& use) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return multiply_rows<T, ROW, ROWS - 1>(rows, a, step, depth, b, ahead, start, use);
    }
    multiply_tile<T, ROWS, ROW>(a, step, depth, b, ahead, start, use);
}

// A factor (count, width) times pixels: tile after tile, by depth, so that what a tile reads of it lies side by side.
template <class T>
class PackedRows {
  public:
    PackedRows(const T* rows, int64_t count, int64_t width)
        : tiles_{count}, width_(width), packed_(count * width), split_(splits<T>(width) ? count : 0, width) {
        if constexpr (SPLITS<T>) {
            if (splits<T>(width))
                split_.fill(count, width,
                            [&](int64_t m, int64_t d) { return load_some(rows + m * width + d, width - d); });
        }
        T* to = packed_.get();
        for (int64_t tile = 0; tile < tiles_.count(); ++tile)
            for (int64_t d = 0; d < width; ++d)
                for (int64_t r = tiles_.first(tile); r < tiles_.first(tile + 1); ++r) *to++ = rows[r * width + d];
    }

    // to[m · stride + i] = row m · column i, for a panel (width, GROUP) of columns; `bytes` from `next` on are fetched
    // meanwhile. `to` has room for whole tiles, `columns` for the panel if it is split.
    void multiply(const T* panel, SplitColumns& columns, T* to, int64_t stride, uintptr_t next, int64_t bytes) const {
        if constexpr (SPLITS<T>) {
            if (splits<T>(width_)) {
                for (int64_t i = 0; i < bytes; i += LINE) Ahead{next + static_cast<uintptr_t>(i), 0}.fetch();
                columns.fill(panel, GROUP<T>, width_);
                return multiply_split(split_, tiles_.rows, columns, to, stride);
            }
        }
        Ahead ahead{next, bytes / (tiles_.count() * width_)};
        for (int64_t tile = 0; tile < tiles_.count(); ++tile) {
            const int64_t first = tiles_.first(tile), height = tiles_.height(tile);
            T* out = to + first * stride;
            multiply_rows<T, 1>(
                height, packed_.get() + first * width_, height, width_, panel, ahead, [](int, int) { return Vec<T>{}; },
                [&](int r, int v, Vec<T> sum) { store(out + r * stride + v * LANES<T>, sum); });
        }
    }

  private:
    static constexpr int64_t LINE = 64;  // bytes of a line of the caches

    Tiles tiles_;
    int64_t width_;
    Buffer<T> packed_;
    SplitRows split_;
};

// A block of pixels times all prototypes.
template <class T>
class BlockProducts {
  public:
    BlockProducts(const UnitPrototypes<T>& prototypes, const PackedRows<T>& packed)
        : packed_(packed),
          width_(prototypes.width),
          columns_(GROUP<T> * prototypes.width),
          products_(with_whole_tiles<T>(prototypes.count) * BLOCK),
          split_(splits<T>(prototypes.width) ? prototypes.width : 0) {}

    // Of the block's first `rows` pixels, and of those that repeat the last one up to a multiple of GROUP.
    void take(const PixelBlock<T>& block, int64_t rows) {
        for (int64_t n = 0; n < BLOCK; n += GROUP<T>) {
            if (n >= rows) break;
            for (int64_t i = n; i < n + GROUP<T>; i += LANES<T>)
                store(inverse + i, turn(block.row + i, width_, columns_.get() + i - n, GROUP<T>));
            packed_.multiply(columns_.get(), split_, of(0) + n, BLOCK, block.after(n), block.row_bytes() * GROUP<T>);
        }
        for (int64_t n = 0; n < BLOCK; ++n) inverse[n] = n < rows ? inverse_of(inverse[n]) : T{0};
    }

    // The products with a prototype, BLOCK of them.
    T* of(int64_t prototype) { return products_.get() + prototype * BLOCK; }

    T inverse[BLOCK];  // 1/‖x‖ or 0; 0 beyond the last pixel

  private:
    const PackedRows<T>& packed_;
    int64_t width_;
    Buffer<T> columns_, products_;
    SplitColumns split_;
};

// The number of panels that hold `width` columns, the last one filled up with 0.
template <class T>
inline int64_t panels_of(int64_t width) {
    return (width + GROUP<T> - 1) / GROUP<T>;
}

// to (rows, GROUP) = the columns from `first` on of rows in memory, 0 beyond the last.
template <class T>
inline void pack_panel(const T* const* row, int64_t rows, int64_t width, int64_t first, T* to) {
    const int64_t present = width - first < GROUP<T> ? width - first : GROUP<T>;
    for (int64_t r = 0; r < rows; ++r, to += GROUP<T>) {
        if (present == GROUP<T>) {
            for (int v = 0; v < GROUP_VECTORS; ++v) store(to + v * LANES<T>, load(row[r] + first + v * LANES<T>));
        } else {
            for (int64_t i = 0; i < GROUP<T>; ++i) to[i] = i < present ? row[r][first + i] : T{0};
        }
    }
}

}  // namespace mpamatch::MPAMATCH_ISA
