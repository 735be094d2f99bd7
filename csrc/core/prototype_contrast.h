// Σ w·InfoNCE of pixels against all prototypes, and Σ w·(1 − cos)² with their own.
#pragma once

#include "core/panels.h"

namespace mpamatch::MPAMATCH_ISA {

// What a row of products needs to become logits: the same in both directions.
template <class T>
struct ContrastRow {
    int64_t count, per_class;
    T inverse_temperature;
    bool same_class_negatives;

    // products (padded) → logits = cos/T, excluded ones the lowest number; returns the own cosine.
    T to_logits(T* row, int64_t padded, T inverse, int64_t own) const {
        const T lowest = -static_cast<T>(1e30);
        const T cosine = row[own] * inverse, scale = inverse * inverse_temperature;
        for (int64_t m = 0; m < count; ++m) row[m] *= scale;
        for (int64_t m = count; m < padded; ++m) row[m] = lowest;
        if (!same_class_negatives) {
            const T kept = row[own];
            const int64_t first = own / per_class * per_class;
            for (int64_t k = 0; k < per_class; ++k) row[first + k] = lowest;
            row[own] = kept;
        }
        return cosine;
    }
};

template <class T>
inline T log_sum_exp(const T* row, int64_t padded) {
    Vec<T> highest = load(row);
    for (int64_t m = LANES<T>; m < padded; m += LANES<T>) highest = larger<T>(highest, load(row + m));
    const T peak = largest_of<T>(highest);
    Vec<T> total = {};
    for (int64_t m = 0; m < padded; m += LANES<T>) total += exponential(load(row + m) - peak);
    return peak + std::log(sum_of<T>(total));
}

template <class T>
void prototype_contrast(const PrototypeContrast& a) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const Panels<T> panels{width, count};
    Buffer<T> packed(panels.size());
    pack_as_columns(prototypes, 0, panels, packed.get());
    const ContrastRow<T> contrast{count, a.per_class, static_cast<T>(1 / a.temperature), a.same_class_negatives};
    const T* weight = static_cast<const T*>(a.weight);

    const int64_t tasks = (a.embedding.count + 1023) / 1024;
    Buffer<double> sums(2 * (tasks > 0 ? tasks : 1), true);
    for_each_task(a.parallel, tasks, [&](int64_t task) {
        const Range range = part_of(a.embedding.count, tasks, task, BLOCK);
        PixelBlock<T> block(a.embedding);
        const int64_t stride = panels.padded();
        Buffer<T> products(BLOCK * stride);
        double information = 0, alignment = 0;
        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            multiply(block.row, rows, panels, packed.get(), products.get(), stride);
            for (int64_t r = 0; r < rows; ++r) {
                T* row = products.get() + r * stride;
                T& lse = static_cast<T*>(a.lse)[begin + r];
                const int32_t own = index_at(a.assignment, begin + r, count);
                lse = 0;
                if (own < 0) continue;
                const T cosine = contrast.to_logits(row, stride, block.inverse[r], own);
                lse = log_sum_exp(row, stride);
                const double w = weight ? static_cast<double>(weight[begin + r]) : 1.0;
                information += w * static_cast<double>(lse - row[own]);
                alignment += w * static_cast<double>((1 - cosine) * (1 - cosine));
            }
        }
        sums[task] = information;
        sums[(tasks > 0 ? tasks : 1) + task] = alignment;
    });
    add_slots(sums.get(), tasks, 1, {0, 1}, static_cast<T*>(a.contrast));
    add_slots(sums.get() + (tasks > 0 ? tasks : 1), tasks, 1, {0, 1}, static_cast<T*>(a.alignment));
}

// With logits l = s/T, softmax q (0 where excluded) and upstream gradients g₁ (contrast) and g₂ (alignment), the gradient
// in the cosines is   h_m = w·g₁/T·(q_m − [m own]) − 2·w·g₂·(1 − s_own)·[m own],   and through both normalisations
//   ∂L/∂x = (Σ_m h_m p̂_m − x̂ Σ_m h_m s_m) / ‖x‖,   ∂L/∂p̂_m = Σ_n h_nm x̂_n.
// The logits are recomputed from x block by block: only lse is kept from the forward pass.
template <class T>
void prototype_contrast_backward(const PrototypeContrastBackward& a) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const Panels<T> cosines{width, count}, in_x{count, width}, in_p{BLOCK, width};
    Buffer<T> packed(cosines.size()), rows_of_p(in_x.size());
    pack_as_columns(prototypes, 0, cosines, packed.get());
    pack(in_x, [&](int64_t m, int64_t d) { return prototypes.unit[m * width + d]; }, rows_of_p.get());
    const ContrastRow<T> contrast{count, a.per_class, static_cast<T>(1 / a.temperature), a.same_class_negatives};
    const T* weight = static_cast<const T*>(a.weight);
    const T in_contrast = *static_cast<const T*>(a.grad_contrast) / static_cast<T>(a.temperature);
    const T in_alignment = 2 * *static_cast<const T*>(a.grad_alignment);

    const int64_t stride = cosines.padded(), padded_width = in_x.padded();
    const int64_t slot_size = round_up(count, TILE_ROWS) * padded_width;
    const int64_t slots = slots_for(a.embedding.count, slot_size * int64_t{sizeof(T)});
    Buffer<T> partial(a.grad_prototypes ? slots * slot_size : 0, a.grad_prototypes != nullptr);

    for_each_task(a.parallel, slots, [&](int64_t slot) {
        const Range range = part_of(a.embedding.count, slots, slot, BLOCK);
        PixelBlock<T> block(a.embedding);
        Buffer<T> products(BLOCK * stride), turned(round_up(count, TILE_ROWS) * BLOCK, true), x(in_p.size()), logits(stride);
        Buffer<T> grad(BLOCK * padded_width);
        const T* row_of_products[BLOCK];
        Buffer<const T*> row_of_turned(round_up(count, TILE_ROWS));
        for (int64_t r = 0; r < BLOCK; ++r) row_of_products[r] = products.get() + r * stride;
        for (int64_t m = 0; m < round_up(count, TILE_ROWS); ++m) row_of_turned[m] = turned.get() + m * BLOCK;
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
                if (w == 0) {
                    for (int64_t m = 0; m < stride; ++m) h[m] = 0;
                    continue;
                }
                any = true;
                const T lse = static_cast<const T*>(a.lse)[begin + r];
                const T cosine = contrast.to_logits(h, stride, block.inverse[r], own);
                std::memcpy(logits.get(), h, static_cast<size_t>(stride) * sizeof(T));
                for (int64_t m = 0; m < stride; m += LANES<T>)
                    store(h + m, exponential(load(h + m) - lse) * (w * in_contrast));
                h[own] -= w * (in_contrast + in_alignment * (1 - cosine));
                along[r] = dot(h, logits.get(), stride) * static_cast<T>(a.temperature);  // an excluded h is 0
            }
            if (a.grad_embedding && any) {
                multiply(row_of_products, rows, in_x, rows_of_p.get(), grad.get(), padded_width);
                for (int64_t r = 0; r < rows; ++r) {
                    const T inverse = block.inverse[r], back = along[r] * inverse;
                    T* row = grad.get() + r * padded_width;
                    for (int64_t d = 0; d < width; ++d) row[d] = (row[d] - block.row[r][d] * back) * inverse;
                    write(row, a.embedding.element, width,
                          at(a.grad_embedding, a.embedding.element, (begin + r) * width));
                }
            }
            if (a.grad_embedding && !any)
                std::memset(at(a.grad_embedding, a.embedding.element, begin * width), 0,
                            static_cast<size_t>(rows * width * bytes_of(a.embedding.element)));
            if (a.grad_prototypes && any) {
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t m = 0; m < count; ++m) turned[m * BLOCK + r] = row_of_products[r][m] * block.inverse[r];
                const Panels<T> rows_of_x{rows, width};
                pack(rows_of_x, [&](int64_t r, int64_t d) { return block.row[r][d]; }, x.get());
                multiply<T, true>(row_of_turned.get(), count, rows_of_x, x.get(), partial.get() + slot * slot_size,
                                  padded_width);
            }
        }
    });
    if (a.grad_prototypes)
        finish_grad_prototypes(prototypes, partial.get(), slots, slot_size, padded_width,
                               static_cast<T*>(a.grad_prototypes), a.parallel);
}

}  // namespace mpamatch::MPAMATCH_ISA
