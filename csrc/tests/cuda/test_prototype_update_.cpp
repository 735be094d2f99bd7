// prototype_sum and prototype_move_, the kernels' own source, against float64.
#include "cuda/prototype_update_.h"

#include "harness.h"

namespace mpamatch::cuda {
namespace {

const Device h100{132, 228 << 10, 227 << 10};
const Device l4{58, 100 << 10, 99 << 10};

struct Shape {
    std::int64_t pixels;
    int width;
    int prototypes;
    double ignored;
    bool weighted;
    IndexType type;

    std::string name() const {
        return "N " + std::to_string(pixels) + " D " + std::to_string(width) + " M " + std::to_string(prototypes);
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
            if (m < 0 || (s.weighted && w == 0)) {  // what counts nowhere may be NaN
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
};

template <class Storage, int vector>
std::vector<Working<Storage>> launch_sum(const Input<Storage>& input, const Shape& s, const SumPlan& plan, int at_once,
                                         unsigned seed) {
    using Real = Working<Storage>;
    std::vector<Real> partial(static_cast<std::size_t>(std::int64_t(plan.domains) * plan.rows * s.width), poison<Real>);
    std::vector<int> starts(static_cast<std::size_t>(plan.domains * (s.prototypes + 1)), poison<int>);
    std::vector<Real> total(static_cast<std::size_t>(s.prototypes * s.width), poison<Real>);
    const PrototypeSum<Storage, vector> sum{input.embedding.data.data(),
                                            input.stride,
                                            s.pixels,
                                            s.width,
                                            input.assignment.view(),
                                            s.weighted ? input.weight.data() : nullptr,
                                            s.prototypes,
                                            plan,
                                            partial.data(),
                                            starts.data()};
    run_grid(sum, plan.domains * blocks_per_domain, at_once, seed);
    const PrototypeAdd<Real> add{partial.data(), starts.data(), plan, s.prototypes, s.width, 3, total.data()};
    run_grid(add, static_cast<int>(add.blocks()), at_once, seed);
    return total;
}

// As planned, or cut into domains of `domain` pixels.
template <class Storage, int vector>
void test_sum(const Shape& s, unsigned seed, int domain = 0) {
    ++cases;
    Random random(seed);
    const Input<Storage> input(random, s, s.width + (seed % 2 == 0 ? 0 : 8));
    SumPlan plan = plan_sum<Storage, vector>(s.pixels, s.width, s.prototypes, host_threads, h100);
    if (domain > 0) {
        plan.domain = domain;
        plan.domains = static_cast<int>(divide_up(s.pixels, domain));
    }
    const std::string name = "sum, " + s.name();
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

// Few and small shapes, as a barrier of 64 threads costs half a millisecond: no pixel, one, primes, 100 % ignored, more
// prototypes than pixels, groups of 8, 16 and 32 lanes, rows in one piece, in two and too wide for registers.
void test_rows() {
    test_sum<float, 1>({0, 8, 3, 0.0, true, IndexType::i32}, 1);
    test_sum<double, 1>({1, 1, 1, 0.0, false, IndexType::i64}, 2);
    test_sum<BFloat16, 1>({61, 17, 4, 0.2, true, IndexType::i32}, 3);
    test_sum<Float16, 8>({83, 40, 7, 0.3, false, IndexType::i64}, 4);
    test_sum<BFloat16, 8>({83, 136, 130, 0.1, true, IndexType::i32}, 5);
    test_sum<float, 4>({67, 140, 5, 0.2, true, IndexType::i64}, 6);
    test_sum<double, 2>({37, 8, 2, 0.5, false, IndexType::i32}, 7);
    test_sum<float, 4>({23, 24, 5, 1.0, false, IndexType::i32}, 8);
    test_sum<float, 1>({29, 131, 6, 0.1, true, IndexType::i32}, 9);
    test_sum<BFloat16, 8>({53, 520, 3, 0.1, true, IndexType::i64}, 10);
}

// Several domains, the last one short; more than PrototypeAdd lists at once; one of ignored pixels alone.
void test_domains() {
    test_sum<float, 4>({211, 12, 9, 0.1, true, IndexType::i32}, 11, 67);
    test_sum<Float16, 1>({47, 5, 20, 0.2, false, IndexType::i32}, 12, 10);
    test_sum<float, 1>({11, 1, 2, 0.6, false, IndexType::i64}, 13, 1);
}

template <class Storage, int vector>
void test_plan(std::int64_t pixels, int width, int prototypes, const Device& device) {
    ++cases;
    const SumPlan plan = plan_sum<Storage, vector>(pixels, width, prototypes, update_threads, device);
    const std::string name = "plan of " + std::to_string(pixels) + " pixels, M " + std::to_string(prototypes);
    expect(plan.domains > 0, name + ": does not fit");
    expect(std::int64_t(plan.domains) * plan.domain >= pixels, name + ": leaves pixels out");
    expect(std::int64_t(plan.domains - 1) * plan.domain < pixels + 1, name + ": a domain without pixels");
    expect(plan.domain <= 3072, name + ": places of 16 bits, with room");
    expect(device.holds(PrototypeSum<Storage, vector>::shared_bytes(plan, prototypes, update_threads), 1),
           name + ": more shared memory than there is");
}

void test_plans() {
    for (std::int64_t pixels : {0, 1, 511, 4096, 65536, 1 << 20}) {
        test_plan<BFloat16, 8>(pixels, 256, 50, h100);
        test_plan<float, 1>(pixels, 17, 50, l4);
    }
    test_plan<BFloat16, 8>(65536, 256, most_prototypes, l4);
    test_plan<double, 1>(65536, 256, most_prototypes, l4);
    const auto common = plan_sum<BFloat16, 8>(65536, 256, 50, update_threads, h100);
    expect(common.domains == 33 && common.domain == 1986 && common.runs == 128, "two blocks a processor");
    const Device a100{108, 164 << 10, 163 << 10};
    expect(plan_sum<BFloat16, 8>(65536, 256, 50, update_threads, a100).domains == 27, "no second turn of a few blocks");
    expect(h100.holds(PrototypeSum<BFloat16, 8>::shared_bytes(common, 190, update_threads), 2), "both at once");
    expect(plan_sum<float, 1>(100, 8, 1 << 20, update_threads, h100).domains == 0, "more prototypes than fit");
}

int run() {
    test_rows();
    test_domains();
    test_plans();
    unsigned seed = 20;
    for (int width : {1, 7, 64, 130}) {
        ++seed;
        test_move<float>(5, width, 0.999, seed);
        test_move<double>(5, width, 0.5, seed);
    }
    return finish();
}

}  // namespace
}  // namespace mpamatch::cuda

int main() { return mpamatch::cuda::run(); }
