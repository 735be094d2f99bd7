// signed_distance, the kernels' own source, against a search of all pixels.
#include "cuda/signed_distance.h"

#include "harness.h"

namespace mpamatch::cuda {
namespace {

struct Shape {
    int batch;
    Planes planes;
    double ignored;
    int blocks;  // of the first kernel; the second has one per tile
    IndexType type;

    std::string name() const {
        return "B " + std::to_string(batch) + " C " + std::to_string(planes.classes) + " H " +
               std::to_string(planes.height) + " W " + std::to_string(planes.width);
    }
    std::int64_t area() const { return std::int64_t(planes.height) * planes.width; }
};

double truth_at(const StoredIndices& label, const Shape& s, std::int64_t image, int c, std::int64_t pixel) {
    const std::int64_t first = image * s.area();
    const bool inside = label.at(first + pixel, s.planes.classes) == c;
    std::int64_t nearest = -1;
    for (std::int64_t other = 0; other < s.area(); ++other) {
        if ((label.at(first + other, s.planes.classes) == c) == inside) continue;
        const std::int64_t down = other / s.planes.width - pixel / s.planes.width;
        const std::int64_t right = other % s.planes.width - pixel % s.planes.width;
        const std::int64_t squared = down * down + right * right;
        if (nearest < 0 || squared < nearest) nearest = squared;
    }
    if (nearest < 0) nearest = std::int64_t(s.planes.height) * s.planes.height + s.planes.width * s.planes.width;
    if (inside && nearest == 1) return 0;
    return (inside ? -1 : 1) * std::sqrt(static_cast<double>(nearest));
}

void test(const Shape& s, const StoredIndices& label, unsigned seed, const std::string& what) {
    ++cases;
    const std::string name = what + ", " + s.name();
    const auto count = static_cast<std::size_t>(s.batch * s.planes.classes * s.area());
    std::vector<double> truth;
    for (int image = 0; image < s.batch; ++image) {
        for (int c = 0; c < s.planes.classes; ++c) {
            for (std::int64_t i = 0; i < s.area(); ++i) truth.push_back(truth_at(label, s, image, c, i));
        }
    }
    std::vector<float> first;
    for (int at_once : {1, 3}) {
        std::vector<std::int32_t> square(count, poison<std::int32_t>);
        std::vector<float> distance(count, poison<float>);
        run_grid(DistanceRows{label.view(), std::int64_t(s.batch) * s.planes.height, s.planes, square.data()}, s.blocks,
                 at_once, seed);
        run_grid(DistanceColumns{s.planes, square.data(), distance.data()},
                 static_cast<int>(s.batch * s.planes.classes * DistanceColumns::tiles(s.planes)), at_once, seed + 1);
        if (at_once == 1) {
            expect_near(distance, truth, 0, name);
            first = distance;
        }
        expect(same_bits(distance, first), name + ": not repeatable");
    }
}

// All of class `c` but one pixel, which has a class of its own or none: long ways in each direction.
StoredIndices lonely(const Shape& s, std::int64_t c, std::int64_t pixel, std::int64_t value) {
    std::vector<std::int64_t> label(static_cast<std::size_t>(s.batch * s.area()), c);
    label[static_cast<std::size_t>(pixel)] = value;
    return StoredIndices(std::move(label), s.type);
}

// Rows of less than a word, of several with a rest, one pixel, one column; more rows than a tile and than blocks; the
// last class absent (random_indices), one that fills the image, none at all.
int run() {
    unsigned seed = 1;
    for (const Shape& s : {Shape{2, {3, 5, 7}, 0.2, 2, IndexType::u8}, Shape{1, {2, 9, 67}, 0.0, 3, IndexType::i32},
                           Shape{1, {2, 66, 33}, 0.3, 4, IndexType::i64}, Shape{1, {1, 1, 1}, 0.0, 1, IndexType::u8},
                           Shape{1, {2, 1, 97}, 0.1, 1, IndexType::u8}, Shape{1, {2, 66, 1}, 0.1, 5, IndexType::i32},
                           Shape{1, {2, 6, 32}, 1.0, 2, IndexType::i64}}) {
        Random random(++seed);
        test(s, random_indices(random, s.batch * s.area(), s.planes.classes, s.ignored, s.type), seed, "random");
    }
    const Shape tall{1, {1, 66, 40}, 0, 4, IndexType::u8};
    test(tall, lonely(tall, 1, 39, 0), ++seed, "one pixel");
    test(tall, lonely(tall, 0, 2600, 255), ++seed, "one ignored");
    test(tall, lonely(tall, 0, 77, 0), ++seed, "one class");
    return finish();
}

}  // namespace
}  // namespace mpamatch::cuda

int main() { return mpamatch::cuda::run(); }
