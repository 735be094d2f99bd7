// The stages of sinkhorn_assign against double, and all of them together against the plan of row and column sums.
#include "arguments/sinkhorn_assign.h"
#include "fuzz.h"
#include "truth.h"

using namespace test;
using mpamatch::SinkhornAssignArguments;
using mpamatch::SinkhornPickArguments;
using mpamatch::SinkhornScoreArguments;
using mpamatch::SinkhornStepArguments;

namespace {

// The stages as the operation runs them; what they leave.
struct Stages {
    Output score, reduced, log_u, total, new_log_u, new_total, assignment;
    explicit Stages(const PixelCase& c)
        : score("score", working(c.element), c.sizes.n * c.sizes.k),
          reduced(pair("reduced", c)),
          log_u(pair("log_u", c)),
          total(pair("total", c)),
          new_log_u(pair("new log_u", c)),
          new_total(pair("new total", c)),
          assignment("assignment", int64_t{4}, c.sizes.n) {}

    void scores(const PixelCase& c, double epsilon, bool shifted) {
        run_both_ways({&score, &reduced}, [&](auto parallel) {
            run_kernel(SinkhornScoreArguments{c.pixels(), c.prototypes.data(), c.sizes.c, c.sizes.k,
                                              c.stored_label.view(), epsilon, shifted, score.data(), reduced.data()},
                       parallel);
        });
    }
    void step(const PixelCase& c, bool rows) {
        const auto scores = score.content(), u = log_u.content(), mass = total.content();
        run_both_ways({&new_log_u, &new_total}, [&](auto parallel) {
            run_kernel(SinkhornStepArguments{scores.data(), working(c.element), c.sizes.n, c.sizes.c, c.sizes.k,
                                             c.stored_label.view(), u.data(), mass.data(), rows, new_log_u.data(),
                                             new_total.data()},
                       parallel);
        });
    }
    void pick(const PixelCase& c) {
        const auto scores = score.content(), u = log_u.content(), mass = total.content();
        run_both_ways({&assignment}, [&](auto parallel) {
            run_kernel(SinkhornPickArguments{scores.data(), working(c.element), c.sizes.n, c.sizes.c, c.sizes.k,
                                             c.stored_label.view(), u.data(), mass.data(), assignment.as<int32_t>()},
                       parallel);
        });
    }

  private:
    static Output pair(const char* name, const PixelCase& c) {
        return {name, working(c.element), c.sizes.c * c.sizes.k};
    }
};

Values values_of(const Output& output) {
    Values values;
    for (int64_t i = 0; i < output.count; ++i) values.push_back(output[i]);
    return values;
}

void check_scores(const PixelCase& c, const Cosines& cosines, Stages& stages, double epsilon, bool shifted) {
    const Sizes& s = c.sizes;
    stages.scores(c, epsilon, shifted);
    Values score(size(s.n * s.k)), sums(size(s.c * s.k)), highest(size(s.c * s.k));
    const double lowest = c.element == Element::f64 ? -std::numeric_limits<double>::max()
                                                    : -static_cast<double>(std::numeric_limits<float>::max());
    std::fill(highest.begin(), highest.end(), lowest);
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t k = 0; at(c.label, n) >= 0 && k < s.k; ++k) {
            const int64_t m = at(c.label, n) * s.k + k;
            const double value = at(score, n * s.k + k) = cosines(n, m) / epsilon;
            at(sums, m) += std::exp(value - 1 / epsilon);
            at(highest, m) = std::max(at(highest, m), value);
        }
    check_near(stages.score, score, 1 / epsilon);
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t k = 0; at(c.label, n) < 0 && k < s.k; ++k)
            CHECK(stages.score[n * s.k + k] == 0, "score of ignored pixel %ld", static_cast<long>(n));
    for (int64_t m = 0; m < s.c * s.k; ++m) {
        if (shifted) {  // an error of a score is one of a factor here
            const double error = std::fabs(stages.reduced[m] - at(sums, m));
            CHECK(error <= 10 / epsilon * tolerance(working(c.element)) * at(sums, m),
                  "reduced[%ld] is %.9g, expected %.9g", static_cast<long>(m), stages.reduced[m], at(sums, m));
        } else {
            const bool empty = at(highest, m) == lowest;
            const double error = std::fabs(stages.reduced[m] - at(highest, m));
            CHECK(empty ? error == 0 : error <= tolerance(working(c.element)) / epsilon,
                  "maximum[%ld] is %.9g, expected %.9g", static_cast<long>(m), stages.reduced[m], at(highest, m));
        }
    }
}

// One step and one pick from any log_u and total, on the scores that are there.
void check_step(const PixelCase& c, Stages& stages, bool rows, Random& random) {
    const Sizes& s = c.sizes;
    Values log_u, total;
    for (int64_t i = 0; i < s.c * s.k; ++i) {
        log_u.push_back(rows ? 3 * random.normal() : -60 - random.uniform());
        total.push_back(i % 5 == 3 ? 0 : 0.01 + 20 * random.uniform());
    }
    stages.log_u.fill(log_u), stages.total.fill(total);
    log_u = values_of(stages.log_u), total = values_of(stages.total);
    const Values score = values_of(stages.score);
    Values sums(size(s.c * s.k));
    for (int64_t i = 0; i < s.c * s.k; ++i) at(log_u, i) -= at(total, i) > 0 ? std::log(at(total, i)) : 0;
    stages.pick(c);
    for (int64_t n = 0; n < s.n; ++n) {
        const int64_t own = at(c.label, n), chosen = stages.assignment.as<int32_t>()[n];
        CHECK(own < 0 ? chosen == -1 : chosen / s.k == own && chosen >= 0, "assignment[%ld] is %ld, label %ld",
              static_cast<long>(n), static_cast<long>(chosen), static_cast<long>(own));
        if (own < 0 || chosen < 0 || chosen / s.k != own) continue;
        double highest = -1e300, mass = 0;
        for (int64_t k = 0; k < s.k; ++k)
            highest = std::max(highest, at(score, n * s.k + k) + at(log_u, own * s.k + k));
        const double ours = at(score, n * s.k + chosen % s.k) + at(log_u, chosen);
        CHECK(highest - ours <= 10 * tolerance(working(c.element)), "assignment[%ld] is worse by %g than the best",
              static_cast<long>(n), highest - ours);
        for (int64_t k = 0; k < s.k; ++k) mass += std::exp(at(score, n * s.k + k) + at(log_u, own * s.k + k) - highest);
        for (int64_t k = 0; k < s.k; ++k)
            at(sums, own * s.k + k) +=
                std::exp(at(score, n * s.k + k) + at(log_u, own * s.k + k) - (rows ? highest : 0)) / (rows ? mass : 1);
    }
    most_tasks = 0;
    stages.step(c, rows);
    if (s.n > 4096) CHECK(most_tasks > 1, "no second slot, so their sum is not tested");
    check_near(stages.new_log_u, log_u, 1);
    check_near(stages.new_total, sums, 1e-30, 10);  // exp is 0 where it would leave the normal numbers of float
}

void every_size() {
    for (const Element element : ELEMENTS) {
        uint64_t seed = 40;
        for (const Sizes& sizes : PIXEL_SIZES) {
            const PixelCase c(sizes, element, ++seed);
            const Cosines cosines(c);
            Stages stages(c);
            Random random(seed);
            for (const bool shifted : {true, false}) {
                check_scores(c, cosines, stages, shifted ? 0.05 : 0.01, shifted);
                check_step(c, stages, shifted, random);
            }
        }
    }
}

// The plan of one class: rows and columns normalised in turn, as published.
Values plan_of(const Values& score, int64_t pixels, int64_t per_class, int iterations) {
    Values plan = score;
    for (double& value : plan) value = std::exp(value);
    const auto normalise = [&](int64_t outer, int64_t inner, int64_t outer_stride, int64_t inner_stride) {
        for (int64_t i = 0; i < outer; ++i) {
            double sum = 0;
            for (int64_t j = 0; j < inner; ++j) sum += at(plan, i * outer_stride + j * inner_stride);
            for (int64_t j = 0; j < inner; ++j)
                at(plan, i * outer_stride + j * inner_stride) /= sum * static_cast<double>(outer);
        }
    };
    for (int i = 0; i < iterations; ++i)
        normalise(per_class, pixels, 1, per_class), normalise(pixels, per_class, per_class, 1);
    return plan;
}

void check_against_the_plan(Element element, double epsilon, int iterations) {
    const PixelCase c({211, 8, 3, 5, 0.2}, element, 5);
    now("%s: plan, epsilon %g, iterations %d", name_of(element), epsilon, iterations);
    Stages stages(c);
    const bool shifted = epsilon >= 0.025;
    stages.scores(c, epsilon, shifted);
    stages.log_u.fill(Values(15, 0.0));
    stages.total.fill(shifted ? values_of(stages.reduced) : Values(15, 1.0));
    const auto advance = [&](bool rows) {
        stages.step(c, rows);
        stages.log_u.fill(values_of(stages.new_log_u)), stages.total.fill(values_of(stages.new_total));
    };
    if (!shifted) {
        Values start = values_of(stages.reduced);
        for (double& value : start) value = -value;
        stages.log_u.fill(start);
        advance(false);
    }
    for (int i = 1; i < iterations; ++i) advance(true);
    stages.pick(c);
    Output whole("whole", int64_t{4}, c.sizes.n);
    run_both_ways({&whole}, [&](auto parallel) {
        run_kernel(SinkhornAssignArguments{c.pixels(), c.prototypes.data(), c.sizes.c, c.sizes.k, c.stored_label.view(),
                                           epsilon, iterations, shifted, whole.as<int32_t>()},
                   parallel);
    });
    for (int64_t n = 0; n < c.sizes.n; ++n)
        CHECK(whole.as<int32_t>()[n] == stages.assignment.as<int32_t>()[n], "pixel %ld: not what the stages choose",
              static_cast<long>(n));

    const Cosines cosines(c);
    for (int64_t own = 0; own < 3; ++own) {
        Values score;
        Whole rows;
        for (int64_t n = 0; n < 211; ++n)
            if (at(c.label, n) == own) rows.push_back(n);
        for (const int64_t n : rows)
            for (int64_t k = 0; k < 5; ++k) score.push_back(cosines(n, own * 5 + k) / epsilon);
        const Values plan = plan_of(score, static_cast<int64_t>(rows.size()), 5, iterations);
        for (size_t i = 0; i < rows.size(); ++i) {
            const int64_t k = stages.assignment.as<int32_t>()[at(rows, static_cast<int64_t>(i))] - own * 5;
            const double best = *std::max_element(plan.begin() + static_cast<int64_t>(i) * 5,
                                                  plan.begin() + static_cast<int64_t>(i) * 5 + 5);
            CHECK(k >= 0 && k < 5 && std::log(best / at(plan, static_cast<int64_t>(i) * 5 + k)) < 1e-4,
                  "pixel %ld chose %ld, which is not the best", static_cast<long>(rows[i]), static_cast<long>(k));
        }
    }
}

void ties_go_to_the_lowest() {
    now("ties");
    const PixelCase c({70, 6, 2, 9, 0.2}, Element::f32, 4);
    Stages stages(c);
    stages.score.fill(Values(70 * 9, 0.25));
    stages.log_u.fill(Values(18, -1)), stages.total.fill(Values(18, 1));
    stages.pick(c);
    for (int64_t n = 0; n < 70; ++n)
        CHECK(stages.assignment.as<int32_t>()[n] == (at(c.label, n) < 0 ? -1 : at(c.label, n) * 9), "pixel %ld",
              static_cast<long>(n));
}

void random_round(Round& r) {
    const Sizes& s = r.sizes;
    const bool shifted = r.random.chance(0.5), rows = r.random.chance(0.7);
    const double epsilon = shifted ? 0.05 : 0.01;
    const StoredIndices label = r.draw_indices(s.n, s.c);
    Pair score("score", working(r.element), s.n * s.k), log_u("new log_u", working(r.element), s.c * s.k);
    for (const bool wide : {false, true}) {
        const RoundPixels p(r, wide);
        const Element element = working(p.element);
        Output &scores = score.of(wide), reduced("reduced", element, s.c * s.k), &next = log_u.of(wide);
        Output total("new total", element, s.c * s.k), assignment("assignment", int64_t{4}, s.n);
        const Stored start(element, Values(size_t(s.c * s.k), -1 / epsilon));
        run_both_ways({&scores, &reduced}, [&](auto parallel) {
            run_kernel(SinkhornScoreArguments{p.view, p.prototypes.data(), s.c, s.k, label.view(), epsilon, shifted,
                                              scores.data(), reduced.data()},
                       parallel);
        });
        const auto given = scores.content(), first = reduced.content();
        run_both_ways({&next, &total}, [&](auto parallel) {
            run_kernel(SinkhornStepArguments{given.data(), element, s.n, s.c, s.k, label.view(), start.data(),
                                             first.data(), rows, next.data(), total.data()},
                       parallel);
        });
        const auto u = next.content(), mass = total.content();
        run_both_ways({&assignment}, [&](auto parallel) {
            run_kernel(SinkhornPickArguments{given.data(), element, s.n, s.c, s.k, label.view(), u.data(), mass.data(),
                                             assignment.as<int32_t>()},
                       parallel);
        });
        for (int64_t i = 0; i < s.n; ++i) {
            const int64_t own = r.indices[size_t(i)], chosen = assignment.as<int32_t>()[i];
            const bool used = own >= 0 && own < s.c && !(r.index_type == IndexType::u8 && own == 255);
            CHECK(used ? chosen / s.k == own : chosen == -1, "label %ld, assignment %ld", static_cast<long>(own),
                  static_cast<long>(chosen));
        }
    }
    check_same(r, score.ours, score.wide, 1 / epsilon);
}

}  // namespace

int main() {
    return run([] {
        every_size();
        for (const Element element : ELEMENTS)
            for (const double epsilon : {0.01, 0.025, 0.05, 1.0})
                for (const int iterations : {1, 2, 3, 10}) check_against_the_plan(element, epsilon, iterations);
        ties_go_to_the_lowest();
        fuzz(22, random_round);
    });
}
