// Signed distances of every pixel to every class, in two passes of whole numbers: along rows, then along columns.
// Between them the output holds, for each pixel, the squared distance within its row to the nearest pixel on the other
// side of the class: + outside the class, − inside it, ±none where the row has no other side.
#pragma once

#include <cmath>
#include <cstdlib>

#include "arguments/signed_distance.h"
#include "core/parallel.h"
#include "core/rows.h"

namespace mpamatch::MPAMATCH_ISA {

constexpr int64_t DISTANCE_ROWS = 16;     // of an image, a task of the first pass
constexpr int64_t DISTANCE_COLUMNS = 16;  // of a plane, read together: a line of the cache

// More than any squared distance within an image; it stands for the distance to nothing.
inline int32_t no_distance(const SignedDistanceArguments& a) {
    return static_cast<int32_t>(a.height * a.height + a.width * a.width);
}

inline void square_row(const int32_t* label, int32_t c, int32_t width, int32_t none, int32_t* row) {
    for (int32_t begin = 0, end = 0; begin < width; begin = end) {
        const bool inside = label[begin] == c;
        while (end < width && (label[end] == c) == inside) ++end;
        const int32_t sign = inside ? -1 : 1;
        for (int32_t x = begin; x < end; ++x) {
            const int32_t left = begin > 0 ? x - begin + 1 : width, right = end < width ? end - x : width;
            const int32_t nearest = left < right ? left : right;
            row[x] = sign * (nearest < width ? nearest * nearest : none);
        }
    }
}

// The lower envelope of parabolas (y − place)² + square, added in the order of their places. Division-free as in
// Maurer, Qi and Raghavan (2003), so exact: squares are below 2^31 and places below 2^15, their products below 2^48.
class Envelope {
  public:
    explicit Envelope(int64_t most) : place_(most), square_(most) {}

    void clear() { count_ = 0, lowest_ = 0; }

    void add(int64_t place, int64_t square) {
        while (count_ > 1 && hidden(count_ - 2, count_ - 1, place, square)) --count_;
        place_[count_] = place, square_[count_] = square, ++count_;
    }

    // The least at y, or `none` where there is no parabola. Each y must be larger than the one before.
    int32_t least(int64_t y, int32_t none) {
        if (count_ == 0) return none;
        int64_t least = value(lowest_, y);
        while (lowest_ + 1 < count_) {
            const int64_t next = value(lowest_ + 1, y);
            if (next > least) break;
            least = next, ++lowest_;
        }
        return static_cast<int32_t>(least);
    }

  private:
    int64_t value(int64_t i, int64_t y) const { return (y - place_[i]) * (y - place_[i]) + square_[i]; }

    // Whether u and the new one, w, already meet where v between them has not come below u yet.
    bool hidden(int64_t u, int64_t v, int64_t w, int64_t w_square) const {
        const int64_t to_v = place_[v] - place_[u], to_w = w - place_[v];
        const int64_t v_from = square_[v] - square_[u] + to_v * (place_[v] + place_[u]);
        const int64_t w_from = w_square - square_[v] + to_w * (w + place_[v]);
        return v_from * to_w >= w_from * to_v;
    }

    Buffer<int64_t> place_, square_;
    int64_t count_ = 0, lowest_ = 0;
};

// One run of a column inside the class, or outside it: whatever lies beyond the two pixels at its ends is further away
// than these are, so the runs of a column are independent of each other.
inline void finish_run(int64_t begin, int64_t end, int64_t height, int32_t none, Envelope& envelope, int32_t* column) {
    envelope.clear();
    if (begin > 0) envelope.add(begin - 1, 0);
    for (int64_t y = begin; y < end; ++y) {
        const int32_t square = std::abs(column[y]);
        if (square != none) envelope.add(y, square);
    }
    if (end < height) envelope.add(end, 0);
    const int32_t sign = column[begin] < 0 ? -1 : 1;
    for (int64_t y = begin; y < end; ++y) column[y] = sign * envelope.least(y, none);
}

inline void finish_column(int64_t height, int32_t none, Envelope& envelope, int32_t* column) {
    for (int64_t begin = 0, end = 0; begin < height; begin = end) {
        const bool inside = column[begin] < 0;
        while (end < height && (column[end] < 0) == inside) ++end;
        finish_run(begin, end, height, none, envelope, column);
    }
}

// The root with the sign; 0 on the inner boundary. Rounded twice, it is still the nearest float: 53 bits ≥ 2·24 + 2.
inline float distance_of(int32_t square) {
    const float root = static_cast<float>(std::sqrt(static_cast<double>(std::abs(square))));
    return square > 0 ? root : square == -1 ? 0.0f : -root;
}

inline void square_rows(const SignedDistanceArguments& a, int64_t image, int64_t first) {
    Buffer<int32_t> label(a.width), row(a.width);
    const int32_t width = static_cast<int32_t>(a.width);
    for (int64_t y = first; y < first + DISTANCE_ROWS && y < a.height; ++y) {
        const int64_t place = (image * a.height + y) * a.width;
        for (int32_t x = 0; x < width; ++x) label[x] = index_at(a.label, place + x, a.classes);
        for (int64_t c = 0; c < a.classes; ++c) {
            square_row(label.get(), static_cast<int32_t>(c), width, no_distance(a), row.get());
            float* to = a.distance + ((image * a.classes + c) * a.height + y) * a.width;
            std::memcpy(to, row.get(), static_cast<size_t>(width) * sizeof(float));
        }
    }
}

inline void finish_plane(const SignedDistanceArguments& a, float* plane) {
    Envelope envelope(a.height + 2);
    Buffer<int32_t> columns(a.height * DISTANCE_COLUMNS);
    for (int64_t first = 0; first < a.width; first += DISTANCE_COLUMNS) {
        const int64_t count = a.width - first < DISTANCE_COLUMNS ? a.width - first : DISTANCE_COLUMNS;
        for (int64_t y = 0; y < a.height; ++y) {
            int32_t row[DISTANCE_COLUMNS];
            std::memcpy(row, plane + y * a.width + first, static_cast<size_t>(count) * sizeof(float));
            for (int64_t i = 0; i < count; ++i) columns[i * a.height + y] = row[i];
        }
        for (int64_t i = 0; i < count; ++i)
            finish_column(a.height, no_distance(a), envelope, columns.get() + i * a.height);
        for (int64_t y = 0; y < a.height; ++y)
            for (int64_t i = 0; i < count; ++i) plane[y * a.width + first + i] = distance_of(columns[i * a.height + y]);
    }
}

inline void signed_distance(const SignedDistanceArguments& a, ParallelTasks parallel) {
    const int64_t bands = (a.height + DISTANCE_ROWS - 1) / DISTANCE_ROWS, pixels = a.height * a.width;
    if (pixels == 0) return;
    for_each_task(parallel, a.batch * bands,
                  [&](int64_t task) { square_rows(a, task / bands, task % bands * DISTANCE_ROWS); });
    for_each_task(parallel, a.batch * a.classes, [&](int64_t plane) { finish_plane(a, a.distance + plane * pixels); });
}

}  // namespace mpamatch::MPAMATCH_ISA
