// prototype_sum and prototype_move_, the kernels' own source, against float64.
#include "cuda/prototype_update_.h"

#include "harness.h"

namespace mpamatch::cuda {
namespace {

constexpr std::int64_t ample = 200 << 10;

struct Shape {
    std::int64_t pixels;
    int width;
    int prototypes;
    double ignored;
    bool weighted;
    IndexType type;
    std::int64_t shared;  // bytes of a processor: little of it cuts the width into chunks

    std::string name() const {
        return "N " + std::to_string(pixels) + " D " + std::to_string(width) + " M " + std::to_string(prototypes) +
               " shared " + std::to_string(shared);
    }
};

template <class Storage>
struct Input {
    using Real = Working<Storage>;
    std::int64_t stride;
    RandomRows<Storage> embedding;
    StoredIndices assignment;
    std::vector<Real> weight;
    std::vector<double> truth;

    Input(Random& random, const Shape& s, std::int64_t stride)
        : stride(stride),
          embedding(random, s.pixels, s.width, stride),
          assignment(random_indices(random, s.pixels, s.prototypes, s.ignored, s.type)),
          truth(static_cast<std::size_t>(s.prototypes * s.width), 0.0) {
        if (s.pixels > 4) embedding.clear_row(3, s.width, stride);
        for (std::int64_t n = 0; n < s.pixels; ++n) {
            const auto w = static_cast<Real>(random.uniform() < 0.2 ? 0 : random.uniform());
            if (s.weighted) weight.push_back(w);
            const int m = assignment.at(n, s.prototypes);
            if (m < 0) {  // an ignored row must not be read
                embedding.data[static_cast<std::size_t>(n * stride)] = to_storage<Storage>(std::nan(""));
                continue;
            }
            const auto z = unit(&embedding.exact[static_cast<std::size_t>(n * s.width)], s.width);
            for (int d = 0; d < s.width; ++d) {
                truth[static_cast<std::size_t>(m * s.width + d)] +=
                    (s.weighted ? w : 1) * z[static_cast<std::size_t>(d)];
            }
        }
    }
    AssignedPixels<Storage> view(const Shape& s) const {
        return {
            embedding.data.data(), stride, s.pixels, s.width, assignment.view(), s.weighted ? weight.data() : nullptr,
            s.prototypes};
    }
};

template <class Storage, int vector>
std::vector<Working<Storage>> launch_sum(const Input<Storage>& input, const Shape& s, const SumPlan& plan, int at_once,
                                         unsigned seed) {
    using Real = Working<Storage>;
    const std::int64_t cells = std::int64_t(s.prototypes) * s.width;
    std::vector<Real> factor(static_cast<std::size_t>(s.pixels), poison<Real>);
    std::vector<Real> partial(static_cast<std::size_t>(plan.slices * cells), poison<Real>);
    std::vector<Real> total(static_cast<std::size_t>(cells), poison<Real>);
    if (plan.chunks > 1) run_grid(PixelFactor<Storage, vector>{input.view(s), factor.data()}, 3, at_once, seed);
    const PrototypeSum<Storage, vector> sum{input.view(s), plan, plan.chunks > 1 ? factor.data() : nullptr,
                                            partial.data()};
    run_grid(sum, plan.slices * plan.chunks, at_once, seed);
    const PrototypeAdd<Real> add{partial.data(), plan.slices, cells, total.data()};
    run_grid(add, static_cast<int>(divide_up(cells, warp_size)), at_once, seed);
    return total;
}

template <class Storage, int vector>
void test_sum(const Shape& s, unsigned seed) {
    ++cases;
    Random random(seed);
    const Input<Storage> input(random, s, s.width + (seed % 2 == 0 ? 0 : 8));
    const Device device{2, s.shared, s.shared};
    const SumPlan plan = plan_sum<Storage>(s.pixels, s.width, s.prototypes, host_threads, device);
    const std::string name = "sum, " + s.name();
    expect(plan.columns > 0 && plan.columns * plan.chunks >= s.width, name + ": the plan misses columns");
    expect(plan.columns % vector == 0, name + ": the plan cuts a pack");
    expect((plan.chunks > 1) == (s.shared < ample), name + ": not the plan that this case is for");
    if (failures > 0) return;
    expect(PrototypeSum<Storage, vector>::shared_bytes(plan, s.prototypes, host_threads) <= s.shared,
           name + ": more shared memory than there is");

    const auto total = launch_sum<Storage, vector>(input, s, plan, 1, seed);
    expect_near(total, input.truth, 1, name);
    expect(same_bits(total, launch_sum<Storage, vector>(input, s, plan, 3, seed + 1)), name + ": not repeatable");
}

template <class Real>
void test_move(int prototypes, int width, double momentum, unsigned seed) {
    ++cases;
    const std::string name = "move, M " + std::to_string(prototypes) + " D " + std::to_string(width);
    Random random(seed);
    RandomRows<Real> before(random, prototypes, width, width);
    RandomRows<Real> total(random, prototypes, width, width);
    std::vector<std::int64_t> updates;
    for (int m = 0; m < prototypes; ++m) {
        updates.push_back(random.below(3) * random.below(1000));
        if (m % 3 == 1) total.clear_row(m, width, width);
    }
    std::vector<Real> after = before.data;
    std::vector<std::int64_t> counts = updates;
    run_grid(PrototypeMove<Real>{after.data(), counts.data(), total.data.data(), width, static_cast<Real>(momentum)},
             prototypes, 2, seed);

    std::vector<double> truth = before.exact;
    for (int m = 0; m < prototypes; ++m) {
        const std::size_t row = static_cast<std::size_t>(m * width);
        const auto target = unit(&total.exact[row], width);
        const bool moved = length(&total.exact[row], width) >= 1e-6;
        const std::int64_t count = updates[static_cast<std::size_t>(m)];
        expect(counts[static_cast<std::size_t>(m)] == count + moved, name + ": updates");
        if (!moved) {
            const std::size_t bytes = static_cast<std::size_t>(width) * sizeof(Real);
            const bool kept = std::memcmp(&after[row], &before.data[row], bytes) == 0;
            expect(kept, name + ": a prototype that nobody chose has moved");
            continue;
        }
        const double keep = std::min(1 - 1 / static_cast<double>(count + 1), momentum);
        for (int d = 0; d < width; ++d) {
            truth[row + static_cast<std::size_t>(d)] =
                keep * truth[row + static_cast<std::size_t>(d)] + (1 - keep) * target[static_cast<std::size_t>(d)];
        }
        const auto result = unit(&truth[row], width);
        std::copy(result.begin(), result.end(), truth.begin() + static_cast<std::ptrdiff_t>(row));
    }
    expect_near(after, truth, 1, name);
}

// Few and small shapes, as a barrier of 64 threads costs half a millisecond: no pixel, one, primes, 100 % ignored, rows
// whole and in chunks, with one part and several, more prototypes than pixels.
void test_whole_rows() {
    test_sum<float, 1>({0, 8, 3, 0.0, true, IndexType::i32, ample}, 1);
    test_sum<double, 1>({1, 1, 1, 0.0, false, IndexType::i64, ample}, 2);
    test_sum<BFloat16, 1>({61, 17, 4, 0.2, true, IndexType::i32, ample}, 3);
    test_sum<Float16, 8>({83, 40, 7, 0.3, false, IndexType::i64, ample}, 4);
    test_sum<BFloat16, 8>({83, 16, 30, 0.1, true, IndexType::i32, ample}, 5);
    test_sum<float, 4>({53, 96, 3, 0.1, true, IndexType::i64, ample}, 6);
    test_sum<double, 2>({37, 8, 2, 0.5, false, IndexType::i32, ample}, 7);
    test_sum<float, 4>({23, 24, 5, 1.0, false, IndexType::i32, ample}, 8);
}

void test_chunks() {
    test_sum<float, 4>({47, 200, 10, 0.1, true, IndexType::i32, 24 << 10}, 11);
    test_sum<BFloat16, 8>({41, 168, 12, 0.1, false, IndexType::i64, 16 << 10}, 12);
    test_sum<double, 2>({29, 24, 40, 0.2, true, IndexType::i32, 12 << 10}, 13);
    test_sum<Float16, 1>({19, 11, 400, 0.1, true, IndexType::i32, 6 << 10}, 14);
}

int run() {
    test_whole_rows();
    test_chunks();
    unsigned seed = 20;
    for (int width : {1, 7, 64, 130}) {
        ++seed;
        test_move<float>(5, width, 0.999, seed);
        test_move<double>(5, width, 0.5, seed);
    }
    expect(plan_sum<float>(100, 8, 1 << 20, host_threads, Device{2, ample, ample}).columns == 0,
           "a plan where not one column fits");
    return finish();
}

}  // namespace
}  // namespace mpamatch::cuda

int main() { return mpamatch::cuda::run(); }
