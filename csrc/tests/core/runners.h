// Two ways of running the tasks of a kernel, of which the results must be the same bits.
#pragma once

#include <atomic>
#include <initializer_list>
#include <numeric>
#include <random>
#include <thread>

#include "storage.h"

namespace test {

inline int64_t most_tasks = 0;  // of any call since it was last set to 0

inline void serially(int64_t tasks, void (*task)(void*, int64_t), void* context) {
    most_tasks = std::max(most_tasks, tasks);
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
}

// Three threads take the tasks in shuffled order.
inline void shuffled(int64_t tasks, void (*task)(void*, int64_t), void* context) {
    std::vector<int64_t> order(static_cast<size_t>(tasks));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937_64(static_cast<uint64_t>(tasks)));
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i = next++; i < order.size(); i = next++) task(context, order[i]);
    };
    std::thread others[] = {std::thread(work), std::thread(work)};
    work();
    for (std::thread& other : others) other.join();
}

// Runs the kernel both ways into poisoned outputs: same bits, and nothing written outside. Leaves the second result.
template <class Kernel>
inline void run_both_ways(std::initializer_list<Output*> outputs, const Kernel& kernel) {
    std::vector<std::vector<char>> first;
    for (Output* output : outputs) output->poison();
    kernel(&serially);
    for (Output* output : outputs) {
        output->check_guards();
        first.push_back(output->content());
        output->poison(0x7f);  // another poison: what is left unwritten differs
    }
    kernel(&shuffled);
    size_t i = 0;
    for (Output* output : outputs) {
        output->check_guards();
        CHECK(output->content() == first[i++], "%s: other bits on threads in another order, or not all written",
              output->name);
    }
}

}  // namespace test
