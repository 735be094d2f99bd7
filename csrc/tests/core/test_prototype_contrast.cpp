// prototype_contrast against double: both sums, lse, both gradients, with and without negatives of the own class.
#include "arguments/prototype_contrast.h"
#include "fuzz.h"
#include "truth.h"

using namespace test;
using mpamatch::PrototypeContrastArguments;
using mpamatch::PrototypeContrastBackwardArguments;

namespace {

struct Options {
    double temperature;
    bool weighted, same_class_negatives;
    double g1, g2;
};

void check(const PixelCase& c, const Cosines& cosines, const Options& o) {
    const Sizes& s = c.sizes;
    const Element work = working(c.element);
    now("%s, temperature %g, weighted %d, same class %d", situation.substr(0, situation.find(',')).c_str(),
        o.temperature, o.weighted, o.same_class_negatives);
    const Stored g1(work, {o.g1}), g2(work, {o.g2});
    const void* weight = o.weighted ? c.weight.data() : nullptr;
    const ContrastTruth truth(cosines, c.assignment, o.weighted ? &c.weight.values : nullptr, s.k, o.temperature,
                              o.same_class_negatives, g1.values[0], g2.values[0]);
    const double used = static_cast<double>(std::max<int64_t>(s.n, 1)), steep = 1 / o.temperature;
    const double in_cosine = steep * std::max(1.0, std::fabs(o.g1));  // the size of the gradient in a cosine

    Output contrast("contrast", work, 1), alignment("alignment", work, 1), lse("lse", work, s.n);
    run_both_ways({&contrast, &alignment, &lse}, [&](auto parallel) {
        run_kernel(PrototypeContrastArguments{c.pixels(), c.prototypes.data(), s.c, s.k, c.stored_assignment.view(),
                                              weight, o.temperature, o.same_class_negatives, contrast.data(),
                                              alignment.data(), lse.data()},
                   parallel);
    });
    check_near(contrast, {truth.contrast}, used * std::max(1.0, 0.1 * steep));
    check_near(alignment, {truth.alignment}, used);
    check_near(lse, truth.lse, std::max(1.0, 0.1 * steep));
    if (s.c * s.k == 1) CHECK(contrast[0] == 0, "one prototype alone has contrast %g", contrast[0]);

    const Cosines::Gradients grad = cosines.back(truth.in_cosines);
    Output in_embedding("grad_embedding", c.element, s.n * s.d), only_embedding = in_embedding;
    Output in_prototypes("grad_prototypes", work, s.c * s.k * s.d), only_prototypes = in_prototypes;
    const auto kept = lse.content();
    const auto backward = [&](Output* first, Output* second, mpamatch::ParallelTasks parallel) {
        run_kernel(PrototypeContrastBackwardArguments{g1.data(), g2.data(), c.pixels(), c.prototypes.data(), s.c, s.k,
                                                      c.stored_assignment.view(), weight, kept.data(), o.temperature,
                                                      o.same_class_negatives, first ? first->data() : nullptr,
                                                      second ? second->data() : nullptr},
                   parallel);
    };
    most_tasks = 0;
    run_both_ways({&in_embedding, &in_prototypes},
                  [&](auto parallel) { backward(&in_embedding, &in_prototypes, parallel); });
    if (s.n > 4096) CHECK(most_tasks > 1, "no second slot, so their sum is not tested");
    run_both_ways({&only_embedding}, [&](auto parallel) { backward(&only_embedding, nullptr, parallel); });
    run_both_ways({&only_prototypes}, [&](auto parallel) { backward(nullptr, &only_prototypes, parallel); });
    CHECK(only_embedding.content() == in_embedding.content(), "grad_embedding alone has other bits");
    CHECK(only_prototypes.content() == in_prototypes.content(), "grad_prototypes alone has other bits");
    check_near(in_embedding, grad.embedding, in_cosine);
    check_near(in_prototypes, grad.prototypes, in_cosine * std::sqrt(used));
    for (int64_t n = 0; n < s.n; ++n) {
        if (at(c.assignment, n) >= 0 && !(o.weighted && at(c.weight.values, n) == 0)) continue;
        for (int64_t d = 0; d < s.d; ++d)
            CHECK(in_embedding[n * s.d + d] == 0, "pixel %ld counts for nothing, yet has a gradient",
                  static_cast<long>(n));
    }
}

constexpr Options OPTIONS[] = {
    {0.1, true, true, 1, 1}, {0.1, false, false, -0.5, 3}, {0.05, true, false, 1, 0},
    {1, false, true, 0, 1},  {0.01, true, true, 30, 1},
};

void every_size() {
    for (const Element element : ELEMENTS) {
        uint64_t seed = 0;
        for (const Sizes& sizes : PIXEL_SIZES) {
            const PixelCase c(sizes, element, ++seed);
            const Cosines cosines(c);
            check(c, cosines, OPTIONS[seed % 5]);
            if (sizes.n < 200) check(c, cosines, OPTIONS[(seed + 2) % 5]);
        }
    }
}

void truth_is_true() {
    for (const bool same_class_negatives : {true, false}) {
        const PixelCase c({5, 4, 2, 2, 0.2}, Element::f64, 3);
        Values p = c.prototypes.values, x = c.embedding.values;
        std::fill_n(p.begin() + 8, 4, 0.3);  // vectors of no length have no slope
        std::fill_n(x.begin() + 4, 4, -0.2);
        std::fill_n(x.begin() + 16, 4, 0.7);
        const auto truth = [&](const Cosines& cosines) {
            return ContrastTruth(cosines, c.assignment, &c.weight.values, 2, 0.3, same_class_negatives, 0.7, 2);
        };
        const auto loss = [&](const Values& embedding, const Values& prototypes) {
            const ContrastTruth t = truth(Cosines(embedding, prototypes, 5, 4, 4));
            return 0.7 * t.contrast + 2 * t.alignment;
        };
        const Cosines cosines(x, p, 5, 4, 4);
        const Cosines::Gradients grad = cosines.back(truth(cosines).in_cosines);
        check_slope("embedding", x, grad.embedding, [&](const Values& y) { return loss(y, p); });
        check_slope("prototypes", p, grad.prototypes, [&](const Values& y) { return loss(x, y); });
    }
}

void random_round(Round& r) {
    const Sizes& s = r.sizes;
    const double n = static_cast<double>(s.n + 1), temperature = r.random.one_of({0.05, 0.1, 1.0});
    const bool same_class = r.random.chance(0.5), weighted = r.random.chance(0.5);
    const StoredIndices assignment = r.draw_indices(s.n, s.c * s.k);
    Pair contrast("contrast", working(r.element), 1), alignment("alignment", working(r.element), 1),
        lse("lse", working(r.element), s.n);
    Pair in_x("contrast: grad_embedding", r.element, s.n * s.d),
        in_p("contrast: grad_prototypes", working(r.element), s.c * s.k * s.d);
    for (const bool wide : {false, true}) {
        const RoundPixels p(r, wide);
        const Stored g(working(p.element), {0.75}), h(working(p.element), {-2});
        const void* weight = weighted ? p.weight.data() : nullptr;
        Output &sum = contrast.of(wide), &pull = alignment.of(wide), &kept = lse.of(wide), &x = in_x.of(wide),
               &q = in_p.of(wide);
        run_both_ways({&sum, &pull, &kept}, [&](auto parallel) {
            run_kernel(PrototypeContrastArguments{p.view, p.prototypes.data(), s.c, s.k, assignment.view(), weight,
                                                  temperature, same_class, sum.data(), pull.data(), kept.data()},
                       parallel);
        });
        const auto saved = kept.content();
        run_both_ways({&x, &q}, [&](auto parallel) {
            run_kernel(PrototypeContrastBackwardArguments{g.data(), h.data(), p.view, p.prototypes.data(), s.c, s.k,
                                                          assignment.view(), weight, saved.data(), temperature,
                                                          same_class, x.data(), q.data()},
                       parallel);
        });
    }
    check_same(r, contrast.ours, contrast.wide, n);
    check_same(r, alignment.ours, alignment.wide, n);
    check_same(r, lse.ours, lse.wide, 10);
    check_same(r, in_x.ours, in_x.wide, 4 / temperature);
    check_same(r, in_p.ours, in_p.wide, 4 / temperature * std::sqrt(n));
}

}  // namespace

int main() {
    return run([] {
        truth_is_true();
        every_size();
        fuzz(21, random_round);
    });
}
