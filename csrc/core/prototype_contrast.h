// Σ w·InfoNCE of pixels against all prototypes, and Σ w·(1 − cos)² with their own.
#pragma once

#include "arguments/prototype_contrast.h"
#include "core/panels.h"

namespace mpamatch::MPAMATCH_ISA {

// What a row of products needs to become logits: the same in both directions.
template <class T>
class ContrastRow {
  public:
    ContrastRow(int64_t classes, int64_t per_class, double temperature, bool same_class_negatives)
        : inverse_temperature_(static_cast<T>(1 / temperature)),
          per_class_(per_class),
          same_class_negatives_(same_class_negatives),
          count_(classes * per_class),
          padded_(round_up(count_, LANES<T>)),
          padding_(padded_) {
        for (int64_t m = 0; m < padded_; ++m) padding_[m] = m < count_ ? T{0} : LOWEST;
    }

    // products (padded) → logits = cos/T, excluded ones the lowest number; returns the own cosine.
    T to_logits(T* row, T inverse, int64_t own) const {
        const T cosine = row[own] * inverse, scale = inverse * inverse_temperature_;
        for (int64_t m = 0; m < padded_; m += LANES<T>)
            store(row + m, load(row + m) * scale + load(padding_.get() + m));
        if (!same_class_negatives_) {
            const T kept = row[own];
            const int64_t first = own / per_class_ * per_class_;
            for (int64_t k = 0; k < per_class_; ++k) row[first + k] = LOWEST;
            row[own] = kept;
        }
        return cosine;
    }

    // The highest logit and Σ exp(logit − highest).
    void reduce(const T* row, T* highest, T* total) const {
        Vec<T> high = load(row);
        for (int64_t m = LANES<T>; m < padded_; m += LANES<T>) high = larger<T>(high, load(row + m));
        *highest = largest_of<T>(high);
        Vec<T> sum = {};
        for (int64_t m = 0; m < padded_; m += LANES<T>) sum += exponential(load(row + m) - *highest);
        *total = sum_of<T>(sum);
    }

  private:
    static constexpr T LOWEST = -static_cast<T>(1e30);
    T inverse_temperature_;
    int64_t per_class_;
    bool same_class_negatives_;
    int64_t count_, padded_;
    Buffer<T> padding_;
};

template <class T>
void prototype_contrast(const PrototypeContrastArguments& a, ParallelTasks parallel) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const Panels<T> panels{width, count};
    Buffer<T> packed(panels.size());
    pack_as_columns(prototypes, 0, panels, packed.get());
    const ContrastRow<T> contrast(a.classes, a.per_class, a.temperature, a.same_class_negatives);
    const T* weight = static_cast<const T*>(a.weight);

    const int64_t tasks = (a.embedding.count + 1023) / 1024;
    Buffer<double> sums(2 * (tasks > 0 ? tasks : 1), true);
    for_each_task(parallel, tasks, [&](int64_t task) {
        const Range range = part_of(a.embedding.count, tasks, task, BLOCK);
        PixelBlock<T> block(a.embedding);
        const int64_t stride = panels.padded();
        Buffer<T> products(BLOCK * stride);
        double information = 0, alignment = 0;
        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            multiply(block.row, rows, panels, packed.get(), products.get(), stride);
            T peak[BLOCK], total[BLOCK], log_total[BLOCK], own_logit[BLOCK], missed[BLOCK], w[BLOCK];
            for (int64_t r = 0; r < BLOCK; ++r) {
                const int32_t own = r < rows ? index_at(a.assignment, begin + r, count) : -1;
                peak[r] = own_logit[r] = missed[r] = 0, total[r] = 1;  // so that lse is 0
                w[r] = own < 0 ? T{0} : weight ? weight[begin + r] : T{1};
                if (w[r] == 0) continue;  // whatever its embedding holds, NaN too
                T* row = products.get() + r * stride;
                missed[r] = 1 - contrast.to_logits(row, block.inverse[r], own);
                contrast.reduce(row, &peak[r], &total[r]);
                own_logit[r] = row[own];
            }
            for (int64_t r = 0; r < BLOCK; r += LANES<T>) store(log_total + r, logarithm(load(total + r)));
            for (int64_t r = 0; r < rows; ++r) {
                const T lse = peak[r] + log_total[r];
                static_cast<T*>(a.lse)[begin + r] = lse;
                information += static_cast<double>(w[r] * (lse - own_logit[r]));
                alignment += static_cast<double>(w[r] * missed[r] * missed[r]);
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
// The logits are recomputed from x block by block: only lse is kept from the forward pass.
template <class T>
void prototype_contrast_backward(const PrototypeContrastBackwardArguments& a, ParallelTasks parallel) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const Panels<T> cosines{width, count}, in_x{count, width}, in_p{BLOCK, width};
    Buffer<T> packed(cosines.size()), rows_of_p(in_x.size());
    pack_as_columns(prototypes, 0, cosines, packed.get());
    pack(in_x, [&](int64_t m, int64_t d) { return prototypes.unit[m * width + d]; }, rows_of_p.get());
    const ContrastRow<T> contrast(a.classes, a.per_class, a.temperature, a.same_class_negatives);
    const T* weight = static_cast<const T*>(a.weight);
    const T in_contrast = *static_cast<const T*>(a.grad_contrast) / static_cast<T>(a.temperature);
    const T in_alignment = 2 * *static_cast<const T*>(a.grad_alignment);

    const int64_t stride = cosines.padded(), padded_width = in_x.padded();
    const int64_t slot_size = round_up(count, ROW_PADDING) * padded_width;
    const int64_t slots = slots_for(a.embedding.count, slot_size * int64_t{sizeof(T)});
    Buffer<T> partial(a.grad_prototypes ? slots * slot_size : 0, a.grad_prototypes != nullptr);

    for_each_task(parallel, slots, [&](int64_t slot) {
        const Range range = part_of(a.embedding.count, slots, slot, BLOCK);
        PixelBlock<T> block(a.embedding);
        Buffer<T> products(BLOCK * stride), turned(round_up(count, ROW_PADDING) * BLOCK, true);
        Buffer<T> x(in_p.size()), logits(stride), nothing(width, true);
        const T* row_of_products[BLOCK];
        Buffer<const T*> row_of_turned(round_up(count, ROW_PADDING));
        for (int64_t r = 0; r < BLOCK; ++r) row_of_products[r] = products.get() + r * stride;
        for (int64_t m = 0; m < round_up(count, ROW_PADDING); ++m) row_of_turned[m] = turned.get() + m * BLOCK;
        T along[BLOCK];

        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            multiply(block.row, rows, cosines, packed.get(), products.get(), stride);
            bool any = false;
            for (int64_t r = 0; r < rows; ++r) {
                T* h = products.get() + r * stride;
                const int32_t own = index_at(a.assignment, begin + r, count);
                const T w = own < 0 ? T{0} : weight ? weight[begin + r] : T{1};
                along[r] = 0;
                if (w == 0) {  // whatever its embedding holds, NaN too
                    for (int64_t m = 0; m < stride; ++m) h[m] = 0;
                    block.row[r] = nothing.get();
                    block.inverse[r] = 0;
                    continue;
                }
                any = true;
                const T lse = static_cast<const T*>(a.lse)[begin + r];
                const T cosine = contrast.to_logits(h, block.inverse[r], own);
                std::memcpy(logits.get(), h, static_cast<size_t>(stride) * sizeof(T));
                for (int64_t m = 0; m < stride; m += LANES<T>)
                    store(h + m, exponential(load(h + m) - lse) * (w * in_contrast));
                h[own] -= w * (in_contrast + in_alignment * (1 - cosine));
                along[r] = dot(h, logits.get(), stride) * static_cast<T>(a.temperature);  // an excluded h is 0
            }
            if (a.grad_embedding && any) {
                multiply_and_use(row_of_products, rows, in_x, rows_of_p.get(), [&](int64_t d, int64_t wide, T* pulled) {
                    const int64_t count_d = width - d < wide ? width - d : wide;
                    for (int64_t r = 0; r < rows; ++r, pulled += Panels<T>::WIDEST) {
                        const T inverse = block.inverse[r], back = along[r] * inverse;
                        for (int64_t i = 0; i < count_d; ++i)
                            pulled[i] = (pulled[i] - block.row[r][d + i] * back) * inverse;
                        write(pulled, a.embedding.element, count_d,
                              at(a.grad_embedding, a.embedding.element, (begin + r) * width + d));
                    }
                });
            }
            if (a.grad_embedding && !any)
                std::memset(at(a.grad_embedding, a.embedding.element, begin * width), 0,
                            static_cast<size_t>(rows * width * bytes_of(a.embedding.element)));
            if (a.grad_prototypes && any) {
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t m = 0; m < count; ++m)
                        turned[m * BLOCK + r] = row_of_products[r][m] * block.inverse[r];
                const Panels<T> rows_of_x{rows, width};
                pack_rows(rows_of_x, block.row, x.get());
                multiply<T, true>(row_of_turned.get(), count, rows_of_x, x.get(), partial.get() + slot * slot_size,
                                  padded_width);
            }
        }
    });
    if (a.grad_prototypes)
        finish_grad_prototypes(prototypes, partial.get(), slots, slot_size, padded_width,
                               static_cast<T*>(a.grad_prototypes), parallel);
}

}  // namespace mpamatch::MPAMATCH_ISA
