// Random pixels with labels and weights, by size, storage and seed.
#pragma once

#include <random>

#include "storage.h"

namespace test {

class Random {
  public:
    explicit Random(uint64_t seed) : engine_(seed) {}
    double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
    double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
    int64_t below(int64_t limit) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(limit)); }
    bool chance(double share) { return uniform() < share; }
    template <class T>
    T one_of(std::initializer_list<T> values) {
        return values.begin()[below(static_cast<int64_t>(values.size()))];
    }

  private:
    std::mt19937_64 engine_;
};

struct Sizes {
    int64_t n, d, c, k;
    double ignored = 0.2;
    int64_t gap = 0;      // numbers between rows
    bool absent = false;  // the last class has no pixel
    int64_t offset = 0;   // numbers before the first, so that rows are not aligned
};

// A number outside [0, limit) that this type can hold, among them those that a cast to 32 bits would bring inside.
inline int64_t outside(IndexType type, int64_t limit, Random& random) {
    if (type == IndexType::u8) return 255;
    if (type == IndexType::i32) return random.one_of<int64_t>({-1, limit, INT32_MAX, INT32_MIN, 255 + limit});
    return random.one_of<int64_t>(
        {-1, limit, int64_t{1} << 32, (int64_t{1} << 40) + 1, INT64_MIN, -(int64_t{1} << 32)});
}

inline Values vectors(int64_t count, int64_t width, Random& random) {
    Values values;
    for (int64_t i = 0; i < count; ++i) {
        const size_t begin = values.size();
        double squared = 0;
        for (int64_t d = 0; d < width; ++d) {
            values.push_back(random.normal());
            squared += values.back() * values.back();
        }
        const double scale = (0.5 + 1.5 * random.uniform()) / std::sqrt(squared);
        for (size_t j = begin; j < values.size(); ++j) values[j] *= scale;
    }
    return values;
}

inline void make_zero(Values& values, int64_t row, int64_t width, double tiny) {
    std::fill_n(values.begin() + row * width, width, 0.0);
    values[static_cast<size_t>(row * width)] = tiny;
}

struct PixelCase {
    Sizes sizes;
    Element element;
    IndexType index_type;
    Random random;
    Whole label, assignment;  // −1 where ignored
    Stored embedding, prototypes, weight;
    StoredIndices stored_label, stored_assignment;

    PixelCase(Sizes s, Element e, uint64_t seed)
        : sizes(s),
          element(e),
          index_type(static_cast<IndexType>(seed % 3)),
          random(seed),
          label(draw_labels(s, random)),
          assignment(draw_assignments(s, label, random)),
          embedding(e, embedding_values(s, random), s.n, s.gap, s.offset),
          prototypes(working(e), prototype_values(s, random), s.c * s.k, 0, s.offset),
          weight(working(e), weight_values(s, random), 1, 0, s.offset),
          stored_label(index_type, hide(label, index_type, s.c, random)),
          stored_assignment(assignment_type(), hide(assignment, assignment_type(), s.c * s.k, random)) {
        now("%s n %ld d %ld c %ld k %ld ignored %g gap %ld seed %lu", name_of(e), static_cast<long>(s.n),
            static_cast<long>(s.d), static_cast<long>(s.c), static_cast<long>(s.k), s.ignored, static_cast<long>(s.gap),
            static_cast<unsigned long>(seed));
    }

    mpamatch::Pixels pixels() const { return {embedding.data(), element, sizes.n, sizes.d, embedding.stride}; }

  private:
    IndexType assignment_type() const { return index_type == IndexType::u8 ? IndexType::i32 : index_type; }
    static Whole draw_labels(const Sizes& s, Random& random) {
        Whole label;
        const int64_t present = s.absent ? std::max<int64_t>(s.c - 1, 1) : s.c;
        for (int64_t n = 0; n < s.n; ++n) label.push_back(random.chance(s.ignored) ? -1 : random.below(present));
        return label;
    }
    static Whole draw_assignments(const Sizes& s, const Whole& label, Random& random) {
        Whole assignment;
        for (const int64_t own : label) assignment.push_back(own < 0 ? -1 : own * s.k + random.below(s.k));
        return assignment;
    }
    static Whole hide(Whole indices, IndexType type, int64_t limit, Random& random) {
        for (int64_t& index : indices) index = index < 0 ? outside(type, limit, random) : index;
        return indices;
    }
    // One pixel and one prototype of no length, one pixel shorter than 1e-6.
    static Values embedding_values(const Sizes& s, Random& random) {
        Values values = vectors(s.n, s.d, random);
        if (s.n > 4) make_zero(values, 1, s.d, 0), make_zero(values, s.n - 1, s.d, 1e-7);
        return values;
    }
    static Values prototype_values(const Sizes& s, Random& random) {
        Values values = vectors(s.c * s.k, s.d, random);
        if (s.c * s.k > 3) make_zero(values, s.c * s.k - 2, s.d, 1e-7);
        return values;
    }
    static Values weight_values(const Sizes& s, Random& random) {
        Values values;
        for (int64_t n = 0; n < s.n; ++n) values.push_back(random.chance(0.2) ? 0.0 : 0.2 + random.uniform());
        return values;
    }
};

// What every operation on pixels is tried on: small, prime, several slots of partial sums, wide, many prototypes.
constexpr Sizes PIXEL_SIZES[] = {
    {0, 5, 3, 2},
    {1, 1, 1, 1, 0.0},
    {1, 17, 2, 3, 0.0},
    {7, 3, 1, 4, 0.2, 2},
    {63, 64, 1, 1, 0.0},
    {97, 17, 5, 1, 0.3},
    {131, 768, 3, 5, 0.2, 9},
    {130, 72, 7, 9, 0.2, 5, false, 1},
    {66, 17, 19, 11, 0.2, 0, true},
    {61, 1, 3, 4, 0.5},
    {101, 3, 4, 3, 1.0},
    {4507, 8, 5, 4, 0.2, 3, false, 1},
    {2311, 19, 2, 10, 0.1, 0, true},
};

struct MapSizes {
    int64_t batch, classes, pixels;
    double ignored = 0.2;
    bool absent = false;
    double raised = 0;  // a constant added to the logits of all classes of a pixel
    int64_t offset = 0;
};

struct MapCase {
    MapSizes sizes;
    Element element;
    IndexType index_type;
    Random random;
    Whole label;
    Stored logits, weight;
    StoredIndices stored_label;

    MapCase(MapSizes s, Element e, uint64_t seed)
        : sizes(s),
          element(e),
          index_type(static_cast<IndexType>(seed % 3)),
          random(seed),
          label(draw_labels(s, random)),
          logits(e, logit_values(s, random), 1, 0, s.offset),
          weight(working(e), weights(s, random), 1, 0, s.offset),
          stored_label(index_type, hide(label, index_type, s.classes, random)) {
        now("%s batch %ld classes %ld pixels %ld ignored %g raised %g seed %lu", name_of(e), static_cast<long>(s.batch),
            static_cast<long>(s.classes), static_cast<long>(s.pixels), s.ignored, s.raised,
            static_cast<unsigned long>(seed));
    }

    mpamatch::Logits view() const { return {logits.data(), element, sizes.batch, sizes.classes, sizes.pixels}; }

  private:
    static Whole draw_labels(const MapSizes& s, Random& random) {
        Whole label;
        const int64_t present = s.absent ? std::max<int64_t>(s.classes - 1, 1) : s.classes;
        for (int64_t n = 0; n < s.batch * s.pixels; ++n)
            label.push_back(random.chance(s.ignored) ? -1 : random.below(present));
        return label;
    }
    static Values logit_values(const MapSizes& s, Random& random) {
        Values values;
        for (int64_t i = 0; i < s.batch * s.classes * s.pixels; ++i) values.push_back(s.raised + 2 * random.normal());
        return values;
    }
    static Values weights(const MapSizes& s, Random& random) {
        Values values;
        for (int64_t n = 0; n < s.batch * s.pixels; ++n)
            values.push_back(random.chance(0.2) ? 0.0 : 0.2 + random.uniform());
        return values;
    }
    static Whole hide(Whole indices, IndexType type, int64_t limit, Random& random) {
        for (int64_t& index : indices) index = index < 0 ? outside(type, limit, random) : index;
        return indices;
    }
};

// Around the 256 pixels that are worked on together, several images, several slots, the most classes there may be.
constexpr MapSizes MAP_SIZES[] = {
    {0, 3, 12},
    {2, 3, 0},
    {1, 1, 1, 0.0},
    {3, 2, 1},
    {2, 5, 7, 0.3},
    {1, 4, 255},
    {2, 3, 256},
    {3, 2, 257, 0.2, true},
    {1, 20, 700, 0.2, false, 0, 1},
    {1, 255, 131},
    {2, 7, 64, 1.0},
    {5, 5, 1031, 0.2, true},
    {4099, 2, 1},
    {1, 3, 300, 0.2, false, 40, 3},
};

}  // namespace test
