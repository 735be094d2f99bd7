// prototype_distance against double: value, choice, gradients, ties, zero vectors, layout, order of the tasks.
#include "arguments/prototype_distance.h"
#include "fuzz.h"
#include "truth.h"

using namespace test;
using mpamatch::PrototypeDistanceArguments;
using mpamatch::PrototypeDistanceBackwardArguments;

namespace {

// Where the best two cosines of a class are closer than this, either may be chosen.
double near_tie(Element element) { return element == Element::f64 ? 1e-13 : 1e-6; }

void forward(const PixelCase& c, Output& distance, Output& nearest) {
    run_both_ways({&distance, &nearest}, [&](mpamatch::ParallelTasks parallel) {
        run_kernel(PrototypeDistanceArguments{c.pixels(), c.prototypes.data(), c.sizes.c, c.sizes.k, distance.data(),
                                              nearest.as<int32_t>()},
                   parallel);
    });
}

void check_forward(const PixelCase& c, const Cosines& cosines, const Output& distance, const Output& nearest) {
    Values expected;
    for (int64_t i = 0; i < c.sizes.n * c.sizes.c; ++i) {
        const int64_t n = i / c.sizes.c, first = i % c.sizes.c * c.sizes.k, k = nearest.as<int32_t>()[i];
        double best = cosines(n, first);
        for (int64_t other = 1; other < c.sizes.k; ++other) best = std::max(best, cosines(n, first + other));
        expected.push_back(1 - best);
        CHECK(k >= 0 && k < c.sizes.k, "nearest[%ld] is %ld", static_cast<long>(i), static_cast<long>(k));
        if (k < 0 || k >= c.sizes.k) return;
        const double worse = best - cosines(n, first + k);
        CHECK(worse <= near_tie(c.element), "nearest[%ld] is %ld, worse than the best by %g", static_cast<long>(i),
              static_cast<long>(k), worse);
        if (at(cosines.x.length, n) == 0) CHECK(k == 0, "a zero vector chose %ld", static_cast<long>(k));
    }
    check_near(distance, expected, 1);
}

void check_backward(const PixelCase& c, const Cosines& cosines, const Output& distance, const Output& nearest) {
    const Sizes& s = c.sizes;
    Random random(7);
    Values wanted;
    for (int64_t i = 0; i < s.n * s.c; ++i) wanted.push_back(random.normal());
    const Stored grad(working(c.element), wanted);
    Values in_cosines(size(s.n * s.c * s.k));
    for (int64_t i = 0; i < s.n * s.c; ++i) at(in_cosines, i * s.k + nearest.as<int32_t>()[i]) = -at(grad.values, i);
    const Cosines::Gradients truth = cosines.back(in_cosines);

    Output in_embedding("grad_embedding", c.element, s.n * s.d), only_embedding = in_embedding;
    Output in_prototypes("grad_prototypes", working(c.element), s.c * s.k * s.d), only_prototypes = in_prototypes;
    const auto kept = distance.content(), chosen = nearest.content();
    const auto backward = [&](Output* first, Output* second, mpamatch::ParallelTasks parallel) {
        run_kernel(PrototypeDistanceBackwardArguments{grad.data(), c.pixels(), c.prototypes.data(), s.c, s.k,
                                                      kept.data(), as_int32(chosen), first ? first->data() : nullptr,
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
    check_near(in_embedding, truth.embedding, 1);
    check_near(in_prototypes, truth.prototypes, 1);
}

void every_size() {
    for (const Element element : ELEMENTS) {
        uint64_t seed = 0;
        for (const Sizes& sizes : PIXEL_SIZES) {
            const PixelCase c(sizes, element, ++seed);
            const Cosines cosines(c);
            Output distance("distance", working(element), sizes.n * sizes.c);
            Output nearest("nearest", int64_t{4}, sizes.n * sizes.c);
            forward(c, distance, nearest);
            check_forward(c, cosines, distance, nearest);
            check_backward(c, cosines, distance, nearest);
        }
    }
}

void ties_go_to_the_lowest() {
    now("ties");
    for (const Element element : ELEMENTS) {
        Random random(5);
        const int64_t d = 33, k = 13;
        Values prototypes, embedding = vectors(40, d, random);
        const Values two = vectors(2, d, random);
        for (int64_t i = 0; i < 2 * k; ++i)  // the two directions in turn: every choice is a tie of at least six
            prototypes.insert(prototypes.end(), two.begin() + i % 2 * d, two.begin() + (i % 2 + 1) * d);
        const Stored x(element, embedding, 40), p(working(element), prototypes);
        Output distance("distance", working(element), 80), nearest("nearest", int64_t{4}, 80);
        run_both_ways({&distance, &nearest}, [&](auto parallel) {
            run_kernel(
                PrototypeDistanceArguments{
                    {x.data(), element, 40, d, x.stride}, p.data(), 2, k, distance.data(), nearest.as<int32_t>()},
                parallel);
        });
        for (int64_t i = 0; i < 80; ++i)  // class 0 begins with the first direction, class 1 with the second
            CHECK(nearest.as<int32_t>()[i] < 2, "%s: nearest[%ld] is %d", name_of(element), static_cast<long>(i),
                  nearest.as<int32_t>()[i]);
    }
}

void truth_is_true() {
    const PixelCase c({4, 5, 2, 3, 0.0}, Element::f64, 9);
    const Cosines cosines(c);
    Values in_cosines(24);
    for (int64_t i = 0; i < 8; ++i) {
        int64_t best = i * 3;
        for (int64_t m = i * 3; m < i * 3 + 3; ++m) best = at(cosines.s, m) > at(cosines.s, best) ? m : best;
        at(in_cosines, best) = -1 - static_cast<double>(i);
    }
    const auto loss = [&](const Values& x, const Values& p) {
        const Cosines moved(x, p, 4, 6, 5);
        double sum = 0;
        for (size_t i = 0; i < 24; ++i) sum += in_cosines[i] * moved.s[i];
        return sum;
    };
    const Cosines::Gradients grad = cosines.back(in_cosines);
    check_slope("embedding", c.embedding.values, grad.embedding,
                [&](const Values& x) { return loss(x, c.prototypes.values); });
    Values p = c.prototypes.values;
    std::fill_n(p.begin() + 20, 5, 0.3);  // the prototype of no length has no slope
    const Cosines::Gradients again = Cosines(c.embedding.values, p, 4, 6, 5).back(in_cosines);
    check_slope("prototypes", p, again.prototypes, [&](const Values& y) { return loss(c.embedding.values, y); });
}

void random_round(Round& r) {
    const Sizes& s = r.sizes;
    Pair distance("distance", working(r.element), s.n * s.c);
    Pair in_x("distance: grad_embedding", r.element, s.n * s.d),
        in_p("distance: grad_prototypes", working(r.element), s.c * s.k * s.d);
    Output nearest("nearest", int64_t{4}, s.n * s.c);
    const Stored grad(working(r.element), r.numbers(s.n * s.c)), wide_grad = r.wider(grad);
    for (const bool wide : {false, true}) {
        const RoundPixels p(r, wide);
        Output chosen("nearest", int64_t{4}, s.n * s.c), &distances = distance.of(wide), &x = in_x.of(wide),
                                                         &q = in_p.of(wide);
        run_both_ways({&distances, &chosen}, [&](auto parallel) {
            run_kernel(PrototypeDistanceArguments{p.view, p.prototypes.data(), s.c, s.k, distances.data(),
                                                  chosen.as<int32_t>()},
                       parallel);
        });
        for (int64_t i = 0; i < chosen.count; ++i)
            CHECK(chosen.as<int32_t>()[i] >= 0 && chosen.as<int32_t>()[i] < s.k, "nearest %d", chosen.as<int32_t>()[i]);
        if (!wide) nearest = chosen;  // the gradient of one choice for both
        const auto saved = distances.content(), choice = nearest.content();
        run_both_ways({&x, &q}, [&](auto parallel) {
            run_kernel(PrototypeDistanceBackwardArguments{(wide ? wide_grad : grad).data(), p.view, p.prototypes.data(),
                                                          s.c, s.k, saved.data(), as_int32(choice), x.data(), q.data()},
                       parallel);
        });
    }
    check_same(r, distance.ours, distance.wide, 1);
    check_same(r, in_x.ours, in_x.wide, 4 * static_cast<double>(s.c));
    check_same(r, in_p.ours, in_p.wide, 4 * std::sqrt(static_cast<double>(s.n + 1)));
}

}  // namespace

int main() {
    return run([] {
        truth_is_true();
        every_size();
        ties_go_to_the_lowest();
        fuzz(20, random_round);
    });
}
