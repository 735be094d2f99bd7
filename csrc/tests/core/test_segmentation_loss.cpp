// segmentation_loss against double: cross entropy, overlap, the gradient from both, extreme logits.
#include "arguments/segmentation_loss.h"
#include "fuzz.h"
#include "truth.h"

using namespace test;
using mpamatch::SegmentationLossArguments;
using mpamatch::SegmentationLossBackwardArguments;

namespace {

struct Sums {
    Output cross_entropy, overlap, grad;
    Sums(const MapCase& c, const Values& in_overlap, double in_entropy, bool weighted)
        : cross_entropy("cross_entropy", working(c.element), 1),
          overlap("overlap", working(c.element), 3 * c.sizes.classes),
          grad("grad_logits", c.element, c.sizes.batch * c.sizes.classes * c.sizes.pixels) {
        const Stored g(working(c.element), {in_entropy}), g_overlap(working(c.element), in_overlap);
        const void* weight = weighted ? c.weight.data() : nullptr;
        most_tasks = 0;
        run_both_ways({&cross_entropy, &overlap}, [&](auto parallel) {
            run_kernel(SegmentationLossArguments{c.view(), c.stored_label.view(), weight, cross_entropy.data(),
                                                 overlap.data()},
                       parallel);
        });
        if (c.sizes.batch * c.sizes.pixels > 4096) CHECK(most_tasks > 1, "no second slot, so their sum is not tested");
        run_both_ways({&grad}, [&](auto parallel) {
            run_kernel(SegmentationLossBackwardArguments{g.data(), g_overlap.data(), c.view(), c.stored_label.view(),
                                                         weight, grad.data()},
                       parallel);
        });
    }
};

Values ramp(int64_t classes) {
    Values values;
    for (int64_t i = 0; i < 3 * classes; ++i)
        values.push_back(static_cast<double>(i) / static_cast<double>(classes) - 1.25);
    return values;
}

SegmentationTruth truth_of(const MapCase& c, const Values& logits, const Values& in_overlap, double in_entropy,
                           bool weighted) {
    return {logits,        c.label,         weighted ? &c.weight.values : nullptr,
            c.sizes.batch, c.sizes.classes, c.sizes.pixels,
            in_entropy,    in_overlap};
}

void check(const MapCase& c, double in_entropy, bool weighted) {
    const Stored in_overlap(working(c.element), ramp(c.sizes.classes));
    const Sums ours(c, in_overlap.values, in_entropy, weighted);
    const SegmentationTruth truth = truth_of(c, c.logits.values, in_overlap.values, in_entropy, weighted);
    check_near(ours.cross_entropy, {truth.cross_entropy}, 1);
    check_near(ours.overlap, truth.overlap, 1);
    check_near(ours.grad, truth.grad, 1);
    for (int64_t n = 0; n < c.sizes.batch * c.sizes.pixels; ++n) {
        if (at(c.label, n) >= 0 && !(weighted && at(c.weight.values, n) == 0)) continue;
        for (int64_t k = 0; k < c.sizes.classes; ++k)
            CHECK(ours.grad[(n / c.sizes.pixels * c.sizes.classes + k) * c.sizes.pixels + n % c.sizes.pixels] == 0,
                  "pixel %ld counts for nothing, yet has a gradient", static_cast<long>(n));
    }
}

void every_size() {
    for (const Element element : ELEMENTS) {
        uint64_t seed = 60;
        for (const MapSizes& sizes : MAP_SIZES) {
            const MapCase c(sizes, element, ++seed);
            check(c, 1, true);
            check(c, -2.5, false);
        }
    }
}

// Networks add constants to all logits of a pixel at will: that must cost no more digits than the logits themselves
// have.
void raised_logits() {
    for (const Element element : {Element::f64, Element::f32})
        for (const double raised : {-3000.0, 1000.0, 10000.0})
            check(MapCase({2, 4, 33, 0.2, false, raised}, element, 77), 1, true);
}

void huge_logits() {
    now("huge logits");
    for (const double huge : {1e4, 3e38}) {
        MapCase c({1, 2, 2, 0.0}, Element::f32, 1);
        c.logits = Stored(Element::f32, {0, huge, huge, 0});
        c.label = {0, 0};
        c.stored_label = StoredIndices(c.index_type, c.label);
        const Sums ours(c, Values(6, 1.0), 1, false);
        check_near(ours.cross_entropy, {static_cast<double>(static_cast<float>(huge))});
        check_near(ours.overlap, {1, 0, 1, 1, 2, 0});
        check_near(ours.grad, {-1, 0, 1, 0}, 1);
    }
}

void truth_is_true() {
    const MapCase c({2, 3, 4}, Element::f64, 8);
    const Values in_overlap = ramp(3);
    check_slope("logits", c.logits.values, truth_of(c, c.logits.values, in_overlap, 0.7, true).grad,
                [&](const Values& x) {
                    const SegmentationTruth t = truth_of(c, x, in_overlap, 0.7, true);
                    double sum = 0.7 * t.cross_entropy;
                    for (size_t i = 0; i < 9; ++i) sum += in_overlap[i] * t.overlap[i];
                    return sum;
                });
}

void random_round(Round& r) {
    const RoundMaps maps(r);
    const int64_t classes = maps.classes;
    Pair entropy("cross_entropy", working(r.element), 1), overlap("overlap", working(r.element), 3 * classes),
        grad("grad_logits", r.element, maps.count() * classes);
    Values drawn;
    for (int64_t i = 0; i < 3 * classes; ++i) drawn.push_back(r.random.normal());
    const Values in_overlap = Stored(Element::f32, drawn).values;
    for (const bool wide : {false, true}) {
        const Element element = wide ? Element::f64 : working(r.element);
        const Stored g(element, {0.75}), g_overlap(element, in_overlap);
        Output &sum = entropy.of(wide), &shared = overlap.of(wide), &x = grad.of(wide);
        run_both_ways({&sum, &shared}, [&](auto parallel) {
            run_kernel(SegmentationLossArguments{maps.view(wide), maps.label.view(), maps.weights(wide), sum.data(),
                                                 shared.data()},
                       parallel);
        });
        run_both_ways({&x}, [&](auto parallel) {
            run_kernel(SegmentationLossBackwardArguments{g.data(), g_overlap.data(), maps.view(wide), maps.label.view(),
                                                         maps.weights(wide), x.data()},
                       parallel);
        });
    }
    check_same(r, entropy.ours, entropy.wide, static_cast<double>(maps.count() + 1));
    check_same(r, overlap.ours, overlap.wide, 1);
    check_same(r, grad.ours, grad.wide, 1);
}

}  // namespace

int main() {
    return run([] {
        truth_is_true();
        every_size();
        raised_logits();
        huge_logits();
        fuzz(24, random_round);
    });
}
