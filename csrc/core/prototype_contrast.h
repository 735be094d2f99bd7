// Σ w·InfoNCE of pixels against all prototypes, and Σ w·(1 − cos)² with their own.
#pragma once

#include "arguments/prototype_contrast.h"
#include "core/tiles.h"

namespace mpamatch::MPAMATCH_ISA {

// The logits cos/T of a block of pixels, a row of BLOCK pixels for each prototype, and which of them are their own: the
// same in both directions. A pixel of weight 0 may have any logits, NaN too.
template <class T>
class BlockLogits {
  public:
    template <class Arguments>
    BlockLogits(const Arguments& a, const UnitPrototypes<T>& prototypes, const PackedRows<T>& packed)
        : products_(prototypes, packed),
          assignment_(a.assignment),
          weight_(static_cast<const T*>(a.weight)),
          per_class_(a.per_class),
          count_(prototypes.count),
          temperature_(static_cast<T>(a.temperature)),
          same_class_negatives_(a.same_class_negatives) {}

    // Returns whether any pixel counts.
    bool take(const PixelBlock<T>& block, int64_t begin, int64_t rows) {
        products_.take(block, rows);
        bool any = false;
        for (int64_t r = 0; r < BLOCK; ++r) {
            const int32_t chosen = r < rows ? index_at(assignment_, begin + r, count_) : -1;
            weight[r] = chosen < 0 ? T{0} : weight_ ? weight_[begin + r] : T{1};
            own[r] = weight[r] == 0 ? T{0} : static_cast<T>(chosen);
            any |= weight[r] != 0;
        }
        if (!any) return false;
        for (int64_t r = 0; r < BLOCK; ++r) own_cosine[r] = *own_product(r) * products_.inverse[r];
        for (int64_t n = 0; n < BLOCK; n += LANES<T>) {
            const Vec<T> scale = load(products_.inverse + n) / temperature_;
            for (int64_t m = 0; m < count_; ++m) store(of(m) + n, load(of(m) + n) * scale);
        }
        if (!same_class_negatives_) exclude();
        return true;
    }

    T* of(int64_t prototype) { return products_.of(prototype); }
    T own_logit(int64_t r) { return *own_product(r); }
    T* inverse() { return products_.inverse; }

    T weight[BLOCK];      // 0 beyond the last pixel
    T own[BLOCK];         // the own prototype, a whole number; 0 where the weight is
    T own_cosine[BLOCK];  // with it

  private:
    static constexpr T LOWEST = -static_cast<T>(1e30);  // its exp is 0

    T* own_product(int64_t r) { return of(static_cast<int64_t>(own[r])) + r; }

    void exclude() {
        for (int64_t r = 0; r < BLOCK; ++r) {
            const T kept = own_logit(r);
            const int64_t first = static_cast<int64_t>(own[r]) / per_class_ * per_class_;
            for (int64_t k = 0; k < per_class_; ++k) of(first + k)[r] = LOWEST;
            *own_product(r) = kept;
        }
    }

    BlockProducts<T> products_;
    const Indices assignment_;
    const T* weight_;
    int64_t per_class_, count_;
    T temperature_;
    bool same_class_negatives_;
};

// peak = the highest logit of a pixel, total = Σ exp(logit − peak).
template <class T>
inline void add_exponentials(BlockLogits<T>& logits, int64_t count, T* peak, T* total) {
    for (int64_t n = 0; n < BLOCK; n += LANES<T>) {
        Vec<T> highest = load(logits.of(0) + n);
        for (int64_t m = 1; m < count; ++m) highest = larger<T>(highest, load(logits.of(m) + n));
        Vec<T> sum = {};
        for (int64_t m = 0; m < count; ++m) sum += exponential(load(logits.of(m) + n) - highest);
        store(peak + n, highest);
        store(total + n, sum);
    }
}

template <class T>
void prototype_contrast(const PrototypeContrastArguments& a, ParallelTasks parallel) {
    const int64_t count = a.classes * a.per_class;
    const UnitPrototypes<T> prototypes(a.prototypes, count, a.embedding.width);
    const PackedRows<T> packed(prototypes.unit.get(), count, a.embedding.width);

    const int64_t tasks = (a.embedding.count + 1023) / 1024;
    Buffer<double> sums(2 * (tasks > 0 ? tasks : 1), true);
    for_each_task(parallel, tasks, [&](int64_t task) {
        const Range range = part_of(a.embedding.count, tasks, task, BLOCK);
        PixelBlock<T> block(a.embedding);
        BlockLogits<T> logits(a, prototypes, packed);
        const TileSession tiles;
        T peak[BLOCK], total[BLOCK];
        double information = 0, alignment = 0;
        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            T* lse = static_cast<T*>(a.lse) + begin;
            block.take(begin, rows);
            if (!logits.take(block, begin, rows)) {
                std::memset(lse, 0, static_cast<size_t>(rows) * sizeof(T));
                continue;
            }
            add_exponentials(logits, count, peak, total);
            for (int64_t n = 0; n < BLOCK; n += LANES<T>) store(total + n, logarithm(load(total + n)));
            for (int64_t r = 0; r < rows; ++r) {
                const T w = logits.weight[r], missed = 1 - logits.own_cosine[r];
                lse[r] = w == 0 ? T{0} : peak[r] + total[r];
                if (w == 0) continue;  // whatever its embedding holds, NaN too
                information += static_cast<double>(w * (lse[r] - logits.own_logit(r)));
                alignment += static_cast<double>(w * missed * missed);
            }
        }
        sums[task] = information;
        sums[(tasks > 0 ? tasks : 1) + task] = alignment;
    });
    add_slots(sums.get(), tasks, 1, {0, 1}, static_cast<T*>(a.contrast));
    add_slots(sums.get() + (tasks > 0 ? tasks : 1), tasks, 1, {0, 1}, static_cast<T*>(a.alignment));
}

// With logits l = s/T, softmax q (0 if excluded) and upstream gradients g₁ (contrast) and g₂ (alignment), the gradient
// in the cosines is
//   h_m = w·g₁/T·(q_m − [m own]) − 2·w·g₂·(1 − s_own)·[m own],
// and through both normalisations
//   ∂L/∂x = (Σ_m h_m p̂_m − x̂ Σ_m h_m s_m) / ‖x‖,   ∂L/∂p̂_m = Σ_n h_nm x̂_n.
// The logits are recomputed from x block by block: only lse is kept from the forward pass. What both sums need is
// h/‖x‖, and it takes the place of the logits.
template <class T>
class ContrastGradient {
  public:
    ContrastGradient(const PrototypeContrastBackwardArguments& a, const UnitPrototypes<T>& prototypes)
        : count_(prototypes.count),
          width_(prototypes.width),
          temperature_(static_cast<T>(a.temperature)),
          in_contrast_(*static_cast<const T*>(a.grad_contrast) / static_cast<T>(a.temperature)),
          in_alignment_(2 * *static_cast<const T*>(a.grad_alignment)),
          packed_(panels_of<T>(prototypes.width) * GROUP<T> * prototypes.count) {
        Buffer<const T*> row(count_);
        for (int64_t m = 0; m < count_; ++m) row[m] = prototypes.unit.get() + m * width_;
        for (int64_t first = 0; first < width_; first += GROUP<T>)
            pack_panel(row.get(), count_, width_, first, packed_.get() + first * count_);
    }

    // The logits become h/‖x‖, and back[r] = Σ_m h_m s_m / ‖x‖²; both are 0 where the weight is.
    void from_logits(BlockLogits<T>& logits, const T* lse, T* back) const {
        T at_own[BLOCK];
        for (int64_t r = 0; r < BLOCK; ++r)
            at_own[r] = logits.weight[r] * (in_contrast_ + in_alignment_ * (1 - logits.own_cosine[r]));
        for (int64_t n = 0; n < BLOCK; n += LANES<T>) {
            const Vec<T> w = load(logits.weight + n), gain = w * in_contrast_, minus = load(at_own + n);
            const Vec<T> inverse = load(logits.inverse() + n), own = load(logits.own + n), shift = load(lse + n);
            const auto counts = w != T{0};
            Vec<T> along = {};
            for (int64_t m = 0; m < count_; ++m) {
                const Vec<T> logit = load(logits.of(m) + n), h = exponential(logit - shift) * gain;
                const Vec<T> all = own == static_cast<T>(m) ? h - minus : h;
                along += all * logit;  // of an excluded one 0
                store(logits.of(m) + n, counts ? all * inverse : Vec<T>{});
            }
            store(back + n, counts ? along * temperature_ * inverse * inverse : Vec<T>{});
        }
    }

    // The gradient in the columns from `first` on of `rows` pixels: use(r, v, vector). x: their panel (rows, GROUP).
    template <class Use>
    void pull(const T* h, const T* back, const T* x, int64_t rows, int64_t first, const Use& use) const {
        Nothing nothing;
        const Tiles tiles{rows};
        for (int64_t tile = 0; tile < tiles.count(); ++tile) {
            const int64_t row = tiles.first(tile);
            multiply_rows<T, 1>(
                tiles.height(tile), h + row, BLOCK, count_, packed_.get() + first * count_, nothing,
                [](int, int) { return Vec<T>{}; },
                [&](int r, int v, Vec<T> sum) {
                    use(row + r, v, sum - load(x + (row + r) * GROUP<T> + v * LANES<T>) * back[row + r]);
                });
        }
    }

    // Adds the gradient in the unit prototypes: `to` (prototypes, stride), its first column that of the panel x.
    void add_to_prototypes(const T* h, const T* x, int64_t rows, T* to, int64_t stride) const {
        Nothing nothing;
        const Tiles tiles{count_};
        for (int64_t tile = 0; tile < tiles.count(); ++tile) {
            const int64_t row = tiles.first(tile);
            T* out = to + row * stride;
            multiply_rows<T, BLOCK>(
                tiles.height(tile), h + row * BLOCK, 1, rows, x, nothing,
                [&](int r, int v) { return load(out + r * stride + v * LANES<T>); },
                [&](int r, int v, Vec<T> sum) { store(out + r * stride + v * LANES<T>, sum); });
        }
    }

  private:
    int64_t count_, width_;
    T temperature_, in_contrast_, in_alignment_;
    Buffer<T> packed_;
};

// Whether a gradient of N rows is written around the caches: where it is more than they hold, and rows are vectors.
template <class T>
inline bool goes_around(const Pixels& pixels, const void* to) {
    constexpr int64_t CACHES = int64_t{16} << 20;
    const bool aligned = reinterpret_cast<uintptr_t>(to) % VECTOR_BYTES == 0 && pixels.width % LANES<T> == 0;
    return aligned && pixels.count * pixels.width * int64_t{sizeof(T)} > CACHES;
}

template <class T>
void prototype_contrast_backward(const PrototypeContrastBackwardArguments& a, ParallelTasks parallel) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const Element element = a.embedding.element;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const PackedRows<T> packed(prototypes.unit.get(), count, width);
    const ContrastGradient<T> gradient(a, prototypes);
    const bool around = goes_around<T>(a.embedding, a.grad_embedding);

    const int64_t padded_width = panels_of<T>(width) * GROUP<T>, slot_size = count * padded_width;
    const int64_t slots = slots_for(a.embedding.count, slot_size * int64_t{sizeof(T)});
    Buffer<T> partial(a.grad_prototypes ? slots * slot_size : 0, a.grad_prototypes != nullptr);

    for_each_task(parallel, slots, [&](int64_t slot) {
        const Range range = part_of(a.embedding.count, slots, slot, BLOCK);
        PixelBlock<T> block(a.embedding);
        BlockLogits<T> logits(a, prototypes, packed);
        Buffer<T> x(BLOCK * GROUP<T>), pulled(BLOCK * GROUP<T>), nothing(width, true);
        const TileSession tiles;
        T lse[BLOCK] = {}, back[BLOCK];

        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            if (!logits.take(block, begin, rows)) {
                if (a.grad_embedding)
                    std::memset(at(a.grad_embedding, element, begin * width), 0,
                                static_cast<size_t>(rows * width * bytes_of(element)));
                continue;
            }
            std::memcpy(lse, static_cast<const T*>(a.lse) + begin, static_cast<size_t>(rows) * sizeof(T));
            gradient.from_logits(logits, lse, back);
            for (int64_t r = 0; r < rows; ++r)
                if (logits.weight[r] == 0) block.row[r] = nothing.get();  // whatever its embedding holds, NaN too
            for (int64_t first = 0; first < width; first += GROUP<T>) {
                const int64_t present = width - first < GROUP<T> ? width - first : GROUP<T>;
                pack_panel(block.row, rows, width, first, x.get());
                if (a.grad_embedding) {
                    const bool in_place = is_stored_as<T>(element) && present == GROUP<T>;
                    T* to = in_place ? static_cast<T*>(a.grad_embedding) + begin * width + first : pulled.get();
                    const int64_t stride = in_place ? width : GROUP<T>;
                    gradient.pull(logits.of(0), back, x.get(), rows, first, [&](int64_t r, int v, Vec<T> value) {
                        T* place = to + r * stride + v * LANES<T>;
                        if (around && in_place)
                            store_around(place, value);
                        else
                            store(place, value);
                    });
                    for (int64_t r = 0; r < (in_place ? 0 : rows); ++r)
                        write(pulled.get() + r * GROUP<T>, element, present,
                              at(a.grad_embedding, element, (begin + r) * width + first));
                }
                if (a.grad_prototypes)
                    gradient.add_to_prototypes(logits.of(0), x.get(), rows, partial.get() + slot * slot_size + first,
                                               padded_width);
            }
        }
        if (around) after_stores_around();
    });
    if (a.grad_prototypes)
        finish_grad_prototypes(prototypes, partial.get(), slots, slot_size, padded_width,
                               static_cast<T*>(a.grad_prototypes), parallel);
}

}  // namespace mpamatch::MPAMATCH_ISA
