// pseudo_label against double: exactly the argmax of what is stored, and its softmax.
#include "arguments/pseudo_label.h"
#include "fuzz.h"
#include "truth.h"

using namespace test;
using mpamatch::PseudoLabelArguments;

namespace {

void check(const MapCase& c) {
    const MapSizes& s = c.sizes;
    Output label("label", int64_t{1}, s.batch * s.pixels),
        confidence("confidence", working(c.element), s.batch * s.pixels);
    most_tasks = 0;
    run_both_ways({&label, &confidence}, [&](auto parallel) {
        run_kernel(PseudoLabelArguments{c.view(), label.as<uint8_t>(), confidence.data()}, parallel);
    });
    if (s.batch * s.pixels > 4096) CHECK(most_tasks > 1, "no second task, so their order is not tested");
    Values expected;
    for (int64_t n = 0; n < s.batch * s.pixels; ++n) {
        const Softmax softmax(c.logits.values, n / s.pixels * s.classes * s.pixels + n % s.pixels, s.classes, s.pixels);
        CHECK(label.as<uint8_t>()[n] == softmax.best, "label[%ld] is %d, expected %ld", static_cast<long>(n),
              label.as<uint8_t>()[n], static_cast<long>(softmax.best));
        expected.push_back(at(softmax.p, softmax.best));
    }
    check_near(confidence, expected, 1);
}

// Logits that are whole numbers in [0, 3]: nearly every pixel has a tie, which the lowest class wins.
void ties() {
    for (const Element element : ELEMENTS) {
        MapCase c({3, 6, 301}, element, 11);
        Values coarse;
        for (size_t i = 0; i < c.logits.values.size(); ++i) coarse.push_back(static_cast<double>(c.random.below(4)));
        c.logits = Stored(element, coarse);
        check(c);
    }
}

void extreme_logits() {
    const double inf = std::numeric_limits<double>::infinity();
    MapCase c({1, 3, 4}, Element::f32, 12);
    c.logits = Stored(Element::f32, {3e38, -3e38, -inf, 200, -3e38, -3e38, 1, -200, 0, 3e38, -inf, 0});
    now("extreme logits");
    check(c);
}

void random_round(Round& r) {
    const RoundMaps maps(r);
    Pair confidence("confidence", working(r.element), maps.count());
    for (const bool wide : {false, true}) {
        Output &sure = confidence.of(wide), best("label", int64_t{1}, maps.count());
        run_both_ways({&best, &sure}, [&](auto parallel) {
            run_kernel(PseudoLabelArguments{maps.view(wide), best.as<uint8_t>(), sure.data()}, parallel);
        });
        for (int64_t i = 0; i < maps.count(); ++i)
            CHECK(best.as<uint8_t>()[i] < maps.classes, "label %d", best.as<uint8_t>()[i]);
    }
    check_same(r, confidence.ours, confidence.wide, 1);
}

}  // namespace

int main() {
    return run([] {
        for (const Element element : ELEMENTS) {
            uint64_t seed = 80;
            for (const MapSizes& sizes : MAP_SIZES) check(MapCase(sizes, element, ++seed));
        }
        ties();
        extreme_logits();
        fuzz(25, random_round);
    });
}
