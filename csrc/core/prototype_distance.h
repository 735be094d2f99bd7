// 1 − max_k cos(z, p_ck) for every pixel and class.
#pragma once

#include "arguments/prototype_distance.h"
#include "core/tiles.h"

namespace mpamatch::MPAMATCH_ISA {

// Of the products with the prototypes of a class: the highest and its k, of equal ones the lowest. A tile of vectors at
// a time, each waiting for its own comparisons alone.
template <class T>
inline void take_nearest(BlockProducts<T>& products, int64_t first, int64_t per_class, T* highest, T* chosen) {
    constexpr int AT_ONCE = 4;
    for (int64_t n = 0; n < BLOCK; n += AT_ONCE * LANES<T>) {
        Vec<T> high[AT_ONCE], k_high[AT_ONCE];
        for (int v = 0; v < AT_ONCE; ++v) high[v] = load(products.of(first) + n + v * LANES<T>), k_high[v] = Vec<T>{};
        for (int64_t k = 1; k < per_class; ++k) {
            for (int v = 0; v < AT_ONCE; ++v) {
                const Vec<T> product = load(products.of(first + k) + n + v * LANES<T>);
                const auto higher = product > high[v];
                high[v] = higher ? product : high[v];
                k_high[v] = higher ? broadcast(static_cast<T>(k)) : k_high[v];
            }
        }
        for (int v = 0; v < AT_ONCE; ++v) {
            store(highest + n + v * LANES<T>, high[v]);
            store(chosen + n + v * LANES<T>, k_high[v]);
        }
    }
}

template <class T>
void prototype_distance(const PrototypeDistanceArguments& a, ParallelTasks parallel) {
    const int64_t count = a.classes * a.per_class, width = a.embedding.width;
    const UnitPrototypes<T> prototypes(a.prototypes, count, width);
    const PackedRows<T> packed(prototypes.unit.get(), count, width);

    const int64_t tasks = (a.embedding.count + 1023) / 1024;
    for_each_task(parallel, tasks, [&](int64_t task) {
        const Range range = part_of(a.embedding.count, tasks, task, BLOCK);
        PixelBlock<T> block(a.embedding);
        BlockProducts<T> products(prototypes, packed);
        const TileSession tiles;
        T highest[BLOCK], chosen[BLOCK];
        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            products.take(block, rows);
            for (int64_t c = 0; c < a.classes; ++c) {
                take_nearest(products, c * a.per_class, a.per_class, highest, chosen);
                T* distance = static_cast<T*>(a.distance) + begin * a.classes + c;
                int32_t* nearest = a.nearest + begin * a.classes + c;
                for (int64_t r = 0; r < rows; ++r) {
                    const T inverse = products.inverse[r];
                    distance[r * a.classes] = inverse > 0 ? T{1} - highest[r] * inverse : T{1};
                    // all cosines are 0 for a zero vector
                    nearest[r * a.classes] = inverse > 0 ? static_cast<int32_t>(chosen[r]) : 0;
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
                const T* x = block.row[r];
                const T inverse = inverse_norm(x, width);
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
