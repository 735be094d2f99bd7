// Balanced assignment, whole and by passes; between passes C·K numbers may be summed over ranks.
#pragma once

#include <limits>

#include "arguments/sinkhorn_assign.h"
#include "core/panels.h"

namespace mpamatch::MPAMATCH_ISA {

template <class T>
void sinkhorn_score(const SinkhornScoreArguments& a, ParallelTasks parallel) {
    const int64_t width = a.embedding.width, K = a.per_class;
    const UnitPrototypes<T> prototypes(a.prototypes, a.classes * K, width);
    const Panels<T> panels{width, K};
    Buffer<T> packed(a.classes * panels.size());
    for (int64_t c = 0; c < a.classes; ++c)
        pack_as_columns(prototypes, c * K, panels, packed.get() + c * panels.size());

    const T lowest = std::numeric_limits<T>::lowest(), scale = static_cast<T>(1 / a.epsilon);
    const int64_t padded = panels.padded(), slot_size = a.classes * padded;
    const int64_t slots = slots_for(a.embedding.count, slot_size * int64_t{sizeof(T)});
    Buffer<T> partial(slots * slot_size, true);
    for_each_task(parallel, slots, [&](int64_t slot) {
        const Range range = part_of(a.embedding.count, slots, slot, BLOCK);
        T* reduced = partial.get() + slot * slot_size;
        if (!a.shifted)
            for (int64_t i = 0; i < slot_size; ++i) reduced[i] = lowest;
        PixelBlock<T> block(a.embedding);
        Buffer<T> products(BLOCK * padded);
        Buffer<int64_t> begins(a.classes + 2);
        int64_t order[BLOCK];
        const T* rows_of_class[BLOCK];
        for (int64_t begin = range.begin; begin < range.end; begin += BLOCK) {
            const int64_t rows = range.end - begin < BLOCK ? range.end - begin : BLOCK;
            block.take(begin, rows);
            // the block's pixels by class (a counting sort), so that a tile has one set of columns; ignored ones last
            int32_t label[BLOCK];
            for (int64_t c = 0; c < a.classes + 2; ++c) begins[c] = 0;
            for (int64_t r = 0; r < rows; ++r) {
                const int32_t own = index_at(a.label, begin + r, a.classes);
                label[r] = own < 0 ? static_cast<int32_t>(a.classes) : own;
                ++begins[label[r] + 1];
            }
            for (int64_t c = 0; c <= a.classes; ++c) begins[c + 1] += begins[c];
            for (int64_t r = 0; r < rows; ++r) order[begins[label[r]]++] = r;
            for (int64_t c = a.classes + 1; c > 0; --c) begins[c] = begins[c - 1];
            begins[0] = 0;

            for (int64_t c = 0; c < a.classes; ++c) {
                const int64_t first = begins[c], members = begins[c + 1] - first;
                if (members == 0) continue;
                for (int64_t i = 0; i < round_up(members, ROW_PADDING); ++i)
                    rows_of_class[i] = block.row[order[first + (i < members ? i : members - 1)]];
                multiply(rows_of_class, members, panels, packed.get() + c * panels.size(), products.get(), padded);
                for (int64_t i = 0; i < members; ++i) {
                    const int64_t r = order[first + i];
                    T* row = products.get() + i * padded;
                    const T by = inverse_norm(block.row[r], width) * scale;
                    for (int64_t k = 0; k < padded; k += LANES<T>) {
                        const Vec<T> score = load(row + k) * by, so_far = load(reduced + c * padded + k);
                        store(row + k, score);
                        const Vec<T> next = a.shifted ? so_far + exponential(score - scale) : larger<T>(so_far, score);
                        store(reduced + c * padded + k, next);
                    }
                    std::memcpy(static_cast<T*>(a.score) + (begin + r) * K, row, static_cast<size_t>(K) * sizeof(T));
                }
            }
            for (int64_t i = begins[a.classes]; i < rows; ++i)
                std::memset(static_cast<T*>(a.score) + (begin + order[i]) * K, 0, static_cast<size_t>(K) * sizeof(T));
        }
    });
    T* reduced = static_cast<T*>(a.reduced);
    for (int64_t c = 0; c < a.classes; ++c) {
        for (int64_t k = 0; k < K; ++k) {
            T value = a.shifted ? T{0} : lowest;
            for (int64_t s = 0; s < slots; ++s) {
                const T next = partial[s * slot_size + c * padded + k];
                value = a.shifted ? value + next : next > value ? next : value;
            }
            reduced[c * K + k] = value;
        }
    }
}

template <class T>
inline void shift_log_u(const void* log_u, const void* total, int64_t count, T* to) {
    for (int64_t i = 0; i < count; ++i) {
        const T mass = static_cast<const T*>(total)[i];
        to[i] = static_cast<const T*>(log_u)[i] - (mass > 0 ? std::log(mass) : T{0});
    }
}

template <class T>
void sinkhorn_step(const SinkhornStepArguments& a, ParallelTasks parallel) {
    const int64_t K = a.per_class, padded = round_up(K, LANES<T>), slot_size = a.classes * padded;
    shift_log_u(a.log_u, a.total, a.classes * K, static_cast<T*>(a.new_log_u));
    const T lowest = std::numeric_limits<T>::lowest();
    Buffer<T> log_u(slot_size);  // lanes beyond K hold the lowest number, which exp turns into 0
    for (int64_t i = 0; i < slot_size; ++i)
        log_u[i] = i % padded < K ? static_cast<const T*>(a.new_log_u)[i / padded * K + i % padded] : lowest;

    const T* scores = static_cast<const T*>(a.score);
    const int64_t slots = slots_for(a.count, slot_size * int64_t{sizeof(T)});
    Buffer<T> partial(slots * slot_size, true);
    for_each_task(parallel, slots, [&](int64_t slot) {
        const Range range = part_of(a.count, slots, slot, BLOCK);
        Buffer<T> row(padded), last(padded, true);
        for (int64_t n = range.begin; n < range.end; ++n) {
            const int32_t c = index_at(a.label, n, a.classes);
            if (c < 0) continue;
            const T* score = scores + n * K;
            if (n * K + padded > a.count * K) {  // whole vectors would end beyond the last row
                std::memcpy(last.get(), score, static_cast<size_t>(K) * sizeof(T));
                score = last.get();
            }
            const T* u = log_u.get() + c * padded;
            Vec<T> highest = broadcast(lowest);
            for (int64_t k = 0; k < padded; k += LANES<T>) {
                const Vec<T> shift = load(u + k);
                const Vec<T> value = shift == lowest ? shift : load(score + k) + shift;
                highest = larger<T>(highest, value);
                store(row.get() + k, value);
            }
            const T peak = a.rows ? largest_of<T>(highest) : T{0};
            Vec<T> sum = {};
            for (int64_t k = 0; k < padded; k += LANES<T>) {
                const Vec<T> mass = exponential(load(row.get() + k) - peak);
                sum += mass;
                store(row.get() + k, mass);
            }
            const T by = a.rows ? 1 / sum_of<T>(sum) : T{1};
            T* total = partial.get() + slot * slot_size + c * padded;
            for (int64_t k = 0; k < padded; k += LANES<T>) store(total + k, load(total + k) + load(row.get() + k) * by);
        }
    });
    for (int64_t c = 0; c < a.classes; ++c)
        add_slots(partial.get() + c * padded, slots, slot_size, {0, K}, static_cast<T*>(a.new_total) + c * K);
}

template <class T>
void sinkhorn_pick(const SinkhornPickArguments& a, ParallelTasks parallel) {
    const int64_t K = a.per_class;
    Buffer<T> log_u(a.classes * K);
    shift_log_u(a.log_u, a.total, a.classes * K, log_u.get());
    const int64_t tasks = (a.count + 4095) / 4096;
    for_each_task(parallel, tasks, [&](int64_t task) {
        const Range range = part_of(a.count, tasks, task, BLOCK);
        for (int64_t n = range.begin; n < range.end; ++n) {
            const int32_t c = index_at(a.label, n, a.classes);
            a.assignment[n] = -1;
            if (c < 0) continue;
            const T *score = static_cast<const T*>(a.score) + n * K, *u = log_u.get() + c * K;
            T highest = score[0] + u[0];
            int64_t chosen = 0;
            for (int64_t k = 1; k < K; ++k) {
                const T value = score[k] + u[k];
                chosen = value > highest ? k : chosen;
                highest = value > highest ? value : highest;
            }
            a.assignment[n] = static_cast<int32_t>(c * K + chosen);
        }
    });
}

template <class T>
void sinkhorn_assign(const SinkhornAssignArguments& a, ParallelTasks parallel) {
    const Pixels& pixels = a.embedding;
    const Element element = sizeof(T) == 8 ? Element::f64 : Element::f32;
    const int64_t count = a.classes * a.per_class;
    Buffer<T> score(pixels.count * a.per_class), log_u(count, true), total(count), new_log_u(count), new_total(count);
    sinkhorn_score<T>(
        {pixels, a.prototypes, a.classes, a.per_class, a.label, a.epsilon, a.shifted, score.get(), total.get()},
        parallel);
    const auto pass = [&](bool rows) {
        sinkhorn_step<T>({score.get(), element, pixels.count, a.classes, a.per_class, a.label, log_u.get(), total.get(),
                          rows, new_log_u.get(), new_total.get()},
                         parallel);
        const size_t bytes = static_cast<size_t>(count) * sizeof(T);
        std::memcpy(log_u.get(), new_log_u.get(), bytes);
        std::memcpy(total.get(), new_total.get(), bytes);
    };
    const bool from_maxima = a.iterations > 0 && !a.shifted;
    for (int64_t i = 0; i < count; ++i) {
        if (from_maxima) log_u[i] = -total[i];
        if (from_maxima || a.iterations == 0) total[i] = 1;
    }
    if (from_maxima) pass(false);
    for (int64_t i = 1; i < a.iterations; ++i) pass(true);
    sinkhorn_pick<T>(
        {score.get(), element, pixels.count, a.classes, a.per_class, a.label, log_u.get(), total.get(), a.assignment},
        parallel);
}

}  // namespace mpamatch::MPAMATCH_ISA
