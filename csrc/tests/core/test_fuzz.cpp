// All operations on random sizes, storages, strides and alignments, in memory that ends with the last number: for the
// sanitizers. What can be said without a second truth is checked too: nothing outside the outputs is written, threads
// change no bit, and the same numbers stored as double give the same results. Every third round has wild numbers
// (infinities, NaN, any bits) and indices, which may give any result but must stay inside.
#include "cases.h"
#include "runners.h"

using namespace test;
using mpamatch::kernels;

namespace {

constexpr int ROUNDS = 800, AREAS = 160;

struct Round {
    Random& random;
    bool wild;
    Sizes sizes;
    Element element;
    Stored embedding, prototypes, weight;
    Whole indices;
    IndexType index_type;

    Round(Random& r, bool w)
        : random(r),
          wild(w),
          sizes(draw_sizes(r)),
          element(r.one_of({Element::f64, Element::f32, Element::f16, Element::bf16})),
          embedding(element, numbers(sizes.n * sizes.d), sizes.n, sizes.gap, sizes.offset),
          prototypes(working(element), numbers(sizes.c * sizes.k * sizes.d), 1, 0, sizes.offset),
          weight(working(element), weights(sizes.n), 1, 0, sizes.offset),
          index_type(r.one_of({IndexType::u8, IndexType::i32, IndexType::i64})) {}

    static Sizes draw_sizes(Random& r) {
        Sizes s{r.one_of<int64_t>({0, 1, 2, 3, 63, 64, 65, 127, 193, 600, 2100, 4200}),
                r.one_of<int64_t>({1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 100, 257, 768}),
                1 + r.below(r.chance(0.2) ? 30 : 5), 1 + r.below(r.chance(0.2) ? 40 : 12)};
        while (s.n * s.d * s.c * s.k > 1500000) s.n /= 2, s.k = (s.k + 1) / 2;
        s.gap = r.chance(0.5) ? r.below(9) : 0, s.offset = r.below(3);
        return s;
    }
    Values numbers(int64_t count) {
        Values values;
        for (int64_t i = 0; i < count; ++i) values.push_back(wild && random.chance(0.05) ? any() : random.normal());
        if (count > sizes.d && random.chance(0.5)) std::fill_n(values.begin(), sizes.d, 0.0);
        return values;
    }
    double any() {
        return random.one_of({NaN, HUGE_VAL, -HUGE_VAL, 1e300, -1e38, 3e38, 65504.0, 1e-7, 1e-40, -0.0,
                              std::ldexp(random.normal(), static_cast<int>(random.below(2000)) - 1000)});
    }
    Values weights(int64_t count) {
        Values values;
        for (int64_t i = 0; i < count; ++i)
            values.push_back(wild && random.chance(0.05) ? any() : random.chance(0.3) ? 0 : random.uniform());
        return values;
    }
    StoredIndices draw_indices(int64_t count, int64_t limit) {
        indices.clear();
        const double ignored = random.one_of({0.0, 0.3, 1.0});
        for (int64_t i = 0; i < count; ++i)
            indices.push_back(random.chance(ignored) || (index_type == IndexType::u8 && limit > 255)
                                  ? outside(index_type, limit, random)
                                  : random.below(limit));
        return {index_type, indices};
    }
    // The same numbers as double.
    Stored wider(const Stored& numbers) const { return {Element::f64, numbers.values}; }
};

// The pixels of a round as they are stored, or as double.
struct Pixels {
    Element element;
    mpamatch::Pixels view;
    Stored wide_embedding, prototypes, weight;
    Pixels(const Round& r, bool wide)
        : element(wide ? Element::f64 : r.element),
          view{r.embedding.data(), r.element, r.sizes.n, r.sizes.d, r.embedding.stride},
          wide_embedding(Element::f64, r.embedding.values),
          prototypes(wide ? r.wider(r.prototypes) : r.prototypes),
          weight(wide ? r.wider(r.weight) : r.weight) {
        if (wide) view = {wide_embedding.data(), Element::f64, r.sizes.n, r.sizes.d, r.sizes.d};
    }
    Pixels(const Pixels&) = delete;
};

void check_same(const Round& r, const Output& ours, const Output& wide, double size) {
    if (r.wild) return;
    Values truth;
    for (int64_t i = 0; i < wide.count; ++i) truth.push_back(wide[i]);
    check_near(ours, truth, size, 5);
}

struct Pair {  // an output of both
    Output ours, wide;
    Pair(const char* name, Element element, int64_t count)
        : ours(name, element, count), wide(name, Element::f64, count) {}
    Output& of(bool is_wide) { return is_wide ? wide : ours; }
};

void distance(Round& r) {
    const Sizes& s = r.sizes;
    Pair distance("distance", working(r.element), s.n * s.c);
    Pair in_x("distance: grad_embedding", r.element, s.n * s.d),
        in_p("distance: grad_prototypes", working(r.element), s.c * s.k * s.d);
    Output nearest("nearest", int64_t{4}, s.n * s.c);
    const Stored grad(working(r.element), r.numbers(s.n * s.c)), wide_grad = r.wider(grad);
    for (const bool wide : {false, true}) {
        const Pixels p(r, wide);
        Output chosen("nearest", int64_t{4}, s.n * s.c), &distances = distance.of(wide), &x = in_x.of(wide),
                                                         &q = in_p.of(wide);
        run_both_ways({&distances, &chosen}, [&](auto parallel) {
            kernels().prototype_distance(
                {p.view, p.prototypes.data(), s.c, s.k, distances.data(), chosen.as<int32_t>(), parallel});
        });
        for (int64_t i = 0; i < chosen.count; ++i)
            CHECK(chosen.as<int32_t>()[i] >= 0 && chosen.as<int32_t>()[i] < s.k, "nearest %d", chosen.as<int32_t>()[i]);
        if (!wide) nearest = chosen;  // the gradient of one choice for both
        const auto saved = distances.content(), choice = nearest.content();
        run_both_ways({&x, &q}, [&](auto parallel) {
            kernels().prototype_distance_backward({(wide ? wide_grad : grad).data(), p.view, p.prototypes.data(), s.c,
                                                   s.k, saved.data(), as_int32(choice), x.data(), q.data(), parallel});
        });
    }
    check_same(r, distance.ours, distance.wide, 1);
    check_same(r, in_x.ours, in_x.wide, 4 * static_cast<double>(s.c));
    check_same(r, in_p.ours, in_p.wide, 4 * std::sqrt(static_cast<double>(s.n + 1)));
}

void contrast(Round& r) {
    const Sizes& s = r.sizes;
    const double n = static_cast<double>(s.n + 1), temperature = r.random.one_of({0.05, 0.1, 1.0});
    const bool same_class = r.random.chance(0.5), weighted = r.random.chance(0.5);
    const StoredIndices assignment = r.draw_indices(s.n, s.c * s.k);
    Pair contrast("contrast", working(r.element), 1), alignment("alignment", working(r.element), 1),
        lse("lse", working(r.element), s.n);
    Pair in_x("contrast: grad_embedding", r.element, s.n * s.d),
        in_p("contrast: grad_prototypes", working(r.element), s.c * s.k * s.d);
    for (const bool wide : {false, true}) {
        const Pixels p(r, wide);
        const Stored g(working(p.element), {0.75}), h(working(p.element), {-2});
        const void* weight = weighted ? p.weight.data() : nullptr;
        Output &sum = contrast.of(wide), &pull = alignment.of(wide), &kept = lse.of(wide), &x = in_x.of(wide),
               &q = in_p.of(wide);
        run_both_ways({&sum, &pull, &kept}, [&](auto parallel) {
            kernels().prototype_contrast({p.view, p.prototypes.data(), s.c, s.k, assignment.view(), weight, temperature,
                                          same_class, sum.data(), pull.data(), kept.data(), parallel});
        });
        const auto saved = kept.content();
        run_both_ways({&x, &q}, [&](auto parallel) {
            kernels().prototype_contrast_backward({g.data(), h.data(), p.view, p.prototypes.data(), s.c, s.k,
                                                   assignment.view(), weight, saved.data(), temperature, same_class,
                                                   x.data(), q.data(), parallel});
        });
    }
    check_same(r, contrast.ours, contrast.wide, n);
    check_same(r, alignment.ours, alignment.wide, n);
    check_same(r, lse.ours, lse.wide, 10);
    check_same(r, in_x.ours, in_x.wide, 4 / temperature);
    check_same(r, in_p.ours, in_p.wide, 4 / temperature * std::sqrt(n));
}

void sinkhorn(Round& r) {
    const Sizes& s = r.sizes;
    const bool shifted = r.random.chance(0.5), rows = r.random.chance(0.7);
    const double epsilon = shifted ? 0.05 : 0.01;
    const StoredIndices label = r.draw_indices(s.n, s.c);
    Pair score("score", working(r.element), s.n * s.k), log_u("new log_u", working(r.element), s.c * s.k);
    for (const bool wide : {false, true}) {
        const Pixels p(r, wide);
        const Element element = working(p.element);
        Output &scores = score.of(wide), reduced("reduced", element, s.c * s.k), &next = log_u.of(wide);
        Output total("new total", element, s.c * s.k), assignment("assignment", int64_t{4}, s.n);
        const Stored start(element, Values(size_t(s.c * s.k), -1 / epsilon));
        run_both_ways({&scores, &reduced}, [&](auto parallel) {
            kernels().sinkhorn_score({p.view, p.prototypes.data(), s.c, s.k, label.view(), epsilon, shifted,
                                      scores.data(), reduced.data(), parallel});
        });
        const auto given = scores.content(), first = reduced.content();
        run_both_ways({&next, &total}, [&](auto parallel) {
            kernels().sinkhorn_step({given.data(), element, s.n, s.c, s.k, label.view(), start.data(), first.data(),
                                     rows, next.data(), total.data(), parallel});
        });
        const auto u = next.content(), mass = total.content();
        run_both_ways({&assignment}, [&](auto parallel) {
            kernels().sinkhorn_pick({given.data(), element, s.n, s.c, s.k, label.view(), u.data(), mass.data(),
                                     assignment.as<int32_t>(), parallel});
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

void update(Round& r) {
    const Sizes& s = r.sizes;
    const bool weighted = r.random.chance(0.5);
    const StoredIndices assignment = r.draw_indices(s.n, s.c * s.k);
    Pair total("total", working(r.element), s.c * s.k * s.d);
    for (const bool wide : {false, true}) {
        const Pixels p(r, wide);
        Output& sums = total.of(wide);
        run_both_ways({&sums}, [&](auto parallel) {
            kernels().prototype_sum(
                {p.view, assignment.view(), weighted ? p.weight.data() : nullptr, s.c * s.k, sums.data(), parallel});
        });
        Output moved("prototypes", working(p.element), s.c * s.k * s.d), updates("updates", int64_t{8}, s.c * s.k);
        moved.fill(p.prototypes.values);
        updates.poison(0);
        kernels().prototype_move_(
            {moved.data(), updates.as<int64_t>(), working(p.element), s.c * s.k, s.d, sums.data(), 0.999});
        moved.check_guards(), updates.check_guards();
    }
    check_same(r, total.ours, total.wide, 1);
}

void maps(Round& r) {
    const int64_t batch = r.random.below(4), classes = 1 + r.random.below(r.random.chance(0.2) ? 255 : 8);
    const int64_t pixels = r.random.one_of<int64_t>({0, 1, 2, 31, 255, 256, 257, 511, 1500}) / (classes > 30 ? 4 : 1),
                  count = batch * pixels;
    now("%s, maps: batch %ld classes %ld pixels %ld", situation.c_str(), static_cast<long>(batch),
        static_cast<long>(classes), static_cast<long>(pixels));
    const Stored logits(r.element, r.numbers(count * classes), 1, 0, r.sizes.offset), wide_logits = r.wider(logits);
    const Stored weight(working(r.element), r.weights(count)), wide_weight = r.wider(weight);
    const StoredIndices label = r.draw_indices(count, classes);
    const bool weighted = r.random.chance(0.5);
    Pair entropy("cross_entropy", working(r.element), 1), overlap("overlap", working(r.element), 3 * classes),
        grad("grad_logits", r.element, count * classes);
    Pair confidence("confidence", working(r.element), count);
    const Values in_overlap = [&] {
        Values values;
        for (int64_t i = 0; i < 3 * classes; ++i) values.push_back(r.random.normal());
        return Stored(Element::f32, values).values;
    }();
    for (const bool wide : {false, true}) {
        const Element element = wide ? Element::f64 : working(r.element);
        const mpamatch::Logits view{wide ? wide_logits.data() : logits.data(), wide ? Element::f64 : r.element, batch,
                                    classes, pixels};
        const void* w = !weighted ? nullptr : wide ? wide_weight.data() : weight.data();
        const Stored g(element, {0.75}), g_overlap(element, in_overlap);
        Output &sum = entropy.of(wide), &shared = overlap.of(wide), &x = grad.of(wide), &sure = confidence.of(wide),
               best("label", int64_t{1}, count);
        run_both_ways({&sum, &shared}, [&](auto parallel) {
            kernels().segmentation_loss({view, label.view(), w, sum.data(), shared.data(), parallel});
        });
        run_both_ways({&x}, [&](auto parallel) {
            kernels().segmentation_loss_backward(
                {g.data(), g_overlap.data(), view, label.view(), w, x.data(), parallel});
        });
        run_both_ways({&best, &sure}, [&](auto parallel) {
            kernels().pseudo_label({view, best.as<uint8_t>(), sure.data(), parallel});
        });
        for (int64_t i = 0; i < count; ++i) CHECK(best.as<uint8_t>()[i] < classes, "label %d", best.as<uint8_t>()[i]);
    }
    check_same(r, entropy.ours, entropy.wide, static_cast<double>(count + 1));
    check_same(r, overlap.ours, overlap.wide, 1);
    check_same(r, grad.ours, grad.wide, 1);
    check_same(r, confidence.ours, confidence.wide, 1);
}

// Distances within an image: 0 or more than 1 apart inside, at least 1 outside, and none longer than its diagonal.
void areas(Round& r) {
    const int64_t batch = r.random.below(3), classes = 1 + r.random.below(6);
    const int64_t height = r.random.one_of<int64_t>({0, 1, 2, 15, 16, 17, 65}), width = 1 + r.random.below(70);
    now("%s, areas: batch %ld classes %ld height %ld width %ld", situation.c_str(), static_cast<long>(batch),
        static_cast<long>(classes), static_cast<long>(height), static_cast<long>(width));
    const StoredIndices label = r.draw_indices(batch * height * width, classes);
    Output distance("distance", Element::f32, batch * classes * height * width);
    run_both_ways({&distance}, [&](auto parallel) {
        kernels().signed_distance({label.view(), batch, classes, height, width, distance.as<float>(), parallel});
    });
    const double longest = std::sqrt(static_cast<double>(height * height + width * width)) * (1 + 1e-7);
    for (int64_t i = 0; i < distance.count; ++i) {
        const double d = distance[i];
        const int64_t plane = i / (height * width), own = r.indices[size_t(plane / classes * height * width + i % (height * width))];
        CHECK((own == plane % classes ? d <= 0 && (d == 0 || d < -1) : d >= 1) && std::fabs(d) <= longest,
              "label %ld, distance %g to class %ld", static_cast<long>(own), d, static_cast<long>(plane % classes));
    }
}

void fuzz() {
    Random random(20);
    for (int i = 0; i < ROUNDS; ++i) {
        now("round %d", i);
        Round r(random, i % 3 == 2);
        now("round %d: %s%s n %ld d %ld c %ld k %ld gap %ld offset %ld", i, r.wild ? "wild " : "", name_of(r.element),
            static_cast<long>(r.sizes.n), static_cast<long>(r.sizes.d), static_cast<long>(r.sizes.c),
            static_cast<long>(r.sizes.k), static_cast<long>(r.sizes.gap), static_cast<long>(r.sizes.offset));
        void (*const operations[])(Round&) = {distance, contrast, sinkhorn, update, maps};
        operations[i % 5](r);
    }
    Random of_areas(21);
    for (int i = 0; i < AREAS; ++i) {
        now("round %d", i);
        Round r(of_areas, false);
        areas(r);
    }
}

}  // namespace

int main() { return run(fuzz); }
