// exponential, logarithm, the sums over lanes and the conversions of 16-bit numbers of the instruction set that this
// file is compiled for (MPAMATCH_ISA): all 65,536 patterns, and the arithmetic ones against the functions of <cmath> in
// double.
#include "cases.h"
#include "core/rows.h"

using namespace test;
namespace isa = mpamatch::MPAMATCH_ISA;

namespace {

constexpr double UNIT = 0x1p-23;  // of a float: the step from 1 to the next

template <class Function>
float one(const Function& function, float x) {
    return function(isa::broadcast(x))[0];
}

void exponential() {
    now("exponential");
    const auto exponential = [](float x) { return one([](isa::Vec<float> v) { return isa::exponential(v); }, x); };
    double worst = 0, worst_at = 0;
    for (double x = -87; x <= 88; x += 0.00037) {
        const float at = static_cast<float>(x);
        const double truth = std::exp(static_cast<double>(at)),
                     error = std::fabs(static_cast<double>(exponential(at)) / truth - 1);
        if (!(error <= worst)) worst = error, worst_at = at;
    }
    CHECK(worst <= UNIT, "relative error %g (%.2f units) at %g", worst, worst / UNIT, worst_at);
    CHECK(exponential(0.0f) == 1.0f && exponential(-0.0f) == 1.0f, "exp(0) is %.9g",
          static_cast<double>(exponential(0.0f)));
    for (const float below : {-87.001f, -88.0f, -104.0f, -1e4f, -3e38f, -std::numeric_limits<float>::infinity()})
        CHECK(exponential(below) == 0.0f, "exp(%g) is %g", static_cast<double>(below),
              static_cast<double>(exponential(below)));
    for (const float small : {1e-40f, -1e-40f, 1e-10f, -1e-8f})
        CHECK(exponential(small) == 1.0f, "exp(%g) is %.9g", static_cast<double>(small),
              static_cast<double>(exponential(small)));
    float previous = 0;
    for (float x = -87.5f; x < 88.0f; x += 0.01f) {
        const float here = exponential(x);
        CHECK(here >= previous, "exp falls at %g", static_cast<double>(x));
        previous = here;
    }
}

void logarithm() {
    now("logarithm");
    const auto logarithm = [](float x) { return one([](isa::Vec<float> v) { return isa::logarithm(v); }, x); };
    Random random(1);
    double worst = 0, worst_at = 0;
    const auto look = [&](float at) {
        const double truth = std::log(static_cast<double>(at));
        const double error = std::fabs(static_cast<double>(logarithm(at)) - truth) / std::max(1e-30, std::fabs(truth));
        if (!(error <= worst)) worst = error, worst_at = at;
    };
    for (int exponent = -126; exponent < 128; ++exponent)
        for (int i = 0; i < 500; ++i) look(static_cast<float>(std::ldexp(1 + random.uniform() * 0.99999, exponent)));
    for (int i = 1; i < 3000; ++i) look(1 + static_cast<float>(i * UNIT)), look(1 - static_cast<float>(i * UNIT / 2));
    for (const float edge :
         {std::numeric_limits<float>::min(), std::numeric_limits<float>::max(), 0.70710678f, 1.41421356f, 2.0f})
        look(edge);
    CHECK(worst <= 2.5 * UNIT, "relative error %g (%.2f units) at %.9g", worst, worst / UNIT, worst_at);
    CHECK(logarithm(1.0f) == 0.0f, "log(1) is %g", static_cast<double>(logarithm(1.0f)));
}

void every_lane() {
    now("lanes");
    Random random(2);
    for (int round = 0; round < 200; ++round) {
        float numbers[isa::LANES<float>], powers[isa::LANES<float>], logs[isa::LANES<float>];
        double total = 0, highest = -1e9;
        for (float& number : numbers) {
            number = static_cast<float>(-40 * random.uniform());
            total += static_cast<double>(number), highest = std::max(highest, static_cast<double>(number));
        }
        const isa::Vec<float> all = isa::load(numbers);
        isa::store(powers, isa::exponential(all)), isa::store(logs, isa::logarithm(isa::exponential(all)));
        for (int i = 0; i < isa::LANES<float>; ++i) {
            const double truth = std::exp(static_cast<double>(numbers[i]));
            CHECK(std::fabs(static_cast<double>(powers[i]) / truth - 1) < 2 * UNIT, "lane %d of exp", i);
            CHECK(std::fabs(static_cast<double>(logs[i] - numbers[i])) < 5e-6, "lane %d of log", i);
        }
        CHECK(std::fabs(static_cast<double>(isa::sum_of<float>(all)) - total) < 1e-4, "sum");
        CHECK(static_cast<double>(isa::largest_of<float>(all)) == highest, "largest");
        double doubles[isa::LANES<double>];
        for (double& number : doubles) number = 1 + random.uniform();
        const isa::Vec<double> wide = isa::load(doubles);
        for (int i = 0; i < isa::LANES<double>; ++i) {
            CHECK(isa::exponential(wide)[i] == std::exp(doubles[i]), "lane %d of exp in double", i);
            CHECK(isa::logarithm(wide)[i] == std::log(doubles[i]), "lane %d of log in double", i);
        }
    }
}

bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); }

// All patterns, alone and eight at a time through read and write, for float and for double.
void every_half() {
    now("every 16-bit number");
    std::vector<uint16_t> patterns(4 * 65536), back(4 * 65536);  // room for double: the compiler warns of that branch
    for (size_t i = 0; i < 65536; ++i) patterns[i] = static_cast<uint16_t>(i);
    for (const Element element : {Element::f16, Element::bf16}) {
        std::vector<float> floats(65536);
        std::vector<double> doubles(65536);
        isa::read(patterns.data(), element, 65536, floats.data());
        isa::read(patterns.data(), element, 65536, doubles.data());
        isa::write(floats.data(), element, 65536, back.data());
        for (size_t i = 0; i < 65536; ++i) {
            const double truth = decode_half(patterns[i], half_of(element));
            const float alone = element == Element::f16 ? isa::from_f16(patterns[i]) : isa::from_bf16(patterns[i]);
            CHECK(same(static_cast<double>(alone), truth), "%s %#zx alone is %g", name_of(element), i,
                  static_cast<double>(alone));
            CHECK(same(static_cast<double>(floats[i]), truth), "%s %#zx is %g", name_of(element), i,
                  static_cast<double>(floats[i]));
            CHECK(same(doubles[i], truth), "%s %#zx in double is %g", name_of(element), i, doubles[i]);
            const double returned = decode_half(back[i], half_of(element));
            CHECK(std::isnan(truth) ? std::isnan(returned) : back[i] == patterns[i], "%s %#zx comes back as %#x",
                  name_of(element), i, back[i]);
        }
    }
}

// Every number, every midpoint between two, the floats beside both, subnormal ones, those beyond the largest, any bits.
void rounding() {
    now("rounding");
    Random random(3);
    for (const Element element : {Element::f16, Element::bf16}) {
        const Half format = half_of(element);
        const auto look = [&](float value) {
            const uint16_t bits = element == Element::f16 ? isa::to_f16(value) : isa::to_bf16(value);
            const uint16_t truth = encode_half(static_cast<double>(value), format);
            const bool right = std::isnan(value) ? std::isnan(decode_half(bits, format)) : bits == truth;
            CHECK(right, "%s: %.9g is rounded to %#x, expected %#x", name_of(element), static_cast<double>(value), bits,
                  truth);
        };
        const int infinity = encode_half(std::numeric_limits<double>::infinity(), format);
        for (int i = 0; i < infinity; ++i) {
            const double here = decode_half(static_cast<uint16_t>(i), format);
            const double next = i + 1 < infinity ? decode_half(static_cast<uint16_t>(i + 1), format) : here;
            const float middle = static_cast<float>((here + next) / 2);
            for (const float value :
                 {static_cast<float>(here), middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e38f)})
                look(value), look(-value);
        }
        for (const float edge :
             {65504.0f, 65519.0f, 65519.996f, 65520.0f, 65536.0f, 3.3895e38f, 3.3961775e38f, 3.4028235e38f, 1e-45f,
              std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
            look(edge), look(-edge);
        for (int i = 0; i < 300000; ++i) {
            const uint32_t bits = static_cast<uint32_t>(random.below(int64_t{1} << 32));
            float any;
            std::memcpy(&any, &bits, 4);
            look(any);
        }
    }
}

void indices_and_ranges() {
    now("indices");
    const Whole values = {0, 3, -1, 4, 5, int64_t{1} << 32, INT64_MIN, 255};
    const StoredIndices wide(IndexType::i64, values);
    for (size_t i = 0; i < values.size(); ++i) {
        const int32_t index = isa::index_at(wide.view(), static_cast<int64_t>(i), 5);
        CHECK(index == (values[i] >= 0 && values[i] < 5 ? values[i] : -1), "index %zu is %d", i, index);
    }
    Random random(4);
    now("dot");
    for (const int64_t width : {1, 2, 3, 7, 15, 16, 17, 31, 64, 100, 767, 768}) {
        std::vector<float> a, b;
        double truth = 0;
        for (int64_t i = 0; i < width; ++i) {
            a.push_back(static_cast<float>(random.normal())), b.push_back(static_cast<float>(random.normal()));
            truth += static_cast<double>(a.back()) * static_cast<double>(b.back());
        }
        const double ours = isa::dot(a.data(), b.data(), width);
        CHECK(std::fabs(ours - truth) < 1e-5 * std::sqrt(static_cast<double>(width)), "width %ld: %g, expected %g",
              static_cast<long>(width), ours, truth);
    }
}

}  // namespace

int main() {
    return run([] {
        exponential();
        logarithm();
        every_lane();
        every_half();
        rounding();
        indices_and_ranges();
    });
}
