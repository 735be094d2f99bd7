// Sums and maxima over the pixels of all blocks, in one launch and in one fixed order: never a float atomic.
#pragma once

#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr int blocks_per_bundle = 16;

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
    bool maximum;

    static constexpr Real lowest = std::numeric_limits<Real>::lowest();

    MPAMATCH_DEVICE Real combine(Real a, Real b) const {
        if (maximum) return b > a ? b : a;
        return a + b;
    }

    MPAMATCH_DEVICE Real neutral() const { return maximum ? lowest : Real(0); }

    MPAMATCH_DEVICE Real* own_row() const { return partial + std::int64_t(block_index()) * count; }

    MPAMATCH_DEVICE void clear_own_row() const {
        for (int i = thread_index(); i < count; i += thread_count()) own_row()[i] = neutral();
    }

    // Called once by every block when its row is complete; `flag` is one integer of shared memory.
    MPAMATCH_DEVICE void finish(int* flag) const {
        const int bundles = static_cast<int>(divide_up(block_count(), blocks_per_bundle));
        const int own = block_index() / blocks_per_bundle;
        const int first = own * blocks_per_bundle;
        const int size = first + blocks_per_bundle <= block_count() ? blocks_per_bundle : block_count() - first;

        if (!is_last(tickets + own, size, flag)) return;
        add_rows(partial + std::int64_t(first) * count, size, bundle + std::int64_t(own) * count);
        if (!is_last(tickets + bundles, bundles, flag)) return;
        add_rows(bundle, bundles, result);
    }

  private:
    MPAMATCH_DEVICE bool is_last(int* ticket, int arrivals, int* flag) const {
        block_barrier();
        if (thread_index() == 0) *flag = take_ticket(ticket);
        block_barrier();
        return *flag == arrivals - 1;
    }

    MPAMATCH_DEVICE void add_rows(const Real* rows, int height, Real* into) const {
        for (int i = thread_index(); i < count; i += thread_count()) {
            Real sum = neutral();
            MPAMATCH_UNROLL_8
            for (int row = 0; row < height; ++row) {
                sum = combine(sum, read_other_block(rows + std::int64_t(row) * count + i));
            }
            into[i] = sum;
        }
    }
};

// The bytes of an OrderedSum's workspace, tickets first, so that one memset clears them.
struct OrderedSumSpace {
    std::int64_t tickets;
    std::int64_t partial;
    std::int64_t bundle;

    std::int64_t total() const { return tickets + partial + bundle; }
};

template <class Real>
OrderedSumSpace ordered_sum_space(int blocks, int count) {
    const std::int64_t bundles = divide_up(blocks, blocks_per_bundle);
    const std::int64_t row = std::int64_t(count) * static_cast<std::int64_t>(sizeof(Real));
    return {divide_up((bundles + 1) * static_cast<std::int64_t>(sizeof(int)), 16) * 16,
            divide_up(blocks * row, 16) * 16, bundles * row};
}

template <class Real>
OrderedSum<Real> ordered_sum_in(unsigned char* workspace, int blocks, int count, Real* result, bool maximum) {
    const OrderedSumSpace space = ordered_sum_space<Real>(blocks, count);
    return {reinterpret_cast<Real*>(workspace + space.tickets),
            reinterpret_cast<Real*>(workspace + space.tickets + space.partial),
            reinterpret_cast<int*>(workspace),
            result,
            count,
            maximum};
}

}  // namespace mpamatch::cuda
