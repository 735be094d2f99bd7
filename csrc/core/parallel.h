// Work is cut by sizes alone, never by the number of threads, so that sums come out the same bit for bit.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "arguments/kernel.h"
#include "core/vector.h"

namespace mpamatch::MPAMATCH_ISA {

template <class Task>
inline void for_each_task(ParallelTasks parallel, int64_t tasks, const Task& task) {
    auto call = [](void* context, int64_t index) { (*static_cast<const Task*>(context))(index); };
    if (tasks == 1) task(int64_t{0});
    if (tasks > 1) parallel(tasks, call, const_cast<Task*>(&task));
}

// A range of pixels; the i-th of `parts` nearly equal ones whose ends are multiples of `grain`.
struct Range {
    int64_t begin, end;
};

inline Range part_of(int64_t count, int64_t parts, int64_t index, int64_t grain) {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t begin = grains * index / parts * grain, end = grains * (index + 1) / parts * grain;
    return {begin < count ? begin : count, end < count ? end : count};
}

// The number of partial sums of `bytes` each: enough to keep cores busy, at most 4 MB in all (a fresh page costs 2 µs).
inline int64_t slots_for(int64_t pixels, int64_t bytes) {
    const int64_t by_work = (pixels + 2047) / 2048, by_memory = (int64_t{4} << 20) / (bytes + 1);
    const int64_t most = by_memory < 4 ? 4 : by_memory > 32 ? 32 : by_memory;
    return by_work < 1 ? 1 : by_work < most ? by_work : most;
}

// Aligned scratch memory; `zeroed` to begin a sum.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t size, bool zeroed = false) {
        const size_t bytes = static_cast<size_t>(round_up((size > 0 ? size : 1) * int64_t{sizeof(T)}, 64));
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
        if (zeroed) std::memset(data_, 0, bytes);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }
    T* get() { return data_; }
    const T* get() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

  private:
    T* data_;
};

// to[i] = Σ slots[s·size + i] for i in [begin, end), in the order of the slots.
template <class From, class To>
inline void add_slots(const From* slots, int64_t count, int64_t size, Range range, To* to) {
    for (int64_t i = range.begin; i < range.end; ++i) {
        From total = 0;
        for (int64_t s = 0; s < count; ++s) total += slots[s * size + i];
        to[i] = static_cast<To>(total);
    }
}

}  // namespace mpamatch::MPAMATCH_ISA
