// The pixels of a tile in the order of their classes, and sums over the pixels of each class.
#pragma once

#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr int most_classes = 255;  // label 255 means ignored

// One pixel per thread. A counting sort, stable, so that the order of every sum over a class is that of the pixels.
// The pixels of a class begin at a multiple of `padding` slots, so that a lane group that takes `padding` slots at
// once meets one class only. Lives in shared memory; its size is fixed, so that no register holds a place in it.
template <int most_threads, int padding>
struct ClassOrder {
    std::uint16_t count[most_threads / warp_size][most_classes];  // in each warp, then in those before it
    int size[most_classes];
    int start[most_classes + 1];  // in slots; start[classes] is their number

    // Each class present wastes at most padding - 1 slots, and no more classes are present than there are pixels.
    MPAMATCH_BOTH static constexpr int slots(int classes) {
        return most_threads + (padding - 1) * (classes < most_threads ? classes : most_threads);
    }

    // The slot of this thread's pixel of class `own`, -1 where own is -1. Begins and ends with a barrier.
    MPAMATCH_DEVICE int place(int own, int classes) {
        const int warps = thread_count() / warp_size;
        const int warp = thread_index() / warp_size;
        block_barrier();
        for (int c = thread_index(); c < classes; c += thread_count()) {
            for (int w = 0; w < warps; ++w) count[w][c] = 0;
        }
        block_barrier();
        const std::uint32_t same = same_in_warp(own);
        const int rank = count_bits(same & ((1u << (thread_index() % warp_size)) - 1u));
        if (own >= 0 && rank == 0) count[warp][own] = static_cast<std::uint16_t>(count_bits(same));
        block_barrier();
        for (int c = thread_index(); c < classes; c += thread_count()) {
            int before = 0;
            for (int w = 0; w < warps; ++w) {
                const int here = count[w][c];
                count[w][c] = static_cast<std::uint16_t>(before);
                before += here;
            }
            size[c] = before;
        }
        block_barrier();
        for (int c = thread_index(); c <= classes; c += thread_count()) {
            int before = 0;
            MPAMATCH_UNROLL_8
            for (int other = 0; other < c; ++other) before += (size[other] + padding - 1) / padding * padding;
            start[c] = before;
        }
        block_barrier();
        return own < 0 ? -1 : start[own] + count[warp][own] + rank;
    }
};

// The same for more pixels than threads, and for any number of classes: each warp walks down a piece of the slice with
// a running count of each class. In slots of one pixel each, or padded as above.
// A lane asks for `ahead` classes before it needs the first of them.
template <int padding, int ahead>
struct SliceOrder {
    std::uint16_t* count;  // (warps, classes)
    int* size;             // (classes)
    int* start;            // (classes + 1), in slots
    int* piece;            // (threads)

    static constexpr int most_pixels = 0xffff;

    MPAMATCH_BOTH SliceOrder(Shared& shared, int classes, int threads)
        : count(shared.take<std::uint16_t>(std::int64_t(threads / warp_size) * classes)),
          size(shared.take<int>(classes)),
          start(shared.take<int>(classes + 1)),
          piece(shared.take<int>(threads)) {}

    MPAMATCH_BOTH static int slots(int pixels, int classes) {
        return pixels + (padding - 1) * (classes < pixels ? classes : pixels);
    }

    // put(pixel, class, slot) for each of `pixels`, where class = own(pixel); -1 and -1 where it is ignored. The order
    // is that of the pixels within their class. Ends with a barrier.
    template <class Own, class Put>
    MPAMATCH_DEVICE void sort(int pixels, int classes, const Own& own_of, const Put& put) const {
        const int warps = thread_count() / warp_size;
        for (int i = thread_index(); i < warps * classes; i += thread_count()) count[i] = 0;
        block_barrier();
        walk(pixels, classes, own_of, [](int, int, int) {});
        block_barrier();
        for (int c = thread_index(); c < classes; c += thread_count()) {
            int before = 0;
            for (int warp = 0; warp < warps; ++warp) {
                const int here = count[warp * classes + c];
                count[warp * classes + c] = static_cast<std::uint16_t>(before);
                before += here;
            }
            size[c] = before;
        }
        block_barrier();
        sums_before(
            classes, piece, [&](int c) { return (size[c] + padding - 1) / padding * padding; },
            [&](int c, int before) { start[c] = before; });
        block_barrier();
        walk(pixels, classes, own_of,
             [&](int pixel, int own, int place) { put(pixel, own, own < 0 ? -1 : start[own] + place); });
        block_barrier();
    }

  private:
    // Raises the counts of this warp along its piece; use(pixel, class, pixels of this class before it).
    template <class Own, class Use>
    MPAMATCH_DEVICE void walk(int pixels, int classes, const Own& own_of, const Use& use) const {
        const int turns = static_cast<int>(divide_up(pixels, thread_count()));
        const int warp = thread_index() / warp_size;
        const int lane = thread_index() % warp_size;
        std::uint16_t* counts = count + warp * classes;
        for (int first = 0; first < turns; first += ahead) {
            const int begin = (warp * turns + first) * warp_size + lane;
            int own[ahead];
            MPAMATCH_UNROLL
            for (int i = 0; i < ahead; ++i) {
                const int pixel = begin + i * warp_size;
                own[i] = first + i < turns && pixel < pixels ? own_of(pixel) : -1;
            }
            MPAMATCH_UNROLL
            for (int i = 0; i < ahead; ++i) {
                if (first + i >= turns) break;
                const int pixel = begin + i * warp_size;
                const std::uint32_t same = same_in_warp(own[i]);
                const int rank = count_bits(same & ((1u << lane) - 1u));
                const int before = own[i] < 0 ? 0 : counts[own[i]];
                warp_barrier();
                if (own[i] >= 0 && rank == 0) counts[own[i]] = static_cast<std::uint16_t>(before + count_bits(same));
                warp_barrier();
                if (pixel < pixels) use(pixel, own[i], before + rank);
            }
        }
    }
};

// Reduces `value` (slots, columns) over the slots of each class into `row` (classes, per_class) from column `first`
// on. A class is split over as many threads as there are, each taking every parts-th slot, and their results are added
// in order; `piece` holds piece_count() numbers. Begins and ends with a barrier.
template <class Real, int columns>
struct ClassSums {
    static constexpr int most_parts = 8;

    MPAMATCH_BOTH static int parts(int classes, int threads) {
        const int fit = threads / (classes * columns);
        return fit < 1 ? 1 : fit > most_parts ? most_parts : fit;
    }
    MPAMATCH_BOTH static int piece_count(int classes, int threads) {
        return classes * columns * parts(classes, threads);
    }

    template <class Order, class Reduction>
    MPAMATCH_DEVICE static void add(const Order& order, int classes, const Real* value, Real* piece,
                                    const Reduction& sum, int first, int per_class) {
        const int cells = classes * columns;
        const int split = parts(classes, thread_count());
        block_barrier();
        for (int i = thread_index(); i < cells * split; i += thread_count()) {
            const int c = i % cells / columns;
            const Real* column = value + std::int64_t(order.start[c]) * columns + i % columns;
            Real total = sum.neutral();
            MPAMATCH_UNROLL_8
            for (int slot = i / cells; slot < order.size[c]; slot += split) {
                total = sum.combine(total, column[slot * columns]);
            }
            piece[i] = total;
        }
        block_barrier();
        for (int i = thread_index(); i < cells; i += thread_count()) {
            const int k = first + i % columns;
            if (k >= per_class || order.size[i / columns] == 0) continue;
            Real total = piece[i];
            for (int part = 1; part < split; ++part) total = sum.combine(total, piece[part * cells + i]);
            Real& cell = sum.own_row()[i / columns * per_class + k];
            cell = sum.combine(cell, total);
        }
        block_barrier();
    }
};

}  // namespace mpamatch::cuda
