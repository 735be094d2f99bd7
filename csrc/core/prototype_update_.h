// Sums of unit pixels per prototype, and the step of the prototypes towards them.
#pragma once

#include "arguments/prototype_update_.h"
#include "core/panels.h"

namespace mpamatch::MPAMATCH_ISA {

template <class T>
void prototype_sum(const PrototypeSumArguments& a, ParallelTasks parallel) {
    const int64_t width = a.embedding.width, size = a.prototypes * width;
    const int64_t slots = slots_for(a.embedding.count, size * int64_t{sizeof(T)});
    const T* weight = static_cast<const T*>(a.weight);
    Buffer<T> partial(slots * size, true);
    for_each_task(parallel, slots, [&](int64_t slot) {
        const Range range = part_of(a.embedding.count, slots, slot, BLOCK);
        Buffer<T> converted(width);
        const bool in_place = is_stored_as<T>(a.embedding.element);
        for (int64_t n = range.begin; n < range.end; ++n) {
            const int32_t m = index_at(a.assignment, n, a.prototypes);
            const T w = m < 0 ? T{0} : weight ? weight[n] : T{1};
            if (w == 0) continue;
            const void* from = at(a.embedding.data, a.embedding.element, n * a.embedding.stride);
            if (!in_place) read(from, a.embedding.element, width, converted.get());
            const T* x = in_place ? static_cast<const T*>(from) : converted.get();
            const T by = w * inverse_norm(x, width);
            T* total = partial.get() + slot * size + m * width;
            for (int64_t d = 0; d < width; ++d) total[d] += by * x[d];
        }
    });
    const int64_t parts = size < (1 << 14) ? 1 : 16;
    for_each_task(parallel, parts, [&](int64_t part) {
        add_slots(partial.get(), slots, size, part_of(size, parts, part, 16), static_cast<T*>(a.total));
    });
}

template <class T>
void prototype_move_(const PrototypeMoveArguments& a) {
    Buffer<T> moved(a.width);
    for (int64_t i = 0; i < a.count; ++i) {
        T* p = static_cast<T*>(a.prototypes) + i * a.width;
        const T* total = static_cast<const T*>(a.total) + i * a.width;
        const T inverse = inverse_norm(total, a.width);
        if (inverse == 0) continue;
        const T ramp = 1 - 1 / static_cast<T>(a.updates[i] + 1), most = static_cast<T>(a.momentum);
        const T m = ramp < most ? ramp : most;
        for (int64_t d = 0; d < a.width; ++d) moved[d] = m * p[d] + (1 - m) * (total[d] * inverse);
        const T length = inverse_norm(moved.get(), a.width);
        for (int64_t d = 0; d < a.width; ++d) p[d] = moved[d] * length;
        ++a.updates[i];
    }
}

}  // namespace mpamatch::MPAMATCH_ISA
