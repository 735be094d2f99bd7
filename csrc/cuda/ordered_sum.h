// Sums and maxima over the pixels of all blocks, in one launch and in one fixed order: never a float atomic.
#pragma once

#include "cuda/primitives.h"

namespace mpamatch::cuda {

// A sum, or a maximum.
template <class Real>
struct Reduction {
    bool maximum;

    static constexpr Real lowest = std::numeric_limits<Real>::lowest();

    MPAMATCH_BOTH Real combine(Real a, Real b) const {
        if (maximum) return b > a ? b : a;
        return a + b;
    }
    MPAMATCH_BOTH Real neutral() const { return maximum ? lowest : Real(0); }

    // use(i, the reduction of column i) of `height` rows of `count` numbers that other blocks wrote.
    template <class Use>
    MPAMATCH_DEVICE void add_rows(const Real* rows, int height, int count, const Use& use) const {
        for (int i = thread_index(); i < count; i += thread_count()) {
            Real sum = neutral();
            MPAMATCH_UNROLL_8
            for (int row = 0; row < height; ++row) {
                sum = combine(sum, read_other_block(rows + std::int64_t(row) * count + i));
            }
            use(i, sum);
        }
    }
};

// The bundle of this block: 16 blocks on a GPU, the last one fewer.
struct Bundle {
    int count;  // of bundles
    int own;
    int first;  // block
    int size;

    MPAMATCH_DEVICE Bundle()
        : count(static_cast<int>(divide_up(block_count(), blocks_per_bundle))),
          own(block_index() / blocks_per_bundle),
          first(own * blocks_per_bundle),
          size(first + blocks_per_bundle <= block_count() ? blocks_per_bundle : block_count() - first) {}
};

// Takes a ticket for the whole block, in whose every thread it returns the number; `flag` is one integer of shared
// memory. What the block wrote before is visible to whoever takes a later number.
MPAMATCH_DEVICE int take_block_ticket(int* ticket, int* flag) {
    block_barrier();
    if (thread_index() == 0) *flag = take_ticket(ticket);
    block_barrier();
    return *flag;
}

// `count` numbers, reduced over the blocks. Each block fills its row of `partial`. The last block of a bundle of 16 to
// arrive (an integer ticket) adds the bundle's rows in the order of the blocks, and the last bundle to arrive adds the
// bundles in theirs. Two levels, because one block adding 264 rows waits 264 / 8 times for L2, two levels of 16 twice.
template <class Real>
struct OrderedSum {
    Real* partial;  // (blocks, count)
    Real* bundle;   // (bundles, count)
    int* tickets;   // (bundles + 1), all 0 before the launch
    Real* result;   // (count)
    int count;
    Reduction<Real> reduction;

    MPAMATCH_DEVICE Real combine(Real a, Real b) const { return reduction.combine(a, b); }
    MPAMATCH_DEVICE Real neutral() const { return reduction.neutral(); }

    MPAMATCH_DEVICE Real* own_row() const { return partial + std::int64_t(block_index()) * count; }

    MPAMATCH_DEVICE void clear_own_row() const {
        for (int i = thread_index(); i < count; i += thread_count()) own_row()[i] = neutral();
    }

    // Called once by every block when its row is complete; `flag` is one integer of shared memory.
    MPAMATCH_DEVICE void finish(int* flag) const {
        const Bundle own;
        if (take_block_ticket(tickets + own.own, flag) != own.size - 1) return;
        Real* row = bundle + std::int64_t(own.own) * count;
        reduction.add_rows(partial + std::int64_t(own.first) * count, own.size, count,
                           [&](int i, Real sum) { row[i] = sum; });
        if (take_block_ticket(tickets + own.count, flag) != own.count - 1) return;
        reduction.add_rows(bundle, own.count, count, [&](int i, Real sum) { result[i] = sum; });
    }
};

constexpr int most_turns = 1 << 20;  // of a GridSum, whose tickets count on

// The same where all blocks run at once and each of them needs every sum, one after the other: the last block of a
// bundle raises the ticket that all wait for, then each adds the bundles itself. So a sum is a barrier of the grid too.
template <class Real>
struct GridSum {
    Real* partial;  // (blocks, count)
    Real* bundle;   // (2, bundles, count): who is late still reads the last sum while the next one is written
    int* tickets;   // (bundles + 1), all 0 before the launch
    int count;

    MPAMATCH_DEVICE Real* own_row() const { return partial + std::int64_t(block_index()) * count; }

    // use(i, sum i) in each block, the i shared out among its threads. Called by every block for turn = 0, 1, 2, …,
    // when its row is complete.
    template <class Use>
    MPAMATCH_DEVICE void finish(int turn, const Reduction<Real>& reduction, int* flag, const Use& use) const {
        const Bundle own;
        Real* rows = bundle + turn % 2 * std::int64_t(own.count) * count;
        if (take_block_ticket(tickets + own.own, flag) == own.size * (turn + 1) - 1) {
            Real* row = rows + std::int64_t(own.own) * count;
            reduction.add_rows(partial + std::int64_t(own.first) * count, own.size, count,
                               [&](int i, Real sum) { row[i] = sum; });
            block_barrier();
            if (thread_index() == 0) take_ticket(tickets + own.count);
        }
        if (thread_index() == 0) wait_for_tickets(tickets + own.count, own.count * (turn + 1));
        block_barrier();
        reduction.add_rows(rows, own.count, count, use);
    }
};

// The memory of sums over blocks: tickets, which one memset clears, and rows.
struct SumSpace {
    std::int64_t tickets;  // bytes, a multiple of 16
    std::int64_t partial;  // bytes, a multiple of 16
    std::int64_t bundle;   // bytes

    template <class Real>
    static SumSpace of(int blocks, int count) {
        const std::int64_t bundles = divide_up(blocks, blocks_per_bundle);
        const std::int64_t row = std::int64_t(count) * static_cast<std::int64_t>(sizeof(Real));
        return {divide_up((bundles + 1) * static_cast<std::int64_t>(sizeof(int)), 16) * 16,
                divide_up(blocks * row, 16) * 16, bundles * row};
    }
};

template <class Real>
OrderedSum<Real> ordered_sum_in(unsigned char* tickets, unsigned char* rows, int blocks, int count, Real* result,
                                bool maximum) {
    const SumSpace space = SumSpace::of<Real>(blocks, count);
    return {reinterpret_cast<Real*>(rows),
            reinterpret_cast<Real*>(rows + space.partial),
            reinterpret_cast<int*>(tickets),
            result,
            count,
            {maximum}};
}

template <class Real>
GridSum<Real> grid_sum_in(unsigned char* tickets, unsigned char* rows, int blocks, int count) {
    const SumSpace space = SumSpace::of<Real>(blocks, count);
    return {reinterpret_cast<Real*>(rows), reinterpret_cast<Real*>(rows + space.partial),
            reinterpret_cast<int*>(tickets), count};
}

}  // namespace mpamatch::cuda
