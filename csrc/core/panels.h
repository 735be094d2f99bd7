// A few rows of pixels, wherever each lies, times a packed panel of columns, the sums held in registers; unit
// prototypes.
#pragma once

#include "core/parallel.h"
#include "core/rows.h"

namespace mpamatch::MPAMATCH_ISA {

// Rows and vectors of one tile: their product is the number of sums held in registers, 12 of 16 (24 of 32). A panel of
// one vector takes twice the rows: a product takes 4 cycles, two start in each, so fewer than 8 sums leave units idle.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 8;
#else
constexpr int TILE_ROWS = 4;
#endif
constexpr int TILE_VECTORS = 3;
constexpr int ROW_PADDING = 2 * TILE_ROWS;
constexpr int64_t BLOCK = 64;  // pixels worked on at a time: 64 kB of float at width 256, held in the second cache

// A matrix (depth × columns) cut into panels of nearly equal numbers of vectors, at most TILE_VECTORS.
template <class T>
struct Panels {
    int64_t depth, columns;

    int64_t padded() const { return round_up(columns, LANES<T>); }
    int64_t size() const { return padded() * depth; }
    int64_t count() const { return (padded() / LANES<T> + TILE_VECTORS - 1) / TILE_VECTORS; }
    int64_t first(int64_t index) const { return padded() / LANES<T> * index / count() * LANES<T>; }
    int64_t width(int64_t index) const { return first(index + 1) - first(index); }
    int64_t offset(int64_t index) const { return first(index) * depth; }
};

// Packs value(row, column) for rows in [0, depth): panel after panel, each row by row; columns beyond the last are 0.
template <class T, class Value>
inline void pack(const Panels<T>& panels, const Value& value, T* to) {
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t first = panels.first(panel), width = panels.width(panel);
        for (int64_t row = 0; row < panels.depth; ++row)
            for (int64_t i = 0; i < width; ++i, ++to) *to = first + i < panels.columns ? value(row, first + i) : T{0};
    }
}

// out[r][0 … V·LANES) = Σ_k a[r][k] · b[k][…] for ROWS rows.
template <class T, int ROWS, int V>
inline void multiply_row_tile(const T* const* a, int64_t depth, const T* b, T* const* out) {
    Vec<T> sums[ROWS][V];
    const T* rows[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        rows[r] = a[r];
        for (int v = 0; v < V; ++v) sums[r][v] = Vec<T>{};
    }
    for (int64_t k = 0; k < depth; ++k, b += V * LANES<T>) {
        Vec<T> column[V];
        for (int v = 0; v < V; ++v) column[v] = load(b + v * LANES<T>);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < V; ++v) sums[r][v] += rows[r][k] * column[v];
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < V; ++v) store(out[r] + v * LANES<T>, sums[r][v]);
}

template <class T, int ROWS, int V>
inline void multiply_panel(const T* const* a, int64_t rows, int64_t depth, const T* b, T* out, int64_t stride) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        T* to[ROWS];
        for (int r = 0; r < ROWS; ++r) to[r] = out + (row + r) * stride;
        multiply_row_tile<T, ROWS, V>(a + row, depth, b, to);
    }
}

// out (rows × stride) = a · b; `out` has room for a multiple of ROW_PADDING rows, `a` has that many
// pointers. Panels are the outer loop: a panel of 24 columns and depth 256 is 24 kB and stays in the first cache.
template <class T>
inline void multiply(const T* const* a, int64_t rows, const Panels<T>& panels, const T* b, T* out, int64_t stride) {
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const T* columns = b + panels.offset(panel);
        T* to = out + panels.first(panel);
        switch (panels.width(panel) / LANES<T>) {
            case 1: multiply_panel<T, 2 * TILE_ROWS, 1>(a, rows, panels.depth, columns, to, stride); break;
            case 2: multiply_panel<T, TILE_ROWS, 2>(a, rows, panels.depth, columns, to, stride); break;
            case 3: multiply_panel<T, TILE_ROWS, 3>(a, rows, panels.depth, columns, to, stride); break;
        }
    }
}

// Unit vectors of `count` prototypes with their inverse norms.
template <class T>
struct UnitPrototypes {
    int64_t count, width;
    Buffer<T> unit;     // (count, width)
    Buffer<T> inverse;  // (count)

    UnitPrototypes(const void* prototypes, int64_t count, int64_t width)
        : count(count), width(width), unit(count * width), inverse(count) {
        const T* from = static_cast<const T*>(prototypes);
        for (int64_t m = 0; m < count; ++m) {
            inverse[m] = inverse_norm(from + m * width, width);
            for (int64_t d = 0; d < width; ++d) unit[m * width + d] = from[m * width + d] * inverse[m];
        }
    }
};

// Prototypes [first, first + count) as columns, for cosines: depth D.
template <class T>
inline void pack_as_columns(const UnitPrototypes<T>& prototypes, int64_t first, const Panels<T>& panels, T* to) {
    const T* unit = prototypes.unit.get() + first * prototypes.width;
    pack(panels, [&](int64_t d, int64_t m) { return unit[m * prototypes.width + d]; }, to);
}

// Up to BLOCK rows of pixels as T: read in place where they are stored so, else converted into a buffer.
template <class T>
class PixelBlock {
  public:
    explicit PixelBlock(const Pixels& pixels)
        : pixels_(pixels), converted_(is_stored_as<T>(pixels.element) ? 0 : BLOCK * pixels.width) {}

    // `begin` + rows ≤ N; pointers beyond the last row repeat it.
    void take(int64_t begin, int64_t rows) {
        begin_ = begin;
        for (int64_t r = 0; r < rows; ++r) {
            const void* from = at(pixels_.data, pixels_.element, (begin + r) * pixels_.stride);
            if (is_stored_as<T>(pixels_.element)) {
                row[r] = static_cast<const T*>(from);
            } else {
                T* to = converted_.get() + r * pixels_.width;
                read(from, pixels_.element, pixels_.width, to);
                row[r] = to;
            }
        }
        for (int64_t r = rows; r < BLOCK; ++r) row[r] = row[rows - 1];
    }

    // Where the pixel lies that is as far in the next block, and from there to the one after it.
    uintptr_t after(int64_t r) const {
        return reinterpret_cast<uintptr_t>(pixels_.data) + static_cast<uintptr_t>((begin_ + BLOCK + r) * row_bytes());
    }
    int64_t row_bytes() const { return pixels_.stride * bytes_of(pixels_.element); }

    const T* row[BLOCK];

  private:
    const Pixels& pixels_;
    int64_t begin_ = 0;
    Buffer<T> converted_;
};

// The gradient in prototypes from that in their unit vectors: (g − p̂ (p̂·g)) / ‖p‖, 0 for a zero vector; from slots.
template <class T>
inline void finish_grad_prototypes(const UnitPrototypes<T>& prototypes, const T* slots, int64_t slot_count,
                                   int64_t slot_size, int64_t row_stride, T* to, ParallelTasks parallel) {
    const int64_t width = prototypes.width;
    for_each_task(parallel, prototypes.count, [&](int64_t m) {
        T* grad = to + m * width;
        for (int64_t d = 0; d < width; ++d) {
            T total = 0;
            for (int64_t s = 0; s < slot_count; ++s) total += slots[s * slot_size + m * row_stride + d];
            grad[d] = total;
        }
        const T* unit = prototypes.unit.get() + m * width;
        const T along = dot(unit, grad, width);
        for (int64_t d = 0; d < width; ++d) grad[d] = (grad[d] - unit[d] * along) * prototypes.inverse[m];
    });
}

}  // namespace mpamatch::MPAMATCH_ISA
