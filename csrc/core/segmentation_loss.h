// Σ w·CE and per class Σ w p y, Σ w p², Σ w y in one pass over the logits.
#pragma once

#include "arguments/segmentation_loss.h"
#include "core/softmax.h"

namespace mpamatch::MPAMATCH_ISA {

template <class T>
void segmentation_loss(const SegmentationLossArguments& a, ParallelTasks parallel) {
    const int64_t classes = a.logits.classes, strips = a.logits.batch * strips_of(a.logits);
    const int64_t slots = slots_for(a.logits.batch * a.logits.pixels, 0), size = 1 + 3 * classes;
    Buffer<double> partial(slots * size, true);
    for_each_task(parallel, slots, [&](int64_t slot) {
        const Range range = part_of(strips, slots, slot, 1);
        Strip<T> strip(a.logits);
        StripLabel<T> own;
        T own_logit[STRIP], share[STRIP];  // share = w / Σ exp
        double *cross_entropy = partial.get() + slot * size, *overlap = cross_entropy + 1;
        for (int64_t index = range.begin; index < range.end; ++index) {
            strip.take(index);
            own.take(a.label, static_cast<const T*>(a.weight), strip.pixel(), strip.count, classes);
            strip.clear(own.weight);
            for (int64_t i = 0; i < STRIP; i += LANES<T>) {
                Vec<T> logit = {};
                for (int64_t c = 0; c < classes; ++c) {
                    const auto mine = load(own.label + i) == static_cast<T>(c);
                    logit = mine ? load(strip.values.get() + c * STRIP + i) : logit;
                }
                store(own_logit + i, logit);
            }
            strip.exponentials();
            Vec<T> entropy = {};
            for (int64_t i = 0; i < STRIP; i += LANES<T>) {
                const Vec<T> total = load(strip.total + i), weight = load(own.weight + i);
                // peak − own first: large logits cancel exactly, pixel by pixel
                entropy += weight * ((load(strip.peak + i) - load(own_logit + i)) + logarithm(total));
                store(share + i, weight / total);
            }
            *cross_entropy += static_cast<double>(sum_of<T>(entropy));
            for (int64_t c = 0; c < classes; ++c) {
                Vec<T> shared = {}, squares = {}, present = {};
                for (int64_t i = 0; i < STRIP; i += LANES<T>) {
                    const auto mine = load(own.label + i) == static_cast<T>(c);
                    const Vec<T> mass = load(strip.values.get() + c * STRIP + i);
                    const Vec<T> weighted = mass * load(share + i);  // w·p
                    shared += mine ? weighted : Vec<T>{};
                    squares += weighted * (mass / load(strip.total + i));
                    present += mine ? load(own.weight + i) : Vec<T>{};
                }
                overlap[c] += static_cast<double>(sum_of<T>(shared));
                overlap[classes + c] += static_cast<double>(sum_of<T>(squares));
                overlap[2 * classes + c] += static_cast<double>(sum_of<T>(present));
            }
        }
    });
    add_slots(partial.get(), slots, size, {0, 1}, static_cast<T*>(a.cross_entropy));
    add_slots(partial.get() + 1, slots, size, {0, 3 * classes}, static_cast<T*>(a.overlap));
}

// With p = softmax and g the gradients of cross entropy and overlap: in p the overlap has
// h_c = w (g₀c y_c + 2 g₁c p_c), and softmax turns that into p_c (h_c − Σ_j h_j p_j); cross entropy adds
// w·g·(p_c − y_c).
template <class T>
void segmentation_loss_backward(const SegmentationLossBackwardArguments& a, ParallelTasks parallel) {
    const int64_t classes = a.logits.classes, strips = a.logits.batch * strips_of(a.logits);
    const T in_entropy = *static_cast<const T*>(a.grad_cross_entropy);
    const T *in_shared = static_cast<const T*>(a.grad_overlap), *in_squares = in_shared + classes;
    const int64_t tasks = (strips + 7) / 8;
    for_each_task(parallel, tasks, [&](int64_t task) {
        const Range range = part_of(strips, tasks, task, 1);
        Strip<T> strip(a.logits);
        StripLabel<T> own;
        T inner[STRIP];
        for (int64_t index = range.begin; index < range.end; ++index) {
            strip.take(index);
            own.take(a.label, static_cast<const T*>(a.weight), strip.pixel(), strip.count, classes);
            strip.clear(own.weight);
            strip.exponentials();
            for (int64_t i = 0; i < STRIP; i += LANES<T>) {
                const Vec<T> by = T{1} / load(strip.total + i), label = load(own.label + i);
                Vec<T> sum = {};
                for (int64_t c = 0; c < classes; ++c) {
                    T* value = strip.values.get() + c * STRIP + i;
                    const Vec<T> p = load(value) * by;
                    const Vec<T> shared = label == static_cast<T>(c) ? broadcast(in_shared[c]) : Vec<T>{};
                    sum += p * (shared + 2 * in_squares[c] * p);
                    store(value, p);
                }
                store(inner + i, sum);
            }
            for (int64_t c = 0; c < classes; ++c) {
                T* value = strip.values.get() + c * STRIP;
                for (int64_t i = 0; i < STRIP; i += LANES<T>) {
                    const auto mine = load(own.label + i) == static_cast<T>(c);
                    const Vec<T> p = load(value + i);
                    const Vec<T> shared = mine ? broadcast(in_shared[c]) : Vec<T>{},
                                 y = mine ? broadcast(T{1}) : Vec<T>{};
                    const Vec<T> h = shared + 2 * in_squares[c] * p - load(inner + i);
                    store(value + i, load(own.weight + i) * (p * h + in_entropy * (p - y)));
                }
                const int64_t to = (strip.image * classes + c) * a.logits.pixels + strip.begin;
                write(value, a.logits.element, strip.count, at(a.grad_logits, a.logits.element, to));
            }
        }
    });
}

}  // namespace mpamatch::MPAMATCH_ISA
