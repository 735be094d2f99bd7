// signed_distance against a search of all pixels: exactly the nearest float.
#include "arguments/signed_distance.h"
#include "fuzz.h"

using namespace test;
using mpamatch::SignedDistanceArguments;

namespace {

struct Area {
    int64_t batch, classes, height, width;
    int64_t grain;  // squares of one class
    double ignored;
};

// The last of several classes is absent.
Whole draw_label(const Area& a, Random& random) {
    const int64_t down = a.height / a.grain + 1, across = a.width / a.grain + 1;
    Whole coarse, label;
    for (int64_t i = 0; i < a.batch * down * across; ++i)
        coarse.push_back(random.below(std::max<int64_t>(a.classes - 1, 1)));
    for (int64_t b = 0; b < a.batch; ++b)
        for (int64_t y = 0; y < a.height; ++y)
            for (int64_t x = 0; x < a.width; ++x)
                label.push_back(random.chance(a.ignored)
                                    ? -1
                                    : coarse[static_cast<size_t>((b * down + y / a.grain) * across + x / a.grain)]);
    return label;
}

float truth_at(const Whole& label, const Area& a, int64_t image, int64_t c, int64_t pixel) {
    const int64_t area = a.height * a.width;
    const auto inside = [&](int64_t i) { return label[static_cast<size_t>(image * area + i)] == c; };
    int64_t nearest = a.height * a.height + a.width * a.width;
    for (int64_t i = 0; i < area; ++i) {
        const int64_t down = i / a.width - pixel / a.width, right = i % a.width - pixel % a.width;
        if (inside(i) != inside(pixel)) nearest = std::min(nearest, down * down + right * right);
    }
    if (inside(pixel) && nearest == 1) return 0;
    return static_cast<float>((inside(pixel) ? -1 : 1) * std::sqrt(static_cast<double>(nearest)));
}

void check(const Area& a, uint64_t seed) {
    Random random(seed);
    const Whole label = draw_label(a, random);
    const IndexType type = static_cast<IndexType>(seed % 3);
    Whole hidden = label;
    for (int64_t& own : hidden) own = own < 0 ? outside(type, a.classes, random) : own;
    const StoredIndices stored(type, hidden);
    const int64_t area = a.height * a.width;
    now("batch %ld classes %ld height %ld width %ld seed %lu", static_cast<long>(a.batch), static_cast<long>(a.classes),
        static_cast<long>(a.height), static_cast<long>(a.width), static_cast<unsigned long>(seed));
    Output distance("distance", Element::f32, a.batch * a.classes * area);
    run_both_ways({&distance}, [&](auto parallel) {
        run_kernel(SignedDistanceArguments{stored.view(), a.batch, a.classes, a.height, a.width, distance.as<float>()},
                   parallel);
    });
    for (int64_t i = 0; i < distance.count; ++i) {
        const float expected = truth_at(label, a, i / area / a.classes, i / area % a.classes, i % area);
        const float ours = distance.as<float>()[i];
        CHECK(ours == expected, "distance[%ld] is %.9g, expected %.9g", static_cast<long>(i), static_cast<double>(ours),
              static_cast<double>(expected));
    }
}

// The longest sides: squares up to 3·2^28 fit their 32 bits. One pixel of class 1, in a corner.
void longest(int64_t height, int64_t width) {
    now("height %ld width %ld", static_cast<long>(height), static_cast<long>(width));
    Whole label(static_cast<size_t>(height * width), 0);
    label.back() = 1;
    const StoredIndices stored(IndexType::u8, label);
    Output distance("distance", Element::f32, 2 * height * width);
    run_both_ways({&distance}, [&](auto parallel) {
        run_kernel(SignedDistanceArguments{stored.view(), 1, 2, height, width, distance.as<float>()}, parallel);
    });
    const double far = std::sqrt(static_cast<double>((height - 1) * (height - 1) + (width - 1) * (width - 1)));
    CHECK(distance.as<float>()[0] == static_cast<float>(-far), "inside, far: %g", distance[0]);
    CHECK(distance.as<float>()[height * width] == static_cast<float>(far), "outside, far: %g",
          distance[height * width]);
    CHECK(distance[height * width - 1] == 1, "the pixel itself, outside class 0: %g", distance[height * width - 1]);
}

// Distances within an image: 0 or more than 1 apart inside, at least 1 outside, and none longer than its diagonal.
void random_round(Round& r) {
    const int64_t batch = r.random.below(3), classes = 1 + r.random.below(6);
    const int64_t height = r.random.one_of<int64_t>({0, 1, 2, 15, 16, 17, 65}), width = 1 + r.random.below(70);
    now("%s, areas: batch %ld classes %ld height %ld width %ld", situation.c_str(), static_cast<long>(batch),
        static_cast<long>(classes), static_cast<long>(height), static_cast<long>(width));
    const StoredIndices label = r.draw_indices(batch * height * width, classes);
    Output distance("distance", Element::f32, batch * classes * height * width);
    run_both_ways({&distance}, [&](auto parallel) {
        run_kernel(SignedDistanceArguments{label.view(), batch, classes, height, width, distance.as<float>()},
                   parallel);
    });
    const double longest = std::sqrt(static_cast<double>(height * height + width * width)) * (1 + 1e-7);
    for (int64_t i = 0; i < distance.count; ++i) {
        const double d = distance[i];
        const int64_t plane = i / (height * width),
                      own = r.indices[size_t(plane / classes * height * width + i % (height * width))];
        CHECK((own == plane % classes ? d <= 0 && (d == 0 || d < -1) : d >= 1) && std::fabs(d) <= longest,
              "label %ld, distance %g to class %ld", static_cast<long>(own), d, static_cast<long>(plane % classes));
    }
}

}  // namespace

int main() {
    return run([] {
        uint64_t seed = 90;
        for (const Area& a : {Area{0, 2, 3, 3, 1, 0}, Area{1, 1, 1, 1, 1, 0}, Area{1, 2, 1, 1, 1, 1},
                              Area{2, 3, 0, 4, 1, 0}, Area{2, 3, 1, 37, 2, 0.1}, Area{2, 3, 37, 1, 2, 0.1},
                              Area{2, 4, 17, 16, 1, 0.2}, Area{1, 5, 33, 47, 6, 0.02}, Area{3, 2, 20, 15, 30, 0.01},
                              Area{1, 255, 9, 11, 1, 0}, Area{2, 3, 12, 12, 1, 1}})
            for (int i = 0; i < 3; ++i) check(a, ++seed);
        longest(1 << 14, 3), longest(3, 1 << 14), longest(700, 900);
        fuzz(26, random_round);
    });
}
