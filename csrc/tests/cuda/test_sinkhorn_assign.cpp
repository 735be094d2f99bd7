// sinkhorn_score, sinkhorn_step and sinkhorn_pick, the kernels' own source, against float64.
#include "cuda/sinkhorn_assign.h"

#include "harness.h"

namespace mpamatch::cuda {
namespace {

struct Shape {
    std::int64_t pixels;
    int width;
    int classes;
    int per_class;
    double ignored;
    int blocks;
    IndexType type;

    std::string name() const {
        return "N " + std::to_string(pixels) + " D " + std::to_string(width) + " C " + std::to_string(classes) + " K " +
               std::to_string(per_class) + " blocks " + std::to_string(blocks);
    }
    std::size_t cells() const { return static_cast<std::size_t>(classes * per_class); }
    std::size_t scores() const { return static_cast<std::size_t>(pixels * per_class); }
};

template <class Real>
struct Workspace {
    SumSpace space;
    std::vector<double> memory;

    Workspace(const Shape& s)
        : space(SumSpace::of<Real>(s.blocks, static_cast<int>(s.cells()))),
          memory(static_cast<std::size_t>(divide_up(space.tickets + space.partial + 2 * space.bundle, sizeof(double))),
                 poison<double>) {
        std::memset(memory.data(), 0, static_cast<std::size_t>(space.tickets));
    }
    unsigned char* tickets() { return reinterpret_cast<unsigned char*>(memory.data()); }
    OrderedSum<Real> sum(const Shape& s, std::vector<Real>& result, bool maximum) {
        return ordered_sum_in(tickets(), tickets() + space.tickets, s.blocks, static_cast<int>(s.cells()),
                              result.data(), maximum);
    }
    GridSum<Real> of_grid(const Shape& s) {
        return grid_sum_in<Real>(tickets(), tickets() + space.tickets, s.blocks, static_cast<int>(s.cells()));
    }
};

// Embedding, prototypes and labels, a zero vector among each of the former; ignored rows hold NaN.
template <class Storage>
struct Input {
    using Real = Working<Storage>;
    std::int64_t stride;
    RandomRows<Storage> embedding;
    RandomRows<Real> prototypes;
    StoredIndices label;

    Input(Random& random, const Shape& s, std::int64_t stride)
        : stride(stride),
          embedding(random, s.pixels, s.width, stride),
          prototypes(random, s.classes * s.per_class, s.width, s.width),
          label(random_indices(random, s.pixels, s.classes, s.ignored, s.type)) {
        if (s.pixels > 2) embedding.clear_row(1, s.width, stride);
        if (s.cells() > 3) prototypes.clear_row(2, s.width, s.width);
        for (std::int64_t n = 0; n < s.pixels; ++n) {
            Storage* row = &embedding.data[static_cast<std::size_t>(n * stride)];
            if (label.at(n, s.classes) < 0) std::fill(row, row + s.width, to_storage<Storage>(std::nan("")));
        }
    }
    // (pixels, per_class), 0 where the pixel is ignored.
    std::vector<double> cosines(const Shape& s) const {
        std::vector<double> result(s.scores(), 0.0);
        for (std::int64_t n = 0; n < s.pixels; ++n) {
            const int own = label.at(n, s.classes);
            if (own < 0) continue;
            const auto z = unit(&embedding.exact[static_cast<std::size_t>(n * s.width)], s.width);
            for (int k = 0; k < s.per_class; ++k) {
                const int m = own * s.per_class + k;
                const auto p = unit(&prototypes.exact[static_cast<std::size_t>(m * s.width)], s.width);
                double& cosine = result[static_cast<std::size_t>(n * s.per_class + k)];
                for (int d = 0; d < s.width; ++d) {
                    cosine += z[static_cast<std::size_t>(d)] * p[static_cast<std::size_t>(d)];
                }
            }
        }
        return result;
    }
    template <int vector>
    ClassScores<Storage, vector> view(const Shape& s, double epsilon) const {
        return {embedding.data.data(), stride,  prototypes.data.data(),        s.classes,
                s.per_class,           s.width, static_cast<Real>(1 / epsilon)};
    }
};

template <class Storage, int vector>
void test_score(const Shape& s, bool shifted, unsigned seed) {
    using Kernel = SinkhornScore<Storage, vector>;
    using Real = typename Kernel::Real;
    ++cases;
    const std::string name = "score, " + s.name();
    const double epsilon = shifted ? 0.05 : 0.01;
    Random random(seed);
    const Input<Storage> input(random, s, s.width + (seed % 2 == 0 ? 0 : 16));

    std::vector<double> truth = input.cosines(s);
    std::vector<double> reduced(s.cells(), shifted ? 0.0 : double(std::numeric_limits<Real>::lowest()));
    for (std::int64_t n = 0; n < s.pixels; ++n) {
        const int own = input.label.at(n, s.classes);
        for (int k = 0; own >= 0 && k < s.per_class; ++k) {
            double& score = truth[static_cast<std::size_t>(n * s.per_class + k)];
            score /= epsilon;
            double& cell = reduced[static_cast<std::size_t>(own * s.per_class + k)];
            cell = shifted ? cell + std::exp(score - 1 / epsilon) : std::max(cell, score);
        }
    }

    std::vector<Real> first_score, first_reduced;
    for (int at_once : {1, 3}) {
        std::vector<Real> score(s.scores(), poison<Real>), total(s.cells(), poison<Real>);
        Workspace<Real> workspace(s);
        const Kernel kernel{input.template view<vector>(s, epsilon),
                            input.label.view(),
                            s.pixels,
                            divide_up(s.pixels, s.blocks),
                            shifted,
                            score.data(),
                            workspace.sum(s, total, !shifted)};
        run_grid(kernel, s.blocks, at_once, seed + static_cast<unsigned>(at_once));
        if (at_once == 1) {
            expect_near(score, truth, 1 / epsilon, name);
            // an error of x in a score is a relative error of x in its exponential
            expect_near(total, reduced, shifted ? double(s.pixels) / epsilon : 1 / epsilon, name + " reduced");
            first_score = score;
            first_reduced = total;
        }
        expect(same_bits(score, first_score) && same_bits(total, first_reduced), name + ": not repeatable");
    }
}

template <class Real>
struct Scores {
    RandomRows<Real> score, log_u, total;
    StoredIndices label;
    std::vector<double> next;  // log_u - log(total) where total > 0

    Scores(Random& random, const Shape& s)
        : score(random, s.pixels, s.per_class, s.per_class),
          log_u(random, s.classes, s.per_class, s.per_class),
          total(random, s.classes, s.per_class, s.per_class),
          label(random_indices(random, s.pixels, s.classes, s.ignored, s.type)),
          next(log_u.exact) {
        for (std::size_t i = 0; i < next.size(); ++i) {
            if (total.exact[i] > 0) next[i] -= std::log(total.exact[i]);
        }
    }
    double value(const Shape& s, std::int64_t n, int own, int k) const {
        return score.exact[static_cast<std::size_t>(n * s.per_class + k)] +
               next[static_cast<std::size_t>(own * s.per_class + k)];
    }
};

template <class Real>
void test_step(const Shape& s, bool rows, unsigned seed) {
    ++cases;
    const std::string name = std::string(rows ? "step of shares, " : "step, ") + s.name();
    Random random(seed);
    const Scores<Real> scores(random, s);
    std::vector<double> truth(s.cells(), 0.0);
    for (std::int64_t n = 0; n < s.pixels; ++n) {
        const int own = scores.label.at(n, s.classes);
        if (own < 0) continue;
        double denominator = 0;
        for (int k = 0; k < s.per_class; ++k) denominator += std::exp(scores.value(s, n, own, k));
        for (int k = 0; k < s.per_class; ++k) {
            truth[static_cast<std::size_t>(own * s.per_class + k)] +=
                std::exp(scores.value(s, n, own, k)) / (rows ? denominator : 1);
        }
    }

    std::vector<Real> first;
    for (int at_once : {1, 3}) {
        std::vector<Real> log_u(s.cells(), poison<Real>), total(s.cells(), poison<Real>);
        Workspace<Real> workspace(s);
        const SinkhornStep<Real> kernel{scores.score.data.data(),
                                        scores.label.view(),
                                        s.pixels,
                                        divide_up(s.pixels, s.blocks),
                                        s.classes,
                                        s.per_class,
                                        {scores.log_u.data.data(), scores.total.data.data(), Real(1)},
                                        rows,
                                        log_u.data(),
                                        workspace.sum(s, total, false)};
        run_grid(kernel, s.blocks, at_once, seed + static_cast<unsigned>(at_once));
        if (at_once == 1) {
            expect_near(log_u, scores.next, 1, name + " log_u");
            expect_near(total, truth, 1, name);
            first = total;
        }
        expect(same_bits(total, first), name + ": not repeatable");
    }
}

template <class Real>
void test_pick(const Shape& s, unsigned seed) {
    ++cases;
    const std::string name = "pick, " + s.name();
    Random random(seed);
    Scores<Real> scores(random, s);
    if (s.per_class > 2) {  // the last two prototypes of each class are equal: the lower must win
        const auto repeat = [&](RandomRows<Real>& rows) {
            for (std::size_t i = static_cast<std::size_t>(s.per_class); i <= rows.data.size(); i += s.per_class) {
                rows.data[i - 1] = rows.data[i - 2];
                rows.exact[i - 1] = rows.exact[i - 2];
            }
        };
        repeat(scores.score), repeat(scores.log_u), repeat(scores.total);
        for (std::size_t i = static_cast<std::size_t>(s.per_class); i <= scores.next.size(); i += s.per_class) {
            scores.next[i - 1] = scores.next[i - 2];
        }
    }
    std::vector<std::int32_t> assignment(static_cast<std::size_t>(s.pixels), poison<std::int32_t>);
    const SinkhornPick<Real> kernel{scores.score.data.data(),
                                    scores.label.view(),
                                    s.pixels,
                                    s.classes,
                                    s.per_class,
                                    {scores.log_u.data.data(), scores.total.data.data(), Real(1)},
                                    assignment.data()};
    run_grid(kernel, s.blocks, 2, seed);
    for (std::int64_t n = 0; n < s.pixels; ++n) {
        const int own = scores.label.at(n, s.classes);
        const int chosen = assignment[static_cast<std::size_t>(n)];
        if (own < 0) {
            expect(chosen == -1, name + ": an ignored pixel");
            continue;
        }
        double best = scores.value(s, n, own, 0);
        for (int k = 1; k < s.per_class; ++k) best = std::max(best, scores.value(s, n, own, k));
        const int k = chosen - own * s.per_class;
        const bool inside = k >= 0 && k < s.per_class;
        expect(inside && scores.value(s, n, own, k) >= best - 10 * tolerance<Real>, name + ": not the best");
        expect(inside && (s.per_class < 3 || k < s.per_class - 1), name + ": not the lowest of equals");
    }
}

// What a step makes of log_u and totals that are not there, and of maxima.
template <class Real>
void test_beginnings() {
    ++cases;
    const Real log_u = 3;
    const Real total = 5;
    expect(LogU<Real>{nullptr, nullptr, 1}[0] == 0, "no log_u and no total");
    expect(std::abs(LogU<Real>{nullptr, &total, 1}[0] + std::log(total)) < 1e-6, "no log_u");
    expect(LogU<Real>{&log_u, nullptr, -1}[0] == -3, "a maximum");
}

// log of the plan up to a number for each pixel: score + log_u, by the iterations of the operation in double.
template <class Storage>
std::vector<double> plan_of(const Input<Storage>& input, const Shape& s, double epsilon, int iterations) {
    std::vector<double> plan = input.cosines(s);
    for (double& x : plan) x /= epsilon;
    for (int iteration = 0; iteration < iterations; ++iteration) {
        std::vector<double> total(s.cells(), 0.0);
        std::vector<double> row(static_cast<std::size_t>(s.per_class));
        for (std::int64_t n = 0; n < s.pixels; ++n) {
            const int own = input.label.at(n, s.classes);
            if (own < 0) continue;
            const double* x = &plan[static_cast<std::size_t>(n * s.per_class)];
            double sum = 0;
            for (int k = 0; k < s.per_class; ++k) sum += row[static_cast<std::size_t>(k)] = std::exp(x[k]);
            for (int k = 0; k < s.per_class; ++k) {
                total[static_cast<std::size_t>(own * s.per_class + k)] +=
                    row[static_cast<std::size_t>(k)] / (iteration == 0 ? 1 : sum);
            }
        }
        for (std::int64_t n = 0; n < s.pixels; ++n) {
            const int own = input.label.at(n, s.classes);
            for (int k = 0; own >= 0 && k < s.per_class; ++k) {
                plan[static_cast<std::size_t>(n * s.per_class + k)] -=
                    std::log(total[static_cast<std::size_t>(own * s.per_class + k)]);
            }
        }
    }
    return plan;
}

template <class Storage, int vector>
void test_assign(const Shape& s, double epsilon, int iterations, unsigned seed) {
    using Kernel = SinkhornAssign<Storage, vector>;
    using Real = typename Kernel::Real;
    ++cases;
    const std::string name = "assign, " + s.name() + " iterations " + std::to_string(iterations);
    Random random(seed);
    const Input<Storage> input(random, s, s.width + (seed % 2 == 0 ? 0 : 16));
    const std::vector<double> plan = plan_of(input, s, epsilon, iterations);
    std::vector<std::int32_t> first;
    for (unsigned turn = 0; turn < 2; ++turn) {
        std::vector<std::int32_t> assignment(static_cast<std::size_t>(s.pixels), poison<std::int32_t>);
        Workspace<Real> workspace(s);
        const Kernel kernel{input.template view<vector>(s, epsilon),
                            input.label.view(),
                            s.pixels,
                            static_cast<int>(divide_up(s.pixels, s.blocks)),
                            iterations,
                            epsilon > 0.02,
                            assignment.data(),
                            workspace.of_grid(s)};
        run_grid(kernel, s.blocks, s.blocks, seed + turn);
        if (turn == 0) first = assignment;
        expect(same_bits(assignment, first), name + ": not repeatable");
    }
    for (std::int64_t n = 0; n < s.pixels; ++n) {
        const int own = input.label.at(n, s.classes);
        const int chosen = first[static_cast<std::size_t>(n)];
        if (own < 0) {
            expect(chosen == -1, name + ": an ignored pixel");
            continue;
        }
        const double* row = &plan[static_cast<std::size_t>(n * s.per_class)];
        const int k = chosen - own * s.per_class;
        const bool inside = k >= 0 && k < s.per_class;
        // both scores and log_u are off by some roundings of 1/epsilon
        expect(inside && row[k] >= *std::max_element(row, row + s.per_class) - 10 * tolerance<Real> / epsilon,
               name + ": not the best of pixel " + std::to_string(n));
    }
}

// One block and several, bundles of blocks, more pixels than threads in a block, blocks without pixels, K above the
// columns of a turn, absent classes, all pixels ignored, no iteration.
void test_at_once() {
    test_assign<float, 4>({131, 40, 5, 10, 0.3, 2, IndexType::u8}, 0.05, 3, 31);
    test_assign<BFloat16, 4>({203, 32, 3, 13, 0.1, 1, IndexType::i32}, 0.01, 3, 32);
    test_assign<Float16, 1>({97, 5, 2, 5, 0.4, 5, IndexType::i64}, 0.05, 4, 33);
    test_assign<double, 2>({61, 8, 4, 7, 0.2, 3, IndexType::u8}, 0.01, 4, 34);
    test_assign<float, 1>({5, 3, 60, 2, 0.1, 4, IndexType::i32}, 0.05, 3, 35);
    test_assign<float, 1>({37, 5, 4, 3, 1.0, 2, IndexType::i32}, 0.05, 2, 36);
    test_assign<double, 1>({40, 4, 3, 4, 0.1, 2, IndexType::u8}, 0.05, 0, 37);
    test_assign<float, 1>({0, 8, 3, 4, 0.0, 1, IndexType::u8}, 0.05, 3, 38);
    test_assign<float, 1>({47, 2, 2, 3, 0.1, 3, IndexType::u8}, 0.01, 3, 40);  // exp(1/epsilon) is no float
    test_assign<float, 1>({1, 8, 1, 1, 0.0, 1, IndexType::u8}, 0.01, 1, 39);
}

void test_plans() {
    ++cases;
    const Device h100{132, 228 << 10, 227 << 10, true};
    const Device l4{58, 100 << 10, 99 << 10, true};
    const auto plan = [](std::int64_t pixels, const Device& device, int classes = 5, std::int64_t stride = 256) {
        return plan_assign<BFloat16>(pixels, stride, classes, 10, sinkhorn_threads, device);
    };
    expect(plan(65536, h100).blocks == 264 && plan(65536, h100).slice == 249, "two blocks a processor");
    expect(plan(65536, l4).blocks > 0, "an L4 holds them");
    expect(plan(0, h100).blocks == 1 && plan(64, h100).blocks == 1 && plan(65, h100).blocks == 2, "few pixels");
    expect(plan(1 << 20, h100, 255).blocks * std::int64_t(plan(1 << 20, h100, 255).slice) >= (1 << 20) ||
               plan(1 << 20, h100, 255).blocks == 0,
           "a plan that leaves out pixels");
    expect(plan(1 << 22, h100).blocks == 0, "more scores than shared memory");
    expect(plan(65536, h100, 5, (1 << 24) + 8).blocks > 0 && plan(1 << 19, h100, 5, 1 << 23).blocks == 0,
           "offsets of 32 bits");
    const int per_class = most_prototypes / most_classes;
    const SinkhornStep<double> step{nullptr, {}, 0, 0, most_classes, per_class, {}, true, nullptr, {}};
    const SinkhornScore<double, 1> score{
        {nullptr, 1, nullptr, most_classes, per_class, 1, 1}, {}, 0, 0, true, nullptr, {}};
    const SinkhornStep<double> of_one{nullptr, {}, 0, 0, 1, most_prototypes, {}, true, nullptr, {}};
    expect(l4.holds(step.shared_bytes(sinkhorn_threads), 1) && l4.holds(score.shared_bytes(sinkhorn_threads), 1) &&
               l4.holds(of_one.shared_bytes(sinkhorn_threads), 1),
           "the passes hold as many prototypes as the operation takes");
    expect(plan(65536, Device{132, 228 << 10, 227 << 10, false}).blocks == 0, "no cooperative launch");
}

// A barrier of 64 threads costs half a millisecond of processor time, hence few and small shapes: no pixel, one,
// primes, several tiles of 64 in a block, many bundles of blocks, K above the columns of a turn,
// absent classes.
void test_vectors() {
    const Shape two_tiles{131, 40, 5, 10, 0.3, 2, IndexType::u8};
    const Shape bundles{97, 8, 2, 5, 0.4, 9, IndexType::i64};
    const Shape wide{41, 32, 3, 13, 0.0, 1, IndexType::i32};
    test_score<float, 4>(two_tiles, true, 1);
    test_score<BFloat16, 4>(two_tiles, false, 2);
    test_score<Float16, 4>(wide, true, 3);
    test_score<BFloat16, 4>(bundles, true, 4);
    test_score<double, 2>(bundles, false, 5);
    test_score<double, 2>(wide, true, 6);
}

void test_scalars() {
    test_score<float, 1>({0, 8, 3, 4, 0.0, 1, IndexType::u8}, true, 11);
    test_score<float, 1>({0, 8, 3, 4, 0.0, 1, IndexType::u8}, false, 12);
    test_score<double, 1>({1, 1, 1, 1, 0.0, 1, IndexType::u8}, true, 13);
    test_score<BFloat16, 1>({7, 3, 2, 10, 0.3, 2, IndexType::i32}, false, 14);
    test_score<Float16, 1>({61, 17, 3, 4, 0.2, 3, IndexType::i64}, true, 15);
    test_score<float, 1>({37, 5, 4, 13, 1.0, 3, IndexType::i32}, false, 16);
    test_score<float, 1>({67, 3, 60, 1, 0.1, 1, IndexType::u8}, true, 17);
}

void test_iterations() {
    const Shape shapes[] = {
        {0, 0, 3, 4, 0.0, 1, IndexType::u8},    {1, 0, 1, 1, 0.0, 1, IndexType::i32},
        {131, 0, 5, 10, 0.3, 2, IndexType::u8}, {97, 0, 2, 5, 0.4, 9, IndexType::i64},
        {31, 0, 2, 64, 0.1, 2, IndexType::u8},  {89, 0, 255, 3, 0.1, 1, IndexType::u8},
        {43, 0, 4, 13, 1.0, 3, IndexType::i32},
    };
    unsigned seed = 20;
    for (const Shape& s : shapes) {
        ++seed;
        test_step<float>(s, seed % 2 == 0, seed);
        test_step<double>(s, seed % 2 != 0, seed);
        test_pick<float>(s, seed);
        test_pick<double>(s, seed);
    }
}

int run() {
    test_vectors();
    test_scalars();
    test_iterations();
    test_beginnings<float>();
    test_beginnings<double>();
    test_at_once();
    test_plans();
    return finish();
}

}  // namespace
}  // namespace mpamatch::cuda

int main() { return mpamatch::cuda::run(); }
