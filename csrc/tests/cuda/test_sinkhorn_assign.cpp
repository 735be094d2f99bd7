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
    std::vector<double> memory;

    Workspace(const Shape& s)
        : memory(static_cast<std::size_t>(
                     divide_up(ordered_sum_space<Real>(s.blocks, static_cast<int>(s.cells())).total(), sizeof(double))),
                 poison<double>) {
        std::memset(memory.data(), 0,
                    static_cast<std::size_t>(ordered_sum_space<Real>(s.blocks, static_cast<int>(s.cells())).tickets));
    }
    OrderedSum<Real> sum(const Shape& s, std::vector<Real>& result, bool maximum) {
        return ordered_sum_in(reinterpret_cast<unsigned char*>(memory.data()), s.blocks, static_cast<int>(s.cells()),
                              result.data(), maximum);
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
    const std::int64_t stride = s.width + (seed % 2 == 0 ? 0 : 16);
    RandomRows<Storage> embedding(random, s.pixels, s.width, stride);
    if (s.pixels > 2) embedding.clear_row(1, s.width, stride);
    RandomRows<Real> prototypes(random, s.classes * s.per_class, s.width, s.width);
    if (s.cells() > 3) prototypes.clear_row(2, s.width, s.width);
    const StoredIndices label = random_indices(random, s.pixels, s.classes, s.ignored, s.type);

    std::vector<double> truth(s.scores(), 0.0);
    std::vector<double> reduced(s.cells(), shifted ? 0.0 : double(std::numeric_limits<Real>::lowest()));
    for (std::int64_t n = 0; n < s.pixels; ++n) {
        const int own = label.at(n, s.classes);
        if (own < 0) continue;
        const auto z = unit(&embedding.exact[static_cast<std::size_t>(n * s.width)], s.width);
        for (int k = 0; k < s.per_class; ++k) {
            const int m = own * s.per_class + k;
            const auto p = unit(&prototypes.exact[static_cast<std::size_t>(m * s.width)], s.width);
            double cosine = 0;
            for (int d = 0; d < s.width; ++d) cosine += z[static_cast<std::size_t>(d)] * p[static_cast<std::size_t>(d)];
            truth[static_cast<std::size_t>(n * s.per_class + k)] = cosine / epsilon;
            double& cell = reduced[static_cast<std::size_t>(m)];
            cell = shifted ? cell + std::exp((cosine - 1) / epsilon) : std::max(cell, cosine / epsilon);
        }
    }

    std::vector<Real> first_score, first_reduced;
    for (int at_once : {1, 3}) {
        std::vector<Real> score(s.scores(), poison<Real>), total(s.cells(), poison<Real>);
        Workspace<Real> workspace(s);
        const Kernel kernel{embedding.data.data(),
                            stride,
                            prototypes.data.data(),
                            label.view(),
                            s.pixels,
                            divide_up(s.pixels, s.blocks),
                            s.classes,
                            s.per_class,
                            s.width,
                            static_cast<Real>(1 / epsilon),
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
                                        scores.log_u.data.data(),
                                        scores.total.data.data(),
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
    const SinkhornPick<Real> kernel{
        scores.score.data.data(), scores.label.view(),      s.pixels,         s.classes, s.per_class,
        scores.log_u.data.data(), scores.total.data.data(), assignment.data()};
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

// A barrier of 64 threads costs half a millisecond of processor time, hence few and small shapes: no pixel, one,
// primes, several tiles of 64 in a block, more than 16 blocks (two bundles and more), K above the columns of a turn,
// absent classes.
void test_vectors() {
    const Shape two_tiles{131, 40, 5, 10, 0.3, 2, IndexType::u8};
    const Shape bundles{97, 8, 2, 5, 0.4, 35, IndexType::i64};
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
        {131, 0, 5, 10, 0.3, 2, IndexType::u8}, {97, 0, 2, 5, 0.4, 35, IndexType::i64},
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
    return finish();
}

}  // namespace
}  // namespace mpamatch::cuda

int main() { return mpamatch::cuda::run(); }
