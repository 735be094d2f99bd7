// The operations once more, in double, written from the formulas with plain loops.
#pragma once

#include "cases.h"

namespace test {

constexpr double SHORTEST = 1e-6;  // a shorter vector has unit vector 0 and gradient 0

inline double& at(Values& values, int64_t i) { return values[static_cast<size_t>(i)]; }
inline double at(const Values& values, int64_t i) { return values[static_cast<size_t>(i)]; }
inline int64_t at(const Whole& values, int64_t i) { return values[static_cast<size_t>(i)]; }
inline size_t size(int64_t count) { return static_cast<size_t>(count); }

struct Unit {
    Values rows, length;  // length 0: a zero vector
    Unit(const Values& x, int64_t count, int64_t width) : rows(size(count * width)), length(size(count)) {
        for (int64_t i = 0; i < count; ++i) {
            double squared = 0;
            for (int64_t d = 0; d < width; ++d) squared += at(x, i * width + d) * at(x, i * width + d);
            const double norm = std::sqrt(squared);
            at(length, i) = norm < SHORTEST ? 0 : norm;
            for (int64_t d = 0; d < width; ++d)
                at(rows, i * width + d) = norm < SHORTEST ? 0 : at(x, i * width + d) / norm;
        }
    }
    // From the gradient in the unit vectors that in the vectors: (g − x̂ (x̂·g)) / ‖x‖.
    Values gradient(const Values& in_unit, int64_t width) const {
        Values result(rows.size());
        for (int64_t i = 0; i < static_cast<int64_t>(length.size()); ++i) {
            double along = 0;
            for (int64_t d = 0; d < width; ++d) along += at(rows, i * width + d) * at(in_unit, i * width + d);
            for (int64_t d = 0; d < width; ++d)
                at(result, i * width + d) =
                    at(length, i) == 0 ? 0
                                       : (at(in_unit, i * width + d) - at(rows, i * width + d) * along) / at(length, i);
        }
        return result;
    }
};

// Cosines of pixels with prototypes, and the way of a gradient back through them.
struct Cosines {
    int64_t pixels, prototypes, width;
    Unit x, p;
    Values s;  // (N, M)

    Cosines(const Values& embedding, const Values& all_prototypes, int64_t n, int64_t m, int64_t d)
        : pixels(n), prototypes(m), width(d), x(embedding, n, d), p(all_prototypes, m, d), s(size(n * m)) {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < m; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < d; ++k) sum += at(x.rows, i * d + k) * at(p.rows, j * d + k);
                at(s, i * m + j) = sum;
            }
    }
    explicit Cosines(const PixelCase& c)
        : Cosines(c.embedding.values, c.prototypes.values, c.sizes.n, c.sizes.c * c.sizes.k, c.sizes.d) {}

    double operator()(int64_t n, int64_t m) const { return at(s, n * prototypes + m); }

    struct Gradients {
        Values embedding, prototypes;
    };
    Gradients back(const Values& grad) const {
        Values in_x(x.rows.size()), in_p(p.rows.size());
        for (int64_t n = 0; n < pixels; ++n)
            for (int64_t m = 0; m < prototypes; ++m) {
                const double g = at(grad, n * prototypes + m);
                if (g == 0) continue;
                for (int64_t d = 0; d < width; ++d) {
                    at(in_x, n * width + d) += g * at(p.rows, m * width + d);
                    at(in_p, m * width + d) += g * at(x.rows, n * width + d);
                }
            }
        return {x.gradient(in_x, width), p.gradient(in_p, width)};
    }
};

// What one pixel adds: softmax over its competitors (0 for the others), log Σ exp of their logits.
struct ContrastPixel {
    double lse;
    Values softmax;
};

inline ContrastPixel contrast_pixel(const Cosines& cosines, int64_t n, int64_t own, int64_t per_class,
                                    double temperature, bool same_class_negatives) {
    ContrastPixel result{0, Values(size(cosines.prototypes))};
    double highest = -1e300, sum = 0;
    const auto competes = [&](int64_t m) {
        return same_class_negatives || m == own || m / per_class != own / per_class;
    };
    for (int64_t m = 0; m < cosines.prototypes; ++m)
        if (competes(m)) highest = std::max(highest, cosines(n, m) / temperature);
    for (int64_t m = 0; m < cosines.prototypes; ++m)
        if (competes(m)) sum += at(result.softmax, m) = std::exp(cosines(n, m) / temperature - highest);
    for (double& q : result.softmax) q /= sum;
    result.lse = highest + std::log(sum);
    return result;
}

struct ContrastTruth {
    double contrast = 0, alignment = 0;
    Values lse, in_cosines;  // (N), (N, M): the gradient for upstream gradients g1 and g2

    ContrastTruth(const Cosines& cosines, const Whole& assignment, const Values* weight, int64_t per_class,
                  double temperature, bool same_class_negatives, double g1, double g2)
        : lse(size(cosines.pixels)), in_cosines(size(cosines.pixels * cosines.prototypes)) {
        for (int64_t n = 0; n < cosines.pixels; ++n) {
            const int64_t own = at(assignment, n);
            const double w = weight ? at(*weight, n) : 1;
            if (own < 0 || w == 0) continue;  // it does not count: lse 0, whatever its row holds
            const double miss = 1 - cosines(n, own);
            const ContrastPixel pixel = contrast_pixel(cosines, n, own, per_class, temperature, same_class_negatives);
            at(lse, n) = pixel.lse;
            contrast += w * (pixel.lse - cosines(n, own) / temperature);
            alignment += w * miss * miss;
            for (int64_t m = 0; m < cosines.prototypes; ++m)
                at(in_cosines, n * cosines.prototypes + m) = w * g1 / temperature * at(pixel.softmax, m);
            at(in_cosines, n * cosines.prototypes + own) -= w * (g1 / temperature + 2 * g2 * miss);
        }
    }
};

struct Softmax {
    Values p, log_p;  // (C)
    int64_t best = 0;
    Softmax(const Values& logits, int64_t first, int64_t classes, int64_t stride)
        : p(size(classes)), log_p(size(classes)) {
        for (int64_t c = 1; c < classes; ++c)
            if (at(logits, first + c * stride) > at(logits, first + best * stride)) best = c;
        double sum = 0;
        for (int64_t c = 0; c < classes; ++c)
            sum += std::exp(at(log_p, c) = at(logits, first + c * stride) - at(logits, first + best * stride));
        for (int64_t c = 0; c < classes; ++c) at(p, c) = std::exp(at(log_p, c) -= std::log(sum));
    }
};

struct SegmentationTruth {
    double cross_entropy = 0;
    Values overlap, grad;  // (3, C) and (B, C, P) for upstream gradients g and in_overlap (3, C)

    SegmentationTruth(const Values& logits, const Whole& label, const Values* weight, int64_t batch, int64_t classes,
                      int64_t pixels, double g, const Values& in_overlap)
        : overlap(size(3 * classes)), grad(logits.size()) {
        for (int64_t n = 0; n < batch * pixels; ++n) {
            const int64_t own = at(label, n), first = n / pixels * classes * pixels + n % pixels;
            if (own < 0) continue;
            const double w = weight ? at(*weight, n) : 1;
            const Softmax softmax(logits, first, classes, pixels);
            cross_entropy -= w * at(softmax.log_p, own);
            at(overlap, own) += w * at(softmax.p, own);
            at(overlap, 2 * classes + own) += w;
            Values in_p(size(classes));
            double inner = 0;
            for (int64_t c = 0; c < classes; ++c) {
                const double p = at(softmax.p, c);
                at(overlap, classes + c) += w * p * p;
                at(in_p, c) = (c == own ? at(in_overlap, c) : 0) + 2 * p * at(in_overlap, classes + c);
                inner += p * at(in_p, c);
            }
            for (int64_t c = 0; c < classes; ++c) {
                const double p = at(softmax.p, c), y = c == own;
                at(grad, first + c * pixels) = w * (g * (p - y) + p * (at(in_p, c) - inner));
            }
        }
    }
};

// The truth checks itself: the slope of f in x[i], by central differences, against the gradient that a truth gives.
template <class Function>
inline void check_slope(const char* name, Values x, const Values& grad, const Function& f) {
    for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
        const double before = at(x, i), step = 1e-5;
        at(x, i) = before + step;
        const double above = f(x);
        at(x, i) = before - step;
        const double slope = (above - f(x)) / (2 * step);
        at(x, i) = before;
        CHECK(std::fabs(slope - at(grad, i)) < 1e-6 * (1 + std::fabs(slope)),
              "truth of %s: gradient %ld is %g, slope %g", name, static_cast<long>(i), at(grad, i), slope);
    }
}

}  // namespace test
