// An operation on random sizes, storages, strides and alignments, in memory that ends with the last number: for the
// sanitizers. What can be said without a second truth is checked too: nothing outside the outputs is written, threads
// change no bit, and the same numbers stored as double give the same results. Every third round has wild numbers
// (infinities, NaN, any bits) and indices, which may give any result but must stay inside.
#pragma once

#include "cases.h"
#include "runners.h"

namespace test {

constexpr int ROUNDS = 160;

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
          embedding(element, rows(sizes.n), sizes.n, sizes.gap, sizes.offset),
          prototypes(working(element), rows(sizes.c * sizes.k), 1, 0, sizes.offset),
          weight(working(element), weights(sizes.n), 1, 0, sizes.offset),
          index_type(r.one_of({IndexType::u8, IndexType::i32, IndexType::i64})) {}

    static Sizes draw_sizes(Random& r) {
        Sizes s{r.one_of<int64_t>({0, 1, 2, 3, 63, 64, 65, 127, 193, 600, 2100, 4200}),
                r.one_of<int64_t>({1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 100, 257, 768}),
                1 + r.below(r.chance(0.2) ? 30 : 5), 1 + r.below(r.chance(0.2) ? 40 : 12)};
        while (s.n * s.d * s.c * s.k > 300000) s.n /= 2, s.k = (s.k + 1) / 2;
        s.gap = r.chance(0.5) ? r.below(9) : 0, s.offset = r.below(3);
        return s;
    }
    Values numbers(int64_t count) {
        Values values;
        for (int64_t i = 0; i < count; ++i) values.push_back(wild && random.chance(0.05) ? any() : random.normal());
        if (count > sizes.d && random.chance(0.5)) std::fill_n(values.begin(), sizes.d, 0.0);
        return values;
    }
    // Of the width of the round. Gradients grow with 1/‖x‖, so only wild ones are shorter than 0.5, zero rows aside.
    Values rows(int64_t count) {
        Values values = numbers(count * sizes.d);
        for (auto row = values.begin(); row != values.end() && !wild; row += sizes.d) {
            const double length = std::sqrt(std::inner_product(row, row + sizes.d, row, 0.0));
            if (length > 0 && length < 0.5)
                std::transform(row, row + sizes.d, row, [&](double x) { return x * 0.5 / length; });
        }
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
struct RoundPixels {
    Element element;
    mpamatch::Pixels view;
    Stored wide_embedding, prototypes, weight;
    RoundPixels(const Round& r, bool wide)
        : element(wide ? Element::f64 : r.element),
          view{r.embedding.data(), r.element, r.sizes.n, r.sizes.d, r.embedding.stride},
          wide_embedding(Element::f64, r.embedding.values),
          prototypes(wide ? r.wider(r.prototypes) : r.prototypes),
          weight(wide ? r.wider(r.weight) : r.weight) {
        if (wide) view = {wide_embedding.data(), Element::f64, r.sizes.n, r.sizes.d, r.sizes.d};
    }
    RoundPixels(const RoundPixels&) = delete;
};

// Logits of a few images with their labels and weights, of the storage of the round, or as double.
struct RoundMaps {
    int64_t batch, classes, pixels;
    Stored logits, weight;
    StoredIndices label;
    bool weighted;

    explicit RoundMaps(Round& r)
        : batch(r.random.below(4)),
          classes(1 + r.random.below(r.random.chance(0.2) ? 255 : 8)),
          pixels(r.random.one_of<int64_t>({0, 1, 2, 31, 255, 256, 257, 511, 1500}) / (classes > 30 ? 4 : 1)),
          logits(r.element, r.numbers(count() * classes), 1, 0, r.sizes.offset),
          weight(working(r.element), r.weights(count()), 1, 0, r.sizes.offset),
          label(r.draw_indices(count(), classes)),
          weighted(r.random.chance(0.5)),
          wide_logits_(r.wider(logits)),
          wide_weight_(r.wider(weight)) {
        now("%s, maps: batch %ld classes %ld pixels %ld", situation.c_str(), static_cast<long>(batch),
            static_cast<long>(classes), static_cast<long>(pixels));
    }

    int64_t count() const { return batch * pixels; }
    mpamatch::Logits view(bool wide) const {
        const Stored& stored = wide ? wide_logits_ : logits;
        return {stored.data(), stored.element, batch, classes, pixels};
    }
    const void* weights(bool wide) const { return weighted ? (wide ? wide_weight_ : weight).data() : nullptr; }

  private:
    Stored wide_logits_, wide_weight_;
};

// An output in the storage of the round, and as double.
struct Pair {
    Output ours, wide;
    Pair(const char* name, Element element, int64_t count)
        : ours(name, element, count), wide(name, Element::f64, count) {}
    Output& of(bool is_wide) { return is_wide ? wide : ours; }
};

// Within the rounding of the storage, relative to `size`; wild numbers may give any result.
inline void check_same(const Round& r, const Output& ours, const Output& wide, double size) {
    if (r.wild) return;
    Values truth;
    for (int64_t i = 0; i < wide.count; ++i) truth.push_back(wide[i]);
    check_near(ours, truth, size, 5);
}

inline void fuzz(uint64_t seed, void (*operation)(Round&)) {
    Random random(seed);
    for (int i = 0; i < ROUNDS; ++i) {
        now("round %d", i);
        Round r(random, i % 3 == 2);
        now("round %d: %s%s n %ld d %ld c %ld k %ld gap %ld offset %ld", i, r.wild ? "wild " : "", name_of(r.element),
            static_cast<long>(r.sizes.n), static_cast<long>(r.sizes.d), static_cast<long>(r.sizes.c),
            static_cast<long>(r.sizes.k), static_cast<long>(r.sizes.gap), static_cast<long>(r.sizes.offset));
        operation(r);
    }
}

}  // namespace test
