// Class and softmax confidence of every pixel.
#pragma once

#include "arguments/pseudo_label.h"
#include "core/softmax.h"

namespace mpamatch::MPAMATCH_ISA {

template <class T>
void pseudo_label(const PseudoLabelArguments& a, ParallelTasks parallel) {
    const int64_t classes = a.logits.classes, strips = a.logits.batch * strips_of(a.logits);
    const int64_t tasks = (strips + 7) / 8;
    for_each_task(parallel, tasks, [&](int64_t task) {
        const Range range = part_of(strips, tasks, task, 1);
        Strip<T> strip(a.logits);
        T label[STRIP];
        for (int64_t index = range.begin; index < range.end; ++index) {
            strip.take(index);
            for (int64_t i = 0; i < STRIP; i += LANES<T>) {
                Vec<T> highest = load(strip.values.get() + i), chosen = {};
                for (int64_t c = 1; c < classes; ++c) {  // only a higher one replaces: the lowest class among equals
                    const Vec<T> value = load(strip.values.get() + c * STRIP + i);
                    const auto higher = value > highest;
                    highest = higher ? value : highest;
                    chosen = higher ? broadcast(static_cast<T>(c)) : chosen;
                }
                store(label + i, chosen);
            }
            strip.exponentials();
            T* confidence = static_cast<T*>(a.confidence) + strip.pixel();
            for (int64_t i = 0; i < strip.count; ++i) {
                a.label[strip.pixel() + i] = static_cast<uint8_t>(label[i]);
                confidence[i] = 1 / strip.total[i];
            }
        }
    });
}

}  // namespace mpamatch::MPAMATCH_ISA
