// prototype_sum and prototype_move_ against double, and what they leave alone bit for bit.
#include "arguments/prototype_update_.h"
#include "fuzz.h"
#include "truth.h"

using namespace test;
using mpamatch::PrototypeMoveArguments;
using mpamatch::PrototypeSumArguments;

namespace {

void check_sum(const PixelCase& c, bool weighted) {
    const Sizes& s = c.sizes;
    const Unit unit(c.embedding.values, s.n, s.d);
    Values expected(size(s.c * s.k * s.d));
    for (int64_t n = 0; n < s.n; ++n) {
        const int64_t m = at(c.assignment, n);
        for (int64_t d = 0; m >= 0 && d < s.d; ++d)
            at(expected, m * s.d + d) += (weighted ? at(c.weight.values, n) : 1) * at(unit.rows, n * s.d + d);
    }
    Output total("total", working(c.element), s.c * s.k * s.d);
    most_tasks = 0;
    run_both_ways({&total}, [&](auto parallel) {
        run_kernel(PrototypeSumArguments{c.pixels(), c.stored_assignment.view(), weighted ? c.weight.data() : nullptr,
                                         s.c * s.k, total.data()},
                   parallel);
    });
    if (s.n > 4096) CHECK(most_tasks > 1, "no second slot, so their sum is not tested");
    check_near(total, expected, 1);
}

void sums() {
    for (const Element element : ELEMENTS) {
        uint64_t seed = 20;
        for (const Sizes& sizes : PIXEL_SIZES) {
            const PixelCase c(sizes, element, ++seed);
            check_sum(c, true);
            check_sum(c, false);
        }
    }
}

// `count` prototypes of lengths that are not 1, totals of which every third is nothing, some of it cancelled to 1e-8.
void check_move(Element element, int64_t count, int64_t width, double momentum) {
    now("move %s m %ld d %ld momentum %g", name_of(element), static_cast<long>(count), static_cast<long>(width),
        momentum);
    Random random(static_cast<uint64_t>(count + width));
    const Stored before(element, vectors(count, width, random));
    Values wanted = vectors(count, width, random);
    for (int64_t m = 0; m < count; m += 3) make_zero(wanted, m, width, m % 2 ? 1e-8 : 0);
    const Stored total(element, wanted);
    Output prototypes("prototypes", element, count * width), updates("updates", int64_t{8}, count);
    prototypes.fill(before.values);
    std::vector<char> untouched = prototypes.content();
    const int64_t counts[] = {0, 1, 4, 998, 1000000000};
    for (int64_t m = 0; m < count; ++m) updates.as<int64_t>()[m] = counts[m % 5];

    run_kernel(
        PrototypeMoveArguments{prototypes.data(), updates.as<int64_t>(), element, count, width, total.data(), momentum},
        &serially);
    prototypes.check_guards();
    updates.check_guards();
    const Unit direction(total.values, count, width);
    Values mixed = before.values;
    for (int64_t m = 0; m < count; ++m) {
        const double ramp = 1 - 1 / static_cast<double>(counts[m % 5] + 1), keep = std::min(ramp, momentum);
        for (int64_t d = 0; d < width; ++d)
            at(mixed, m * width + d) = keep * at(mixed, m * width + d) + (1 - keep) * at(direction.rows, m * width + d);
    }
    const Unit moved(mixed, count, width);
    Values expected = before.values;
    for (int64_t m = 0; m < count; ++m) {
        const bool stays = at(direction.length, m) == 0;
        CHECK(updates.as<int64_t>()[m] == counts[m % 5] + !stays, "updates[%ld] is %ld", static_cast<long>(m),
              static_cast<long>(updates.as<int64_t>()[m]));
        const auto bytes = prototypes.content();
        const size_t row = size(width * size_of(element)), first = size(m) * row;
        if (stays)
            CHECK(std::memcmp(bytes.data() + first, untouched.data() + first, row) == 0, "prototype %ld moved",
                  static_cast<long>(m));
        // at D = 1 opposite directions may cancel: then the direction is rounding
        const bool certain = at(moved.length, m) > 0.01;
        for (int64_t d = 0; d < width && !stays; ++d)
            at(expected, m * width + d) = certain ? at(moved.rows, m * width + d) : prototypes[m * width + d];
    }
    check_near(prototypes, expected, 1);
}

void moves() {
    for (const Element element : {Element::f64, Element::f32})
        for (const double momentum : {0.0, 0.5, 0.999, 1.0})
            for (const int64_t width : {1, 3, 17, 64, 768}) check_move(element, 11, width, momentum);
    check_move(Element::f32, 0, 4, 0.9);
    check_move(Element::f32, 209, 5, 0.999);
}

void opposite_pixels_cancel() {
    now("opposite pixels");
    for (const Element element : ELEMENTS) {
        const Stored x(element, {0.3, -0.5, 2, -0.3, 0.5, -2}, 2);
        const StoredIndices assignment(IndexType::i32, {0, 0});
        Output total("total", working(element), 3);
        run_both_ways({&total}, [&](auto parallel) {
            run_kernel(PrototypeSumArguments{{x.data(), element, 2, 3, 3}, assignment.view(), nullptr, 1, total.data()},
                       parallel);
        });
        // a fused multiply-add leaves what rounding took from the first product: half a unit of 1 at most
        const double allowed = element == Element::f64 ? 0x1p-53 : 0x1p-24;
        for (int64_t d = 0; d < 3; ++d)
            CHECK(std::fabs(total[d]) <= allowed, "%s: total %g", name_of(element), total[d]);
    }
}

void random_round(Round& r) {
    const Sizes& s = r.sizes;
    const bool weighted = r.random.chance(0.5);
    const StoredIndices assignment = r.draw_indices(s.n, s.c * s.k);
    Pair total("total", working(r.element), s.c * s.k * s.d);
    for (const bool wide : {false, true}) {
        const RoundPixels p(r, wide);
        Output& sums = total.of(wide);
        run_both_ways({&sums}, [&](auto parallel) {
            run_kernel(PrototypeSumArguments{p.view, assignment.view(), weighted ? p.weight.data() : nullptr, s.c * s.k,
                                             sums.data()},
                       parallel);
        });
        Output moved("prototypes", working(p.element), s.c * s.k * s.d), updates("updates", int64_t{8}, s.c * s.k);
        moved.fill(p.prototypes.values);
        updates.poison(0);
        run_kernel(PrototypeMoveArguments{moved.data(), updates.as<int64_t>(), working(p.element), s.c * s.k, s.d,
                                          sums.data(), 0.999},
                   &serially);
        moved.check_guards(), updates.check_guards();
    }
    check_same(r, total.ours, total.wide, 1);
}

}  // namespace

int main() {
    return run([] {
        sums();
        moves();
        opposite_pixels_cancel();
        fuzz(23, random_round);
    });
}
