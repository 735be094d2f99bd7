// The kernels of prototype_update_: total[m] = sum of w z/||z|| over the pixels of prototype m, then the move.
//
// The sum reads the embedding once and adds in registers. Pixels are taken in domains of some 2,000 or 3,000; each
// block of a domain sorts them all by prototype (4 bytes a pixel, so doing it eight times over is cheaper than passing
// it on) and takes an eighth of the sorted pixels. So a lane group, which walks down a run of them, meets one prototype
// after the other, and writes a partial sum only where a prototype or its run ends: at N = 65,536, M = 50 that are 3.8
// MB at most instead of 13.5 for all prototypes in each block.
#pragma once

#include "cuda/class_order.h"
#include "cuda/device.h"
#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr int update_threads = 256;
constexpr int blocks_per_domain = 8;

// How the pixels are cut.
struct SumPlan {
    int domain;  // pixels sorted together
    int domains;
    int lanes;  // of a group, which reads a row together
    int runs;   // that the sorted pixels of a domain are cut into, one for each lane group of its blocks
    int rows;   // of partial sums of a domain
};

// The sorted pixels of a domain begin with those of prototype 0; starts[m] is the first of m. They are cut into runs of
// equal length. Going from one partial sum to the next either the prototype or the run rises by one, so that
// prototype + run names each of them, whatever the pixels.
struct Runs {
    const int* starts;  // (prototypes + 1)
    int length;

    MPAMATCH_BOTH Runs(const int* starts, int prototypes, int runs)
        : starts(starts), length(static_cast<int>(divide_up(starts[prototypes], runs))) {}

    MPAMATCH_BOTH int first_row(int m) const { return m + (length == 0 ? 0 : starts[m] / length); }
    MPAMATCH_BOTH int row_count(int m) const {
        return starts[m + 1] == starts[m] ? 0 : (starts[m + 1] - 1) / length - starts[m] / length + 1;
    }
};

// partial[domain, row] = the sum over the pixels of a prototype in a run, in their order, for the rows there are.
template <class Storage, int vector>
struct PrototypeSum {
    using Real = Working<Storage>;
    static constexpr int threads = update_threads;
    static constexpr int blocks_per_processor = 2;
    static constexpr int batch = 4;   // pixels whose rows are on their way together
    static constexpr int pieces = 2;  // packs of a row that a lane holds

    const Storage* embedding;  // (count, width), rows `stride` apart
    std::int64_t stride;
    std::int64_t count;
    int width;
    Indices assignment;  // (count)
    const Real* weight;  // (count) or null for 1
    int prototypes;
    SumPlan plan;
    Real* partial;  // (domains, rows, width)
    int* starts;    // (domains, prototypes + 1)

    using Order = SliceOrder<1, 8>;
    struct Tile {
        Order order;
        int* target;           // (domain) the prototype of each sorted pixel
        std::uint16_t* place;  // (domain) its place in the domain
        Real* factor;          // (groups, longest run) w/||z||, where a row does not fit into registers

        MPAMATCH_BOTH Tile(Shared& shared, const SumPlan& plan, int prototypes, int threads)
            : order(shared, prototypes, threads),
              target(shared.take<int>(plan.domain)),
              place(shared.take<std::uint16_t>(plan.domain)),
              factor(shared.take<Real>(threads / plan.lanes * divide_up(plan.domain, plan.runs))) {}
    };

    MPAMATCH_BOTH static std::int64_t shared_bytes(const SumPlan& plan, int prototypes, int threads_in_block) {
        Shared shared(nullptr);
        Tile(shared, plan, prototypes, threads_in_block);
        return shared.bytes();
    }
    MPAMATCH_BOTH std::int64_t shared_bytes(int threads_in_block) const {
        return shared_bytes(plan, prototypes, threads_in_block);
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        const Tile tile(shared, plan, prototypes, thread_count());
        const int domain = block_index() / blocks_per_domain;
        const int member = block_index() % blocks_per_domain;
        const std::int64_t begin = std::int64_t(domain) * plan.domain;
        const int length = count - begin < plan.domain ? static_cast<int>(count - begin) : plan.domain;
        sort(tile, begin, length);
        if (member == 0) {
            int* out = starts + std::int64_t(domain) * (prototypes + 1);
            for (int m = thread_index(); m <= prototypes; m += thread_count()) out[m] = tile.order.start[m];
        }
        const Runs runs(tile.order.start, prototypes, plan.runs);
        const int groups = thread_count() / plan.lanes;
        const int group = thread_index() / plan.lanes;
        const int own = member * groups + group;
        const int columns = plan.lanes * vector * pieces;  // at once
        Real* factor = tile.factor + group * runs.length;
        const bool whole = width <= columns;
        if (!whole) measure(tile, runs, own, begin, factor);
        Real* rows = partial + std::int64_t(domain) * plan.rows * width;
        for (int column = 0; column < width; column += columns) {
            accumulate(tile, runs, own, begin, column, whole ? nullptr : factor, rows);
        }
    }

  private:
    MPAMATCH_DEVICE int lane() const { return thread_index() % plan.lanes; }
    MPAMATCH_DEVICE Real weight_of(std::int64_t n) const { return weight == nullptr ? Real(1) : weight[n]; }

    // A pixel of weight 0 counts as ignored: neither is read, as a NaN there must not reach a sum.
    MPAMATCH_DEVICE void sort(const Tile& tile, std::int64_t begin, int length) const {
        tile.order.sort(
            length, prototypes,
            [&](int place) {
                const int m = read_index(assignment, begin + place, prototypes);
                return weight_of(begin + place) == Real(0) ? -1 : m;
            },
            [&](int place, int m, int slot) {
                if (slot < 0) return;
                tile.target[slot] = m;
                tile.place[slot] = static_cast<std::uint16_t>(place);
            });
    }

    // The sums over each lane group of `batch` numbers.
    MPAMATCH_DEVICE void sum_over_group(Real (&value)[batch]) const {
        for (int offset = plan.lanes / 2; offset > 0; offset /= 2) {
            Real receive[batch];
            exchange(value, receive, offset);
            MPAMATCH_UNROLL
            for (int i = 0; i < batch; ++i) value[i] += receive[i];
        }
    }

    MPAMATCH_DEVICE static Real squared(const Pack<Storage, vector>& z) {
        Real total = 0;
        MPAMATCH_UNROLL
        for (int e = 0; e < vector; ++e) total += to_working(z.value[e]) * to_working(z.value[e]);
        return total;
    }

    // Every group of the block takes the same turns, as whole warps exchange.
    MPAMATCH_DEVICE void measure(const Tile& tile, const Runs& runs, int own, std::int64_t begin, Real* factor) const {
        for (int first = 0; first < runs.length; first += batch) {
            Real length[batch];
            MPAMATCH_UNROLL
            for (int i = 0; i < batch; ++i) {
                length[i] = 0;
                const int slot = slot_of(tile, runs, own, first + i);
                if (slot < 0) continue;
                const Storage* row = embedding + (begin + tile.place[slot]) * stride;
                for (int d = lane() * vector; d < width; d += plan.lanes * vector) {
                    length[i] += squared(read_once<Storage, vector>(row + d));
                }
            }
            sum_over_group(length);
            for (int i = 0; i < batch && lane() == 0; ++i) {
                const int slot = slot_of(tile, runs, own, first + i);
                if (slot >= 0) factor[first + i] = inverse_length(length[i]) * weight_of(begin + tile.place[slot]);
            }
        }
        block_barrier();
    }

    // The first column of a piece of this lane.
    MPAMATCH_DEVICE int first_of(int column, int piece) const {
        return column + (piece * plan.lanes + lane()) * vector;
    }

    // The i-th sorted pixel of a run, -1 beyond its end.
    MPAMATCH_DEVICE int slot_of(const Tile& tile, const Runs& runs, int own, int i) const {
        const int slot = own * runs.length + i;
        return i < runs.length && slot < tile.order.start[prototypes] ? slot : -1;
    }

    // The partial sums of a run in the columns from `column` on, as many as the lanes hold.
    MPAMATCH_DEVICE void accumulate(const Tile& tile, const Runs& runs, int own, std::int64_t begin, int column,
                                    const Real* factor, Real* rows) const {
        // What lies beyond the row or the run is read all the same, from the first column or pixel, and added to sums
        // that are not written: zeros in its place would take more instructions than all the rest.
        bool inside[pieces];
        MPAMATCH_UNROLL
        for (int piece = 0; piece < pieces; ++piece) inside[piece] = first_of(column, piece) < width;
        Real sum[pieces][vector] = {};
        int current = -1;
        for (int first = 0; first < runs.length; first += batch) {
            int target[batch];
            Real scale[batch];
            Real length[batch];
            Pack<Storage, vector> z[batch][pieces];
            MPAMATCH_UNROLL
            for (int i = 0; i < batch; ++i) {
                const int slot = slot_of(tile, runs, own, first + i);
                const std::int64_t n = begin + (slot < 0 ? 0 : tile.place[slot]);
                target[i] = slot < 0 ? -1 : tile.target[slot];
                scale[i] = slot < 0 ? Real(0) : factor == nullptr ? weight_of(n) : factor[first + i];
                MPAMATCH_UNROLL
                for (int piece = 0; piece < pieces; ++piece) {
                    z[i][piece] = read_once<Storage, vector>(embedding + n * stride +
                                                             (inside[piece] ? first_of(column, piece) : 0));
                }
            }
            if (factor == nullptr) {
                MPAMATCH_UNROLL
                for (int i = 0; i < batch; ++i) {
                    length[i] = 0;
                    MPAMATCH_UNROLL
                    for (int piece = 0; piece < pieces; ++piece) {
                        if (inside[piece]) length[i] += squared(z[i][piece]);
                    }
                }
                sum_over_group(length);
                MPAMATCH_UNROLL
                for (int i = 0; i < batch; ++i) scale[i] *= inverse_length(length[i]);
            }
            MPAMATCH_UNROLL
            for (int i = 0; i < batch; ++i) {
                if (target[i] != current) {
                    write(rows, current, own, column, sum);
                    current = target[i];
                }
                MPAMATCH_UNROLL
                for (int piece = 0; piece < pieces; ++piece) {
                    MPAMATCH_UNROLL
                    for (int e = 0; e < vector; ++e) sum[piece][e] += scale[i] * to_working(z[i][piece].value[e]);
                }
            }
        }
        write(rows, current, own, column, sum);
    }

    // Writes the partial sum of prototype m, if it is one, and begins the next at 0.
    MPAMATCH_DEVICE void write(Real* rows, int m, int own, int column, Real (&sum)[pieces][vector]) const {
        Real* row = rows + std::int64_t(m + own) * width;
        MPAMATCH_UNROLL
        for (int piece = 0; piece < pieces; ++piece) {
            const int d = first_of(column, piece);
            if (m >= 0 && d < width) write_pack(row + d, sum[piece]);
            MPAMATCH_UNROLL
            for (int e = 0; e < vector; ++e) sum[piece][e] = Real(0);
        }
    }
};

// total[m, d] = the sum of the partial sums of m, by domains and in each by runs: a block takes 32 columns of one
// prototype, a warp every warps-th row, and the warps' sums are added in order.
template <class Real>
struct PrototypeAdd {
    static constexpr int threads = update_threads;
    static constexpr int blocks_per_processor = 4;
    static constexpr int batch = 8;  // rows on their way together

    const Real* partial;  // (domains, rows, width)
    const int* starts;    // (domains, prototypes + 1)
    SumPlan plan;
    int prototypes;
    int width;
    int at_once;  // domains whose rows are listed together
    Real* total;  // (prototypes, width)

    struct Tile {
        int* first;    // (at_once) row of each domain
        int* before;   // (at_once + 1) rows of the domains before
        int* size;     // (at_once)
        int* scratch;  // (threads)
        Real* piece;   // (threads)

        MPAMATCH_BOTH Tile(Shared& shared, int at_once, int threads)
            : first(shared.take<int>(at_once)),
              before(shared.take<int>(at_once + 1)),
              size(shared.take<int>(at_once)),
              scratch(shared.take<int>(threads)),
              piece(shared.take<Real>(threads)) {}
    };

    MPAMATCH_BOTH std::int64_t shared_bytes(int threads_in_block) const {
        Shared shared(nullptr);
        Tile(shared, at_once, threads_in_block);
        return shared.bytes();
    }
    MPAMATCH_BOTH std::int64_t blocks() const { return prototypes * divide_up(width, warp_size); }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        const Tile tile(shared, at_once, thread_count());
        const int chunks = static_cast<int>(divide_up(width, warp_size));
        const int m = block_index() / chunks;
        const int d = block_index() % chunks * warp_size + thread_index() % warp_size;
        Real sum = 0;
        for (int domain = 0; domain < plan.domains; domain += at_once) {
            const int domains = plan.domains - domain < at_once ? plan.domains - domain : at_once;
            list(tile, m, domain, domains);
            if (d < width) sum = add(tile, partial + std::int64_t(domain) * plan.rows * width + d, domains, sum);
            block_barrier();
        }
        tile.piece[thread_index()] = sum;
        block_barrier();
        if (thread_index() >= warp_size || d >= width) return;
        for (int warp = 1; warp < thread_count() / warp_size; ++warp) {
            sum += tile.piece[warp * warp_size + thread_index()];
        }
        total[std::int64_t(m) * width + d] = sum;
    }

  private:
    MPAMATCH_DEVICE void list(const Tile& tile, int m, int domain, int domains) const {
        for (int i = thread_index(); i < domains; i += thread_count()) {
            const Runs runs(starts + std::int64_t(domain + i) * (prototypes + 1), prototypes, plan.runs);
            tile.first[i] = i * plan.rows + runs.first_row(m);
            tile.size[i] = runs.row_count(m);
        }
        block_barrier();
        sums_before(
            domains, tile.scratch, [&](int i) { return tile.size[i]; }, [&](int i, int sum) { tile.before[i] = sum; });
        block_barrier();
    }

    // The addresses of a batch first, then its rows together.
    MPAMATCH_DEVICE Real add(const Tile& tile, const Real* column, int domains, Real sum) const {
        const int warps = thread_count() / warp_size;
        const int rows = tile.before[domains];
        int domain = 0;
        for (int first = thread_index() / warp_size; first < rows; first += batch * warps) {
            const Real* place[batch];
            Real value[batch];
            MPAMATCH_UNROLL
            for (int i = 0; i < batch; ++i) {
                const int row = first + i * warps;
                while (row < rows && row >= tile.before[domain + 1]) ++domain;
                place[i] = row < rows ? column + std::int64_t(tile.first[domain] + row - tile.before[domain]) * width
                                      : nullptr;
            }
            MPAMATCH_UNROLL
            for (int i = 0; i < batch; ++i) value[i] = place[i] == nullptr ? Real(0) : *place[i];
            MPAMATCH_UNROLL
            for (int i = 0; i < batch; ++i) sum += value[i];
        }
        return sum;
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

// As many domains as the device holds at once, or a multiple of it where these would be of more than 3,072 pixels, so
// that no block runs alone at the end; fewer where they would be too small; lanes that read a row in one go. 0 domains:
// the counts of the sort do not fit.
template <class Storage, int vector>
SumPlan plan_sum(std::int64_t count, int width, int prototypes, int threads, const Device& device) {
    constexpr std::int64_t most = 3072;
    constexpr std::int64_t least = 512;  // 64 pixels a block
    using Kernel = PrototypeSum<Storage, vector>;
    SumPlan plan{};
    constexpr int of_lane = vector * Kernel::pieces;  // columns
    plan.lanes = width <= 8 * of_lane ? 8 : width <= 16 * of_lane ? 16 : 32;
    plan.runs = threads / plan.lanes * blocks_per_domain;
    plan.rows = prototypes + plan.runs;
    const std::int64_t held = std::int64_t(Kernel::blocks_per_processor) * device.processors / blocks_per_domain;
    const std::int64_t at_once = held < 1 ? 1 : held;
    const std::int64_t full = at_once * divide_up(count, most * at_once);
    const std::int64_t small = divide_up(count, least);
    const std::int64_t domains = small < full ? small : full;
    plan.domains = domains < 1 ? 1 : static_cast<int>(domains);
    plan.domain = count < 1 ? 1 : static_cast<int>(divide_up(count, plan.domains));
    if (!device.holds(Kernel::shared_bytes(plan, prototypes, threads), 1)) plan.domains = 0;
    return plan;
}

}  // namespace mpamatch::cuda
