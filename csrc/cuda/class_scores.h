// The scores of pixels with the prototypes of their own class, for pixels in the order of their classes.
#pragma once

#include "cuda/primitives.h"

namespace mpamatch::cuda {

// score[n, k] = cos(z_n, p_{label(n), k}) / epsilon, for `columns` k at a time.
//
// A prototype read from the first-level cache should serve more than one pixel: one pixel at a time would read
// K x D x 4 bytes for D x 2 of its own, 671 MB of cache traffic at N = 65,536, D = 256, K = 10. So pixels come in the
// order of their classes, in slots, and each lane group of eight takes a set of `rows` slots, which hold pixels of one
// class, against `columns` of its prototypes: 40 products for 14 loads.
template <class Storage, int vector>
struct ClassScores {
    using Real = Working<Storage>;
    static constexpr int rows = sizeof(Real) == 8 ? 2 : 4;   // pixels of a lane group
    static constexpr int owners = lanes / rows;              // lanes that share a pixel's results
    static constexpr int owned = sizeof(Real) == 8 ? 2 : 5;  // results of a lane
    static constexpr int columns = owners * owned;           // prototypes of a class at once
    static constexpr int list = owned + 1;                   // the results of a lane, then its pixel's squared length
    static constexpr std::int64_t most_offset = std::int64_t{1} << 32;  // elements from first pixel to last, exclusive

    const Storage* embedding;  // (pixels, width), rows `stride` apart
    std::int64_t stride;
    const Real* prototypes;  // (classes, per_class, width), fewer than 2^31 elements
    int classes;
    int per_class;
    int width;
    Real inverse_epsilon;

    // inverse[c, i] = 1/||p_{c, k + i}|| for the classes of which there are pixels, size[c] of them; it also brings
    // these prototypes into the cache.
    MPAMATCH_DEVICE void measure_prototypes(const int* size, int k, Real* inverse) const {
        const int cells = classes * columns;
        const int end = static_cast<int>(divide_up(cells, groups())) * groups();
        for (int i = group(); i < end; i += groups()) {
            const bool wanted = i < cells && size[i / columns] > 0 && k + i % columns < per_class;
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
            if (wanted && lane() == 0) inverse[i] = inverse_length(squared);
        }
    }

    // use(slot, class, pixel, column, score of prototype k + column) for the pixels in `slots` slots, a multiple of
    // `rows`: pixel[slot] = class * 2^16 + its place behind `first`, -1 where the slot is empty, never the first of a
    // set. Every warp takes the same turns in all its lanes; a lane group beyond the last set repeats the last.
    template <class Use>
    MPAMATCH_DEVICE void multiply(const int* pixel, int slots, std::int64_t first, int k, const Real* inverse,
                                  const Use& use) const {
        const int sets = slots / rows;
        const int in_warp = group() % (warp_size / lanes);
        for (int own = group(); own - in_warp < sets; own += groups()) {
            const int set = own < sets ? own : sets - 1;
            Real product[lanes * list];
            multiply_rows(pixel + set * rows, first, k, product);
            Real result[list];
            sums_to_owners(product, result);
            if (own >= sets) continue;
            const int slot = set * rows + lane() / owners;
            const int packed = pixel[slot];
            if (packed < 0) continue;
            const int column = lane() % owners * owned;
            const Real* lengths = inverse + (packed >> 16) * columns + column;
            const Real scale = inverse_length(result[owned]) * inverse_epsilon;
            MPAMATCH_UNROLL
            for (int i = 0; i < owned; ++i) {
                if (k + column + i >= per_class) continue;
                use(slot, packed >> 16, packed & 0xffff, column + i, result[i] * scale * lengths[i]);
            }
        }
    }

  private:
    MPAMATCH_DEVICE int group() const { return thread_index() / lanes; }
    MPAMATCH_DEVICE int groups() const { return thread_count() / lanes; }
    MPAMATCH_DEVICE int lane() const { return thread_index() % lanes; }

    // This lane's share of the dot products of a set of slots; list l of the result is meant for lane l.
    MPAMATCH_DEVICE void multiply_rows(const int* pixel, std::int64_t first, int k,
                                       Real (&product)[lanes * list]) const {
        const int leader = pixel[0];
        const int own_class = (leader >> 16) * per_class;
        const Storage* tile_rows = embedding + first * stride;
        unsigned row[rows];  // offsets of 32 bits: four pointers more would spill
        MPAMATCH_UNROLL
        for (int p = 0; p < rows; ++p) {
            const int packed = pixel[p];
            row[p] = static_cast<unsigned>((packed < 0 ? leader : packed) & 0xffff) * static_cast<unsigned>(stride);
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
};

}  // namespace mpamatch::cuda
