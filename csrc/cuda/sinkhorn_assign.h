// The three kernels of sinkhorn_assign. With s = cos/epsilon the transport plan of a class is exp(s + log_u) up to a
// factor per pixel, so between launches one K-vector log_u per class holds it all; each launch reduces C x K numbers.
#pragma once

#include "cuda/class_order.h"
#include "cuda/ordered_sum.h"
#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr int sinkhorn_threads = 256;

// score[n, k] = cos(z_n, p_{label(n), k}) / epsilon, 0 where the pixel is ignored; reduced over the pixels of each
// class: sum of exp(score - 1/epsilon) where shifted, else the maximum.
//
// A prototype read from the first-level cache should serve more than one pixel: one pixel at a time would read
// K x D x 4 bytes for D x 2 of its own, 671 MB of cache traffic at N = 65,536, D = 256, K = 10. So a tile is put into
// the order of its classes, and each lane group of eight takes `rows` pixels of one class against `columns` of its
// prototypes: 40 products for 14 loads.
template <class Storage, int vector>
struct SinkhornScore {
    using Real = Working<Storage>;
    static constexpr int threads = sinkhorn_threads;
    static constexpr int blocks_per_processor = 2;
    static constexpr int rows = sizeof(Real) == 8 ? 2 : 4;   // pixels of a lane group
    static constexpr int owners = lanes / rows;              // lanes that share a pixel's results
    static constexpr int owned = sizeof(Real) == 8 ? 2 : 5;  // results of a lane
    static constexpr int columns = owners * owned;           // prototypes of a class at once
    static constexpr int list = owned + 1;                   // the results of a lane, then its pixel's squared length
    using Sums = ClassSums<Real, columns>;

    const Storage* embedding;  // (pixels, width), rows `stride` apart
    std::int64_t stride;       // below 2^24
    const Real* prototypes;    // (classes, per_class, width), fewer than 2^31 elements
    Indices label;             // (pixels)
    std::int64_t pixels;
    std::int64_t slice;  // pixels of a block
    int classes;
    int per_class;
    int width;
    Real inverse_epsilon;
    bool shifted;
    Real* score;  // (pixels, per_class)
    OrderedSum<Real> sum;

    using Order = ClassOrder<threads, rows>;
    struct Sorted {
        Order order;
        int pixel[Order::slots(most_classes)];  // class * 2^16 + place in the tile of each slot, -1 = padding
    };
    struct Tile {
        Sorted* sorted;
        Real* value;    // (slots, columns) what is reduced
        Real* inverse;  // (classes, columns) 1/||p||
        Real* piece;

        MPAMATCH_BOTH Tile(Shared& shared, int classes)
            : sorted(shared.take<Sorted>(1)),
              value(shared.take<Real>(std::int64_t(Order::slots(classes)) * columns)),
              inverse(shared.take<Real>(classes * columns)),
              piece(shared.take<Real>(Sums::piece_count(classes, threads))) {}
    };

    MPAMATCH_BOTH std::int64_t shared_bytes(int) const {
        Shared shared(nullptr);
        Tile(shared, classes);
        return shared.bytes();
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        const Tile tile(shared, classes);
        sum.clear_own_row();
        const std::int64_t begin = slice * block_index();
        const std::int64_t end = begin + slice < pixels ? begin + slice : pixels;
        for (std::int64_t first = begin; first < end; first += thread_count()) {
            sort(tile, first, end);
            for (int k = 0; k < per_class; k += columns) {
                measure_prototypes(tile, k);
                block_barrier();
                multiply(tile, first, k);
                Sums::add(tile.sorted->order, classes, tile.value, tile.piece, sum, k, per_class);
            }
        }
        sum.finish(tile.sorted->order.size);
    }

  private:
    MPAMATCH_DEVICE int group() const { return thread_index() / lanes; }
    MPAMATCH_DEVICE int groups() const { return thread_count() / lanes; }
    MPAMATCH_DEVICE int lane() const { return thread_index() % lanes; }

    MPAMATCH_DEVICE void sort(const Tile& tile, std::int64_t first, std::int64_t end) const {
        const std::int64_t n = first + thread_index();
        const int own = n < end ? read_index(label, n, classes) : -1;
        const int slot = tile.sorted->order.place(own, classes);
        const int slots = tile.sorted->order.start[classes];
        for (int i = thread_index(); i < slots; i += thread_count()) tile.sorted->pixel[i] = -1;
        block_barrier();
        if (slot >= 0) tile.sorted->pixel[slot] = own << 16 | thread_index();
        if (slot >= 0 || n >= end) return;
        for (int k = 0; k < per_class; ++k) score[n * per_class + k] = Real(0);
    }

    // 1/||p|| of the prototypes k … k + columns of each class in the tile, which also brings them into the cache.
    MPAMATCH_DEVICE void measure_prototypes(const Tile& tile, int k) const {
        const int cells = classes * columns;
        const int end = static_cast<int>(divide_up(cells, groups())) * groups();
        for (int i = group(); i < end; i += groups()) {
            const bool wanted = i < cells && tile.sorted->order.size[i / columns] > 0 && k + i % columns < per_class;
            Real squared = 0;
            if (wanted) {
                const Real* prototype = prototypes + (std::int64_t(i / columns) * per_class + k + i % columns) * width;
                for (int d = lane() * vector; d < width; d += lanes * vector) {
                    Real x[vector];
                    read_often(prototype + d, x);
                    MPAMATCH_UNROLL
                    for (int e = 0; e < vector; ++e) squared += x[e] * x[e];
                }
            }
            squared = group_sum(squared);
            if (wanted && lane() == 0) tile.inverse[i] = inverse_length(squared);
        }
    }

    // Every warp takes the same turns in all its lanes; a lane group beyond the last set of slots repeats the last.
    MPAMATCH_DEVICE void multiply(const Tile& tile, std::int64_t first, int k) const {
        const int sets = tile.sorted->order.start[classes] / rows;
        const int in_warp = group() % (warp_size / lanes);
        for (int turn = group() - in_warp; turn < sets; turn += groups()) {
            const int set = turn + in_warp < sets ? turn + in_warp : sets - 1;
            Real product[lanes * list];
            multiply_rows(tile, first, set, k, product);
            Real result[list];
            sums_to_owners(product, result);
            write(tile, first, set, k, turn + in_warp < sets, result);
        }
    }

    // This lane's share of the dot products of the slots of `set`; list l of the result is meant for lane l.
    MPAMATCH_DEVICE void multiply_rows(const Tile& tile, std::int64_t first, int set, int k,
                                       Real (&product)[lanes * list]) const {
        const int leader = tile.sorted->pixel[set * rows];
        const int own_class = (leader >> 16) * per_class;
        const Storage* tile_rows = embedding + first * stride;
        unsigned row[rows];  // offsets of 32 bits: four pointers more would spill
        MPAMATCH_UNROLL
        for (int p = 0; p < rows; ++p) {
            const int pixel = tile.sorted->pixel[set * rows + p];
            row[p] = static_cast<unsigned>((pixel < 0 ? leader : pixel) & 0xffff) * static_cast<unsigned>(stride);
        }
        MPAMATCH_UNROLL
        for (int i = 0; i < lanes * list; ++i) product[i] = Real(0);

        for (int d = lane() * vector; d < width; d += lanes * vector) {
            Pack<Storage, vector> z[rows];
            MPAMATCH_UNROLL
            for (int p = 0; p < rows; ++p) z[p] = read_once<Storage, vector>(tile_rows + (row[p] + d));
            Real x[rows][vector];
            MPAMATCH_UNROLL
            for (int p = 0; p < rows; ++p) {
                MPAMATCH_UNROLL
                for (int e = 0; e < vector; ++e) x[p][e] = to_working(z[p].value[e]);
                add_product(x[p], x[p], product[p * owners * list + owned]);
            }
            MPAMATCH_UNROLL
            for (int column = 0; column < columns; ++column) {
                const int k_or_last = k + column < per_class ? k + column : per_class - 1;
                Real prototype[vector];
                read_often(prototypes + ((own_class + k_or_last) * width + d), prototype);
                MPAMATCH_UNROLL
                for (int p = 0; p < rows; ++p) {
                    add_product(x[p], prototype, product[(p * owners + column / owned) * list + column % owned]);
                }
            }
        }
        MPAMATCH_UNROLL
        for (int i = 0; i < lanes; ++i) product[i * list + owned] = product[i / owners * owners * list + owned];
    }

    MPAMATCH_DEVICE static void add_product(const Real (&a)[vector], const Real (&b)[vector], Real& total) {
        MPAMATCH_UNROLL
        for (int e = 0; e < vector; ++e) total += a[e] * b[e];
    }

    MPAMATCH_DEVICE void write(const Tile& tile, std::int64_t first, int set, int k, bool valid,
                               const Real (&result)[list]) const {
        const int slot = set * rows + lane() / owners;
        const int pixel = tile.sorted->pixel[slot];
        if (!valid || pixel < 0) return;
        const int column = lane() % owners * owned;
        const Real* inverse = tile.inverse + (pixel >> 16) * columns + column;
        const Real scale = inverse_length(result[owned]) * inverse_epsilon;
        MPAMATCH_UNROLL
        for (int i = 0; i < owned; ++i) {
            if (k + column + i >= per_class) continue;
            const Real x = result[i] * scale * inverse[i];
            score[(first + (pixel & 0xffff)) * per_class + k + column + i] = x;
            tile.value[slot * columns + column + i] = shifted ? std::exp(x - inverse_epsilon) : x;
        }
    }
};

// log_u once more: log_u - log(total) where total > 0. A constant added to all K of a class changes nothing.
template <class Real>
MPAMATCH_DEVICE Real next_log_u(Real log_u, Real total) {
    return total > Real(0) ? log_u - std::log(total) : log_u;
}

// First log_u as above; then total[c, k] = sum over the pixels of c of softmax_k(score + log_u) where `rows`, else of
// exp(score + log_u). One thread per pixel: the scores, K numbers a pixel, come from L2.
template <class Real>
struct SinkhornStep {
    static constexpr int threads = sinkhorn_threads;
    static constexpr int blocks_per_processor = 2;
    static constexpr int columns = 10;
    using Sums = ClassSums<Real, columns>;

    const Real* score;  // (pixels, per_class)
    Indices label;      // (pixels)
    std::int64_t pixels;
    std::int64_t slice;  // pixels of a block
    int classes;
    int per_class;
    const Real* log_u;  // (classes, per_class)
    const Real* total;  // (classes, per_class)
    bool rows;
    Real* new_log_u;  // (classes, per_class)
    OrderedSum<Real> sum;

    using Order = ClassOrder<threads, 1>;
    struct Tile {
        Order* order;
        Real* log_u;  // (classes, per_class)
        Real* value;  // (threads, columns)
        Real* piece;

        MPAMATCH_BOTH Tile(Shared& shared, int classes, int per_class)
            : order(shared.take<Order>(1)),
              log_u(shared.take<Real>(std::int64_t(classes) * per_class)),
              value(shared.take<Real>(threads * columns)),
              piece(shared.take<Real>(Sums::piece_count(classes, threads))) {}
    };

    MPAMATCH_BOTH std::int64_t shared_bytes(int) const {
        Shared shared(nullptr);
        Tile(shared, classes, per_class);
        return shared.bytes();
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        const Tile tile(shared, classes, per_class);
        sum.clear_own_row();
        for (int i = thread_index(); i < classes * per_class; i += thread_count()) {
            tile.log_u[i] = next_log_u(log_u[i], total[i]);
            if (block_index() == 0) new_log_u[i] = tile.log_u[i];
        }
        const std::int64_t begin = slice * block_index();
        const std::int64_t end = begin + slice < pixels ? begin + slice : pixels;
        for (std::int64_t first = begin; first < end; first += thread_count()) add_tile(tile, first, end);
        sum.finish(tile.order->size);
    }

  private:
    MPAMATCH_DEVICE void add_tile(const Tile& tile, std::int64_t first, std::int64_t end) const {
        const std::int64_t n = first + thread_index();
        const int own = n < end ? read_index(label, n, classes) : -1;
        const int slot = tile.order->place(own, classes);
        const Real* row = score + n * per_class;
        const Real* shift = tile.log_u + std::int64_t(own) * per_class;
        Real peak = 0;
        Real scale = 1;
        if (slot >= 0 && rows) normalise(row, shift, peak, scale);
        for (int k = 0; k < per_class; k += columns) {
            const int width = per_class - k < columns ? per_class - k : columns;
            if (slot >= 0) {
                for (int i = 0; i < width; ++i) {
                    tile.value[slot * columns + i] = std::exp(row[k + i] + shift[k + i] - peak) * scale;
                }
            }
            Sums::add(*tile.order, classes, tile.value, tile.piece, sum, k, per_class);
        }
    }

    // softmax_k = exp(x_k - peak) * scale
    MPAMATCH_DEVICE void normalise(const Real* row, const Real* shift, Real& peak, Real& scale) const {
        peak = row[0] + shift[0];
        for (int k = 1; k < per_class; ++k) {
            const Real x = row[k] + shift[k];
            if (x > peak) peak = x;
        }
        Real denominator = 0;
        for (int k = 0; k < per_class; ++k) denominator += std::exp(row[k] + shift[k] - peak);
        scale = Real(1) / denominator;
    }
};

// assignment = c K + argmax_k(score + log_u), the lowest k among equals, -1 where the pixel is ignored.
template <class Real>
struct SinkhornPick {
    static constexpr int threads = sinkhorn_threads;
    static constexpr int blocks_per_processor = 4;

    const Real* score;  // (pixels, per_class)
    Indices label;      // (pixels)
    std::int64_t pixels;
    int classes;
    int per_class;
    const Real* log_u;         // (classes, per_class)
    const Real* total;         // (classes, per_class)
    std::int32_t* assignment;  // (pixels)

    MPAMATCH_BOTH std::int64_t shared_bytes(int) const {
        Shared shared(nullptr);
        shared.take<Real>(std::int64_t(classes) * per_class);
        return shared.bytes();
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        Real* now = shared.take<Real>(std::int64_t(classes) * per_class);
        for (int i = thread_index(); i < classes * per_class; i += thread_count()) {
            now[i] = next_log_u(log_u[i], total[i]);
        }
        block_barrier();
        const std::int64_t step = std::int64_t(block_count()) * thread_count();
        for (std::int64_t n = std::int64_t(block_index()) * thread_count() + thread_index(); n < pixels; n += step) {
            const int own = read_index(label, n, classes);
            assignment[n] = own < 0 ? -1 : own * per_class + best(score + n * per_class, now + own * per_class);
        }
    }

  private:
    MPAMATCH_DEVICE int best(const Real* row, const Real* shift) const {
        int found = 0;
        Real highest = row[0] + shift[0];
        for (int k = 1; k < per_class; ++k) {
            const Real x = row[k] + shift[k];
            if (x > highest) {
                highest = x;
                found = k;
            }
        }
        return found;
    }
};

}  // namespace mpamatch::cuda
