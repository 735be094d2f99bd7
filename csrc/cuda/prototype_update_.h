// The kernels of prototype_update_: total[m] = sum of w z/||z|| over the pixels of prototype m, then the move.
#pragma once

#include "cuda/device.h"
#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr int update_threads = 256;

// What the two kernels that read the embedding share.
template <class Storage>
struct AssignedPixels {
    using Real = Working<Storage>;

    const Storage* embedding;  // (count, width), rows `stride` apart
    std::int64_t stride;
    std::int64_t count;
    int width;
    Indices assignment;  // (count)
    const Real* weight;  // (count) or null for 1
    int prototypes;

    MPAMATCH_DEVICE int target(std::int64_t n, std::int64_t end) const {
        return n < end ? read_index(assignment, n, prototypes) : -1;
    }
    MPAMATCH_DEVICE Real weight_of(std::int64_t n) const { return weight == nullptr ? Real(1) : weight[n]; }
};

template <class Storage, int vector>
MPAMATCH_DEVICE Working<Storage> squared(const Pack<Storage, vector>& z) {
    Working<Storage> total = 0;
    MPAMATCH_UNROLL
    for (int e = 0; e < vector; ++e) total += to_working(z.value[e]) * to_working(z.value[e]);
    return total;
}

// factor[n] = w/||z||, 0 where the pixel is ignored: one lane group per row. Only where PrototypeSum's blocks do not
// hold whole rows.
template <class Storage, int vector>
struct PixelFactor {
    using Real = Working<Storage>;
    static constexpr int threads = update_threads;
    static constexpr int blocks_per_processor = 4;

    AssignedPixels<Storage> pixels;
    Real* factor;  // (count)

    MPAMATCH_BOTH std::int64_t shared_bytes(int) const { return 0; }

    MPAMATCH_DEVICE void run(unsigned char*) const {
        const int groups = thread_count() / lanes;
        const int lane = thread_index() % lanes;
        const std::int64_t step = std::int64_t(block_count()) * groups;
        for (std::int64_t first = std::int64_t(block_index()) * groups; first < pixels.count; first += step) {
            const std::int64_t n = first + thread_index() / lanes;
            const bool used = pixels.target(n, pixels.count) >= 0;
            Real total = 0;
            if (used) {
                for (int d = lane * vector; d < pixels.width; d += lanes * vector) {
                    total += squared(read_once<Storage, vector>(pixels.embedding + n * pixels.stride + d));
                }
            }
            total = group_sum(total);
            if (n < pixels.count && lane == 0) {
                factor[n] = used ? inverse_length(total) * pixels.weight_of(n) : Real(0);
            }
        }
    }
};

// How the sum is cut up: blocks own a slice of the pixels and `columns` of the width; inside a block, `parts` sets of
// columns threads take a part of each tile of pixels, each with its own (prototypes, columns) sums in shared memory.
struct SumPlan {
    int columns;
    int chunks;
    int parts;
    int slices;
};

// partial[slice, m, d]: the sum over the pixels of a slice, in their order. Rows come into shared memory by 16-byte
// loads, eight lanes a row; then each thread walks down its column of the tile. Where a block holds whole rows it takes
// their lengths on the way (`factor` is null), so that the embedding is read once.
template <class Storage, int vector>
struct PrototypeSum {
    using Real = Working<Storage>;
    static constexpr int threads = update_threads;
    static constexpr int blocks_per_processor = 2;
    static constexpr int batch = 4;  // pixels whose sums are read before the first is written back

    AssignedPixels<Storage> pixels;
    SumPlan plan;
    const Real* factor;  // (count), or null where columns == width
    Real* partial;       // (slices, prototypes, width)

    struct Tile {
        Real* sum;     // (parts, prototypes, columns)
        Storage* row;  // (rows, columns rounded up to the vector)
        int* target;   // (rows)
        Real* factor;  // (rows)

        MPAMATCH_BOTH Tile(Shared& shared, const SumPlan& plan, int prototypes, int threads)
            : sum(shared.take<Real>(std::int64_t(plan.parts) * prototypes * plan.columns)),
              row(shared.take<Storage>(std::int64_t(threads / lanes) * plan.columns)),
              target(shared.take<int>(threads / lanes)),
              factor(shared.take<Real>(threads / lanes)) {}
    };

    MPAMATCH_BOTH static std::int64_t shared_bytes(const SumPlan& plan, int prototypes, int threads_in_block) {
        Shared shared(nullptr);
        Tile(shared, plan, prototypes, threads_in_block);
        return shared.bytes();
    }
    MPAMATCH_BOTH std::int64_t shared_bytes(int threads_in_block) const {
        return shared_bytes(plan, pixels.prototypes, threads_in_block);
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        const Tile tile(shared, plan, pixels.prototypes, thread_count());
        const int cells = pixels.prototypes * plan.columns;
        for (int i = thread_index(); i < plan.parts * cells; i += thread_count()) tile.sum[i] = Real(0);

        const int slice = block_index() / plan.chunks;
        const int column = block_index() % plan.chunks * plan.columns;
        const int width = pixels.width - column < plan.columns ? pixels.width - column : plan.columns;
        const std::int64_t length = divide_up(pixels.count, plan.slices);
        const std::int64_t begin = slice * length;
        const std::int64_t end = begin + length < pixels.count ? begin + length : pixels.count;
        for (std::int64_t first = begin; first < end; first += thread_count() / lanes) {
            load(tile, first, end, column, width);
            block_barrier();
            accumulate(tile, width);
            block_barrier();
        }
        block_barrier();
        Real* out = partial + std::int64_t(slice) * pixels.prototypes * pixels.width + column;
        for (int i = thread_index(); i < cells; i += thread_count()) {
            if (i % plan.columns >= width) continue;
            Real total = tile.sum[i];
            for (int part = 1; part < plan.parts; ++part) total += tile.sum[part * cells + i];
            out[std::int64_t(i / plan.columns) * pixels.width + i % plan.columns] = total;
        }
    }

  private:
    // One row per lane group. Ignored rows are not read: a NaN there must not reach a sum.
    MPAMATCH_DEVICE void load(const Tile& tile, std::int64_t first, std::int64_t end, int column, int width) const {
        const int r = thread_index() / lanes;
        const int lane = thread_index() % lanes;
        const std::int64_t n = first + r;
        const int target = pixels.target(n, end);
        Storage* row = tile.row + r * plan.columns;
        Real scale = 0;  // asked for before the row, or each tile would wait twice
        if (target >= 0) scale = factor == nullptr ? pixels.weight_of(n) : factor[n];
        Real total = 0;
        for (int d = lane * vector; d < width; d += lanes * vector) {
            Pack<Storage, vector> z{};
            if (target >= 0) z = read_once<Storage, vector>(pixels.embedding + n * pixels.stride + column + d);
            if (factor == nullptr) total += squared(z);
            *reinterpret_cast<Pack<Storage, vector>*>(row + d) = z;
        }
        if (factor == nullptr) scale *= inverse_length(group_sum(total));
        if (lane != 0) return;
        tile.target[r] = target < 0 ? 0 : target;
        tile.factor[r] = scale;
    }

    // A read of shared memory takes some 25 cycles, so four sums are on their way together; where two of the four
    // pixels share a prototype the later one continues from the earlier, and the last write counts.
    MPAMATCH_DEVICE void accumulate(const Tile& tile, int width) const {
        const int rows = thread_count() / lanes;
        const int each = rows / plan.parts;
        const int part = plan.parts == 1 ? 0 : thread_index() / plan.columns;
        if (part >= plan.parts) return;
        const int step = plan.parts == 1 ? thread_count() : plan.columns;
        for (int d = thread_index() - part * plan.columns; d < width; d += step) {
            Real* sum = tile.sum + std::int64_t(part) * pixels.prototypes * plan.columns + d;
            for (int r = part * each; r < (part + 1) * each; r += batch) add_batch(tile, r, d, sum);
        }
    }

    MPAMATCH_DEVICE void add_batch(const Tile& tile, int r, int d, Real* sum) const {
        int target[batch];
        Real value[batch];
        MPAMATCH_UNROLL
        for (int i = 0; i < batch; ++i) {
            target[i] = tile.target[r + i];
            value[i] = sum[std::int64_t(target[i]) * plan.columns];
        }
        MPAMATCH_UNROLL
        for (int i = 0; i < batch; ++i) {
            MPAMATCH_UNROLL
            for (int earlier = 0; earlier < i; ++earlier) {
                if (target[earlier] == target[i]) value[i] = value[earlier];
            }
            value[i] += tile.factor[r + i] * to_working(tile.row[(r + i) * plan.columns + d]);
        }
        MPAMATCH_UNROLL
        for (int i = 0; i < batch; ++i) sum[std::int64_t(target[i]) * plan.columns] = value[i];
    }
};

// total[i] = sum over the slices of partial[slice, i]: a warp takes 32 neighbours of every warps-th slice, and the
// warps' sums are added in order. Many blocks, as one alone would read its L2 at 1/132 of the rate.
template <class Real>
struct PrototypeAdd {
    static constexpr int threads = update_threads;
    static constexpr int blocks_per_processor = 4;

    const Real* partial;  // (slices, cells)
    int slices;
    std::int64_t cells;
    Real* total;  // (cells)

    MPAMATCH_BOTH std::int64_t shared_bytes(int threads_in_block) const {
        return threads_in_block * static_cast<std::int64_t>(sizeof(Real));
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Real* piece = Shared(memory).take<Real>(thread_count());
        const int warps = thread_count() / warp_size;
        const std::int64_t i = std::int64_t(block_index()) * warp_size + thread_index() % warp_size;
        Real sum = 0;
        if (i < cells) {
            MPAMATCH_UNROLL_8
            for (int slice = thread_index() / warp_size; slice < slices; slice += warps) {
                sum += partial[slice * cells + i];
            }
        }
        piece[thread_index()] = sum;
        block_barrier();
        if (thread_index() >= warp_size || i >= cells) return;
        for (int warp = 1; warp < warps; ++warp) sum += piece[warp * warp_size + thread_index()];
        total[i] = sum;
    }
};

// p <- unit(m p + (1 - m) unit(total)), n <- n + 1 with m = min(1 - 1/(n + 1), momentum); a prototype whose total is
// shorter than 1e-6 is not touched. One block per prototype.
template <class Real>
struct PrototypeMove {
    static constexpr int threads = update_threads;
    static constexpr int blocks_per_processor = 4;

    Real* prototypes;       // (M, width)
    std::int64_t* updates;  // (M)
    const Real* total;      // (M, width)
    int width;
    Real momentum;

    MPAMATCH_BOTH std::int64_t shared_bytes(int threads_in_block) const {
        return threads_in_block * static_cast<std::int64_t>(sizeof(Real));
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Real* shared = Shared(memory).take<Real>(thread_count());
        const std::int64_t count = updates[block_index()];
        Real* prototype = prototypes + std::int64_t(block_index()) * width;
        const Real* move = total + std::int64_t(block_index()) * width;

        Real length = 0;
        for (int d = thread_index(); d < width; d += thread_count()) length += move[d] * move[d];
        const Real inverse = inverse_length(block_sum(length, shared));
        if (inverse == Real(0)) return;

        const Real ramp = Real(1) - Real(1) / static_cast<Real>(count + 1);
        const Real keep = ramp < momentum ? ramp : momentum;
        const Real take = (Real(1) - keep) * inverse;
        length = 0;
        for (int d = thread_index(); d < width; d += thread_count()) {
            const Real mixed = keep * prototype[d] + take * move[d];
            prototype[d] = mixed;
            length += mixed * mixed;
        }
        const Real scale = inverse_length(block_sum(length, shared));
        for (int d = thread_index(); d < width; d += thread_count()) prototype[d] *= scale;
        if (thread_index() == 0) updates[block_index()] = count + 1;
    }
};

template <class Storage>
std::int64_t sum_bytes(int prototypes, int columns, int parts, int threads) {
    return PrototypeSum<Storage, 1>::shared_bytes(SumPlan{columns, 1, parts, 1}, prototypes, threads);
}

// Whole rows where the sums of all prototypes fit beside a second block: then the embedding is read once. Otherwise the
// widest multiple of 64 that holds the sums in 52 KB, as each slice writes prototypes x width sums whatever the chunk,
// and narrow chunks mean few slices. columns == 0: not even one column fits.
template <class Storage>
SumPlan plan_sum(std::int64_t count, int width, int prototypes, int threads, const Device& device) {
    constexpr std::int64_t small = 52 << 10;
    const std::int64_t half = device.shared_per_processor / 2 - 1024;  // 1 KB of each block is the system's
    const std::int64_t comfortable = half < device.shared_per_block ? half : device.shared_per_block;
    const auto fits = [&](int columns, int parts, std::int64_t limit) {
        return sum_bytes<Storage>(prototypes, columns, parts, threads) <= limit;
    };
    SumPlan plan{width, 1, 1, 1};
    if (!fits(width, 1, comfortable)) {
        const std::int64_t room = small < comfortable ? small : comfortable;
        plan.columns = static_cast<int>(room / sum_bytes<Storage>(prototypes, 1, 1, threads) / 64 * 64);
        for (int narrow = 32; plan.columns == 0 && narrow >= 1; narrow /= 2) {
            if (fits(narrow, 1, narrow > 8 ? comfortable : device.shared_per_block)) plan.columns = narrow;
        }
        if (plan.columns == 0) return plan;
        plan.columns = plan.columns < width ? plan.columns : width;
        plan.chunks = static_cast<int>(divide_up(width, plan.columns));
    }
    // A part takes at least one batch of a tile's rows.
    const int rows = threads / lanes;
    while (plan.parts * 2 * plan.columns <= threads && rows % (plan.parts * 2 * 4) == 0 &&
           fits(plan.columns, plan.parts * 2, comfortable)) {
        plan.parts *= 2;
    }
    const std::int64_t tiles = divide_up(count, rows);
    const std::int64_t resident = std::int64_t(2) * device.processors / plan.chunks;
    const std::int64_t slices = tiles < resident ? tiles : resident;
    plan.slices = slices < 1 ? 1 : static_cast<int>(slices);
    return plan;
}

}  // namespace mpamatch::cuda
