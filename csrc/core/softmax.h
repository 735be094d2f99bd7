// A strip of pixels of one image, class by class, with its softmax: what the operations on logits share.
#pragma once

#include "core/parallel.h"
#include "core/rows.h"

namespace mpamatch::MPAMATCH_ISA {

// Pixels: 20 kB of float at 20 classes, so all passes but the first read the first cache.
constexpr int64_t STRIP = 256;

inline int64_t strips_of(const Logits& logits) { return (logits.pixels + STRIP - 1) / STRIP; }

template <class T>
class Strip {
  public:
    explicit Strip(const Logits& logits) : logits_(logits), values(logits.classes * STRIP) {}

    // Strip `index` of all images; pixels beyond the last of an image are 0.
    void take(int64_t index) {
        image = index / strips_of(logits_);
        begin = index % strips_of(logits_) * STRIP;
        count = logits_.pixels - begin < STRIP ? logits_.pixels - begin : STRIP;
        for (int64_t c = 0; c < logits_.classes; ++c) {
            T* to = values.get() + c * STRIP;
            read(at(logits_.data, logits_.element, (image * logits_.classes + c) * logits_.pixels + begin),
                 logits_.element, count, to);
            for (int64_t i = count; i < STRIP; ++i) to[i] = 0;
        }
    }

    // Pixels of weight 0 become 0: whatever they hold, NaN too, they count for nothing.
    void clear(const T* weight) {
        bool any = false;
        for (int64_t i = 0; i < STRIP; ++i) any |= weight[i] == T{0};
        if (!any) return;
        for (int64_t c = 0; c < logits_.classes; ++c) {
            for (int64_t i = 0; i < STRIP; i += LANES<T>) {
                T* value = values.get() + c * STRIP + i;
                const auto counts = load(weight + i) != T{0};
                store(value, counts ? load(value) : Vec<T>{});
            }
        }
    }

    // peak = the highest logit, and total = Σ exp(logit − peak); the values become these exponentials.
    void exponentials() {
        for (int64_t i = 0; i < STRIP; i += LANES<T>) {
            Vec<T> highest = load(values.get() + i);
            for (int64_t c = 1; c < logits_.classes; ++c)
                highest = larger<T>(highest, load(values.get() + c * STRIP + i));
            Vec<T> sum = {};
            for (int64_t c = 0; c < logits_.classes; ++c) {
                T* value = values.get() + c * STRIP + i;
                const Vec<T> mass = exponential(load(value) - highest);
                sum += mass;
                store(value, mass);
            }
            store(peak + i, highest);
            store(total + i, sum);
        }
    }

    int64_t pixel() const { return image * logits_.pixels + begin; }

  private:
    const Logits& logits_;

  public:
    int64_t image, begin, count;
    Buffer<T> values;  // (C, STRIP)
    T peak[STRIP], total[STRIP];
};

// Label as T (−1 where ignored) and weight (0 there) of a strip.
template <class T>
struct StripLabel {
    T label[STRIP], weight[STRIP];

    void take(const Indices& labels, const T* weights, int64_t first, int64_t count, int64_t classes) {
        switch (labels.type) {  // once a strip, so that the loop over it is one of vectors
            case IndexType::u8: read_labels(static_cast<const uint8_t*>(labels.data) + first, count, classes); break;
            case IndexType::i32: read_labels(static_cast<const int32_t*>(labels.data) + first, count, classes); break;
            case IndexType::i64: read_labels(static_cast<const int64_t*>(labels.data) + first, count, classes); break;
        }
        for (int64_t i = count; i < STRIP; ++i) label[i] = -1;
        if (weights)
            for (int64_t i = 0; i < count; ++i) weight[i] = label[i] < 0 ? T{0} : weights[first + i];
        else
            for (int64_t i = 0; i < count; ++i) weight[i] = label[i] < 0 ? T{0} : T{1};
        for (int64_t i = count; i < STRIP; ++i) weight[i] = 0;
    }

  private:
    template <class Stored>
    void read_labels(const Stored* from, int64_t count, int64_t classes) {
        for (int64_t i = 0; i < count; ++i) {
            const Stored own = from[i];
            label[i] = own >= 0 && static_cast<int64_t>(own) < classes ? static_cast<T>(own) : T{-1};
        }
    }
};

}  // namespace mpamatch::MPAMATCH_ISA
