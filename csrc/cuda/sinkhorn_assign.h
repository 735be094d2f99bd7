// The kernels of sinkhorn_assign. With s = cos/epsilon the transport plan of a class is exp(s + log_u) up to a factor
// per pixel, so one K-vector log_u per class holds it all; each iteration reduces C x K numbers over the pixels.
#pragma once

#include "cuda/class_order.h"
#include "cuda/class_scores.h"
#include "cuda/device.h"
#include "cuda/ordered_sum.h"
#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr int sinkhorn_threads = 256;

// log_u once more: log_u - log(total) where total > 0. A constant added to all K of a class changes nothing.
template <class Real>
MPAMATCH_DEVICE Real next_log_u(Real log_u, Real total) {
    return total > Real(0) ? log_u - std::log(total) : log_u;
}

// The lowest of the k where row[k] + shift[k] is largest.
template <class Real>
MPAMATCH_DEVICE int best_of(const Real* row, const Real* shift, int count) {
    int found = 0;
    Real highest = row[0] + shift[0];
    for (int k = 1; k < count; ++k) {
        const Real x = row[k] + shift[k];
        if (x > highest) {
            highest = x;
            found = k;
        }
    }
    return found;
}

// All of sinkhorn_assign in one launch whose blocks run at once: a block keeps the scores of its slice in shared
// memory, and each iteration is a pass over these and one sum over the grid.
template <class Storage, int vector>
struct SinkhornAssign {
    using Scores = ClassScores<Storage, vector>;
    using Real = typename Scores::Real;
    static constexpr int threads = sinkhorn_threads;
    static constexpr int blocks_per_processor = 2;
    static constexpr int rows = Scores::rows;
    using Order = SliceOrder<rows, 1>;  // mostly one pixel a thread

    Scores scores;
    Indices label;  // (pixels)
    std::int64_t pixels;
    int slice;  // pixels of a block
    int iterations;
    bool shifted;              // begin with exp(score - 1/epsilon), else with exp(score - maximum)
    std::int32_t* assignment;  // (pixels)
    GridSum<Real> sum;

    struct Tile {
        int* pixel;     // (slots) as ClassScores takes them
        Real* inverse;  // (classes, columns) 1/||p||
        Real* score;    // (slots, per_class)
        Order order;
        int* flag;    // (1)
        Real* level;  // (slots) what is taken from its exponents
        Real* piece;  // (slots / rows, per_class)
        Real* log_u;  // (classes, per_class)

        MPAMATCH_BOTH Tile(Shared& shared, int slice, int classes, int per_class, int threads)
            : pixel(shared.take<int>(Order::slots(slice, classes))),
              inverse(shared.take<Real>(classes * Scores::columns)),
              score(shared.take<Real>(std::int64_t(Order::slots(slice, classes)) * per_class)),
              order(shared, classes, threads),
              flag(shared.take<int>(1)),
              level(shared.take<Real>(Order::slots(slice, classes))),
              piece(shared.take<Real>(divide_up(Order::slots(slice, classes), rows) * per_class)),
              log_u(shared.take<Real>(std::int64_t(classes) * per_class)) {}
    };

    MPAMATCH_BOTH static std::int64_t shared_bytes(int slice, int classes, int per_class, int threads_in_block) {
        Shared shared(nullptr);
        Tile(shared, slice, classes, per_class, threads_in_block);
        return shared.bytes();
    }
    MPAMATCH_BOTH std::int64_t shared_bytes(int threads_in_block) const {
        return shared_bytes(slice, scores.classes, scores.per_class, threads_in_block);
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        const Tile tile = tile_in(memory);
        sort(tile);
        score(tile);
        int turn = 0;
        if (iterations > 0 && !shifted) {
            reduce(tile, turn++, Reduction<Real>{true}, [&](int i, Real peak) { tile.log_u[i] = -peak; });
        }
        for (int iteration = 0; iteration < iterations; ++iteration) {
            if (iteration > 0) normalise(tile);
            reduce(tile, turn++, Reduction<Real>{false},
                   [&](int i, Real total) { tile.log_u[i] = next_log_u(tile.log_u[i], total); });
        }
        pick(tile);
    }

  private:
    MPAMATCH_DEVICE Tile tile_in(unsigned char* memory) const {
        Shared shared(memory);
        return Tile(shared, slice, scores.classes, scores.per_class, thread_count());
    }
    MPAMATCH_DEVICE std::int64_t begin() const { return std::int64_t(slice) * block_index(); }
    MPAMATCH_DEVICE int slots(const Tile& tile) const { return tile.order.start[scores.classes]; }

    MPAMATCH_DEVICE void sort(const Tile& tile) const {
        const std::int64_t left = pixels - begin();
        const int length = left < slice ? left < 0 ? 0 : static_cast<int>(left) : slice;
        for (int i = thread_index(); i < Order::slots(slice, scores.classes); i += thread_count()) tile.pixel[i] = -1;
        for (int i = thread_index(); i < scores.classes * scores.per_class; i += thread_count()) tile.log_u[i] = 0;
        tile.order.sort(
            length, scores.classes, [&](int place) { return read_index(label, begin() + place, scores.classes); },
            [&](int place, int own, int slot) {
                if (slot < 0) {
                    assignment[begin() + place] = -1;
                } else {
                    tile.pixel[slot] = own << 16 | place;
                }
            });
    }

    MPAMATCH_DEVICE void score(const Tile& tile) const {
        const int per_class = scores.per_class;
        for (int i = thread_index(); i < slots(tile); i += thread_count()) {
            tile.level[i] = shifted ? scores.inverse_epsilon : Real(0);
        }
        for (int k = 0; k < per_class; k += Scores::columns) {
            scores.measure_prototypes(tile.order.size, k, tile.inverse);
            block_barrier();
            Real* score = tile.score + k;
            scores.multiply(tile.pixel, slots(tile), begin(), k, tile.inverse,
                            [=](int slot, int, int, int column, Real x) { score[slot * per_class + column] = x; });
            block_barrier();
        }
    }

    // level = log of the sum over k of exp(score + log_u): taken away, what is left are the shares of a pixel.
    MPAMATCH_DEVICE void normalise(const Tile& tile) const {
        for (int slot = thread_index(); slot < slots(tile); slot += thread_count()) {
            if (tile.pixel[slot] < 0) continue;
            const Real* row = tile.score + slot * scores.per_class;
            const Real* shift = tile.log_u + (tile.pixel[slot] >> 16) * scores.per_class;
            Real peak = row[0] + shift[0];
            for (int k = 1; k < scores.per_class; ++k) {
                const Real x = row[k] + shift[k];
                if (x > peak) peak = x;
            }
            Real total = 0;
            for (int k = 0; k < scores.per_class; ++k) total += std::exp(row[k] + shift[k] - peak);
            tile.level[slot] = peak + std::log(total);
        }
        block_barrier();
    }

    // use(c K + k, the sum over the pixels of c of exp(score + log_u - level), or the maximum of score). A set of slots
    // is one class's: first the sets, many and alike, then those of each class in their order, whatever its size.
    template <class Use>
    MPAMATCH_DEVICE void reduce(const Tile& tile, int turn, const Reduction<Real>& reduction, const Use& use) const {
        const int per_class = scores.per_class;
        for (int i = thread_index(); i < slots(tile) / rows * per_class; i += thread_count()) {
            const int first = i / per_class * rows;
            const Real shift = tile.log_u[(tile.pixel[first] >> 16) * per_class + i % per_class];
            Real total = reduction.neutral();
            MPAMATCH_UNROLL
            for (int slot = first; slot < first + rows; ++slot) {
                if (tile.pixel[slot] < 0) continue;
                const Real x = tile.score[slot * per_class + i % per_class];
                total = reduction.combine(total, reduction.maximum ? x : std::exp(x + shift - tile.level[slot]));
            }
            tile.piece[i] = total;
        }
        block_barrier();
        for (int i = thread_index(); i < scores.classes * per_class; i += thread_count()) {
            const Real* piece = tile.piece + tile.order.start[i / per_class] / rows * per_class + i % per_class;
            const int sets = (tile.order.size[i / per_class] + rows - 1) / rows;
            Real total = reduction.neutral();
            MPAMATCH_UNROLL_8
            for (int set = 0; set < sets; ++set) total = reduction.combine(total, piece[set * per_class]);
            sum.own_row()[i] = total;
        }
        sum.finish(turn, reduction, tile.flag, use);
        block_barrier();
    }

    MPAMATCH_DEVICE void pick(const Tile& tile) const {
        for (int slot = thread_index(); slot < slots(tile); slot += thread_count()) {
            const int packed = tile.pixel[slot];
            if (packed < 0) continue;
            const int own = (packed >> 16) * scores.per_class;
            assignment[begin() + (packed & 0xffff)] =
                own + best_of(tile.score + slot * scores.per_class, tile.log_u + own, scores.per_class);
        }
    }
};

// How many blocks at once hold the scores of all pixels, and how many pixels each; 0 blocks: they do not fit.
struct AssignPlan {
    int blocks;
    int slice;
};

template <class Storage>
AssignPlan plan_assign(std::int64_t pixels, std::int64_t stride, int classes, int per_class, int threads,
                       const Device& device) {
    using Kernel = SinkhornAssign<Storage, 1>;
    constexpr int least = 64;  // pixels keep half of a block's lane groups busy: fewer would only lengthen the sums
    for (int resident = Kernel::blocks_per_processor; device.cooperative && resident > 0; --resident) {
        const std::int64_t at_once = std::int64_t(resident) * device.processors;
        const std::int64_t wanted = pixels <= least ? 1 : divide_up(pixels, least);
        const std::int64_t blocks = wanted < at_once ? wanted : at_once;
        const std::int64_t slice = divide_up(pixels, blocks);
        if (slice > Kernel::Order::most_pixels || slice * stride >= Kernel::Scores::most_offset) continue;
        const std::int64_t bytes = Kernel::shared_bytes(static_cast<int>(slice), classes, per_class, threads);
        if (device.holds(bytes, resident)) return {static_cast<int>(blocks), static_cast<int>(slice)};
    }
    return {0, 0};
}

// Where ranks share their sums, or more pixels come than fit below: a launch for each pass.

// The scores, 0 where the pixel is ignored; reduced over the pixels of each class: sum of exp(score - 1/epsilon) where
// shifted, else the maximum.
template <class Storage, int vector>
struct SinkhornScore {
    using Scores = ClassScores<Storage, vector>;
    using Real = typename Scores::Real;
    static constexpr int threads = sinkhorn_threads;
    static constexpr int blocks_per_processor = 2;
    static constexpr int columns = Scores::columns;
    using Sums = ClassSums<Real, columns>;

    Scores scores;  // stride below 2^24
    Indices label;  // (pixels)
    std::int64_t pixels;
    std::int64_t slice;  // pixels of a block
    bool shifted;
    Real* score;  // (pixels, per_class)
    OrderedSum<Real> sum;

    using Order = ClassOrder<threads, Scores::rows>;
    struct Sorted {
        Order order;
        int pixel[Order::slots(most_classes)];  // as ClassScores takes them
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
        Tile(shared, scores.classes);
        return shared.bytes();
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        const Tile tile(shared, scores.classes);
        const int per_class = scores.per_class;
        sum.clear_own_row();
        const std::int64_t begin = slice * block_index();
        const std::int64_t end = begin + slice < pixels ? begin + slice : pixels;
        for (std::int64_t first = begin; first < end; first += thread_count()) {
            sort(tile, first, end);
            for (int k = 0; k < per_class; k += columns) {
                scores.measure_prototypes(tile.sorted->order.size, k, tile.inverse);
                block_barrier();
                scores.multiply(tile.sorted->pixel, tile.sorted->order.start[scores.classes], first, k, tile.inverse,
                                [&](int slot, int, int place, int column, Real x) {
                                    score[(first + place) * per_class + k + column] = x;
                                    tile.value[slot * columns + column] =
                                        shifted ? std::exp(x - scores.inverse_epsilon) : x;
                                });
                Sums::add(tile.sorted->order, scores.classes, tile.value, tile.piece, sum, k, per_class);
            }
        }
        sum.finish(tile.sorted->order.size);
    }

  private:
    MPAMATCH_DEVICE void sort(const Tile& tile, std::int64_t first, std::int64_t end) const {
        const std::int64_t n = first + thread_index();
        const int own = n < end ? read_index(label, n, scores.classes) : -1;
        const int slot = tile.sorted->order.place(own, scores.classes);
        const int slots = tile.sorted->order.start[scores.classes];
        for (int i = thread_index(); i < slots; i += thread_count()) tile.sorted->pixel[i] = -1;
        block_barrier();
        if (slot >= 0) tile.sorted->pixel[slot] = own << 16 | thread_index();
        if (slot >= 0 || n >= end) return;
        for (int k = 0; k < scores.per_class; ++k) score[n * scores.per_class + k] = Real(0);
    }
};

// log_u as a pass finds it, and the totals that it has not yet taken in.
template <class Real>
struct LogU {
    const Real* log_u;  // (cells), null for 0
    const Real* total;  // (cells), null for 1
    Real sign;          // of log_u: -1 where it holds the maxima of the scores

    MPAMATCH_DEVICE Real operator[](std::int64_t i) const {
        const Real now = log_u == nullptr ? Real(0) : sign * log_u[i];
        return total == nullptr ? now : next_log_u(now, total[i]);
    }
};

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
    LogU<Real> before;
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
            tile.log_u[i] = before[i];
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
    LogU<Real> before;
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
            now[i] = before[i];
        }
        block_barrier();
        const std::int64_t step = std::int64_t(block_count()) * thread_count();
        for (std::int64_t n = std::int64_t(block_index()) * thread_count() + thread_index(); n < pixels; n += step) {
            const int own = read_index(label, n, classes);
            assignment[n] =
                own < 0 ? -1 : own * per_class + best_of(score + n * per_class, now + own * per_class, per_class);
        }
    }
};

}  // namespace mpamatch::cuda
