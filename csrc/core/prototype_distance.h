// 1 − max_k cos(z, p_ck) for every pixel and class.
#pragma once

#include "arguments/prototype_distance.h"
#include "core/panels.h"

namespace mpamatch::MPAMATCH_ISA {

template <class T>
void prototype_distance(const PrototypeDistanceArguments& a, ParallelTasks parallel) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const Panels<T> panels{width, count};
    Buffer<T> packed(panels.size());
    pack_as_columns(prototypes, 0, panels, packed.get());

    const int64_t tasks = (a.embedding.count + 1023) / 1024;
    for_each_task(parallel, tasks, [&](int64_t task) {
        const Range range = part_of(a.embedding.count, tasks, task, BLOCK);
        PixelBlock<T> block(a.embedding);
        const int64_t stride = panels.padded();
        Buffer<T> products(BLOCK * stride);
        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            multiply(block.row, rows, panels, packed.get(), products.get(), stride);
            T* distance = static_cast<T*>(a.distance) + begin * a.classes;
            int32_t* nearest = a.nearest + begin * a.classes;
            for (int64_t r = 0; r < rows; ++r) {
                const T* product = products.get() + r * stride;
                for (int64_t c = 0; c < a.classes; ++c, product += a.per_class) {
                    T highest = product[0];
                    int32_t chosen = 0;
                    for (int32_t k = 1; k < a.per_class; ++k) {
                        const bool higher = product[k] > highest;
                        highest = higher ? product[k] : highest;
                        chosen = higher ? k : chosen;
                    }
                    // of equal cosines the lowest k: all are 0 for a zero vector
                    const bool alive = block.inverse[r] > 0;
                    *distance++ = alive ? T{1} - highest * block.inverse[r] : T{1};
                    *nearest++ = alive ? chosen : 0;
                }
            }
        }
    });
}

// With s_c the cosine of the chosen prototype and g_c = −∂L/∂distance_c its gradient:
//   ∂L/∂x = (Σ_c g_c p̂_c − x̂ Σ_c g_c s_c) / ‖x‖,   ∂L/∂p̂_c += g_c x̂.
// The second term is what normalising x takes away, and s = 1 − distance is known: no extra pass over x.
template <class T>
void prototype_distance_backward(const PrototypeDistanceBackwardArguments& a, ParallelTasks parallel) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const int64_t slots = slots_for(a.embedding.count, count * width * int64_t{sizeof(T)});
    Buffer<T> partial(a.grad_prototypes ? slots * count * width : 0, a.grad_prototypes != nullptr);

    for_each_task(parallel, slots, [&](int64_t slot) {
        const Range range = part_of(a.embedding.count, slots, slot, BLOCK);
        T* grad_prototypes = partial.get() + slot * count * width;
        PixelBlock<T> block(a.embedding);
        Buffer<T> grad(width);
        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t n = begin + r;
                const T* distance = static_cast<const T*>(a.distance) + n * a.classes;
                const T* grad_distance = static_cast<const T*>(a.grad_distance) + n * a.classes;
                const int32_t* nearest = a.nearest + n * a.classes;
                const T inverse = block.inverse[r];
                const T* x = block.row[r];
                T along = 0;
                for (int64_t c = 0; c < a.classes; ++c) along -= grad_distance[c] * (1 - distance[c]);
                for (int64_t d = 0; d < width; ++d) grad[d] = -x[d] * (along * inverse * inverse);
                for (int64_t c = 0; c < a.classes; ++c) {
                    const int64_t m = c * a.per_class + nearest[c];
                    const T g = -grad_distance[c] * inverse;
                    const T* p = prototypes.unit.get() + m * width;
                    for (int64_t d = 0; d < width; ++d) grad[d] += g * p[d];
                    if (a.grad_prototypes) {
                        T* to = grad_prototypes + m * width;
                        for (int64_t d = 0; d < width; ++d) to[d] += g * x[d];
                    }
                }
                if (a.grad_embedding)
                    write(grad.get(), a.embedding.element, width, at(a.grad_embedding, a.embedding.element, n * width));
            }
        }
    });
    if (a.grad_prototypes)
        finish_grad_prototypes(prototypes, partial.get(), slots, count * width, width,
                               static_cast<T*>(a.grad_prototypes), parallel);
}

}  // namespace mpamatch::MPAMATCH_ISA
