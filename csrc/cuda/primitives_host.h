// The primitives on the processor, for tests: a thread of a block is a std::thread, a barrier a counter behind a lock,
// a shuffle a barrier between writing and reading. Blocks have 64 threads; several run at once, in a shuffled order.
// Include primitives.h, which includes this file.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace mpamatch::cuda {

constexpr int host_threads = 64;
constexpr int blocks_per_bundle = 2;  // so that few blocks make several bundles

// std::barrier would do, but its waiters share a table with those of all other barriers: to the thread sanitizer blocks
// that never met would look as if they had, and it would see no race between them.
class HostBarrier {
  public:
    explicit HostBarrier(int threads) : threads_(threads) {}

    void arrive_and_wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        const unsigned turn = turn_;
        if (++arrived_ == threads_) {
            arrived_ = 0;
            ++turn_;
            all_here_.notify_all();
        } else {
            all_here_.wait(lock, [&] { return turn_ != turn; });
        }
    }

  private:
    std::mutex mutex_;
    std::condition_variable all_here_;
    const int threads_;
    int arrived_ = 0;
    unsigned turn_ = 0;
};

struct HostWarp {
    HostBarrier barrier{warp_size};
    // Two sets: a lane that is already at the next exchange never overwrites what a slower one still reads.
    alignas(16) unsigned char slot[2][warp_size][256];
};

struct HostProcessor {
    HostBarrier barrier{host_threads};
    HostWarp warp[host_threads / warp_size];
    std::vector<unsigned char> shared;
    int block = 0;
    int blocks = 0;
};

struct HostThread {
    HostProcessor* processor = nullptr;
    int index = 0;
    int turn = 0;  // which set of slots comes next
};

inline thread_local HostThread host_thread;

inline int thread_index() { return host_thread.index; }
inline int block_index() { return host_thread.processor->block; }
inline int thread_count() { return host_threads; }
inline int block_count() { return host_thread.processor->blocks; }
inline void block_barrier() { host_thread.processor->barrier.arrive_and_wait(); }
inline int count_bits(std::uint32_t bits) { return __builtin_popcount(bits); }
inline int highest_bit(std::uint32_t bits) { return 31 - __builtin_clz(bits); }
inline int lowest_bit(std::uint32_t bits) { return __builtin_ctz(bits); }

// Writes this lane's bytes, waits for the warp, and returns the slots of all lanes.
inline const unsigned char (*publish(const void* data, std::size_t bytes))[256] {
    HostWarp& warp = host_thread.processor->warp[host_thread.index / warp_size];
    const int turn = host_thread.turn;
    host_thread.turn = 1 - turn;
    std::memcpy(warp.slot[turn][host_thread.index % warp_size], data, bytes);
    warp.barrier.arrive_and_wait();
    return warp.slot[turn];
}

template <class Real, int size>
void exchange(const Real (&send)[size], Real (&receive)[size], int offset) {
    static_assert(sizeof(send) <= 256);
    const auto* slot = publish(send, sizeof(send));
    std::memcpy(receive, slot[(host_thread.index % warp_size) ^ offset], sizeof(receive));
}

inline std::uint32_t same_in_warp(int value) {
    const auto* slot = publish(&value, sizeof(value));
    std::uint32_t mask = 0;
    for (int lane = 0; lane < warp_size; ++lane) {
        if (std::memcmp(slot[lane], &value, sizeof(value)) == 0) mask |= 1u << lane;
    }
    return mask;
}

inline void warp_barrier() { host_thread.processor->warp[host_thread.index / warp_size].barrier.arrive_and_wait(); }

inline void wait_for_tickets(const int* ticket, int goal) {
    while (std::atomic_ref<int>(*const_cast<int*>(ticket)).load() < goal) std::this_thread::yield();
}

inline int take_ticket(int* ticket) { return std::atomic_ref<int>(*ticket).fetch_add(1); }

template <class Real>
Real read_other_block(const Real* place) {
    return *place;
}

template <class Storage, int size>
Pack<Storage, size> read_once(const Storage* place) {
    return *reinterpret_cast<const Pack<Storage, size>*>(place);
}

template <class Real, int size>
void read_often(const Real* place, Real (&value)[size]) {
    std::copy(place, place + size, value);
}

template <class Real, int size>
void write_pack(Real* place, const Real (&value)[size]) {
    std::copy(value, value + size, place);
}

inline float to_working(Float16 x) {
    _Float16 value;
    std::memcpy(&value, &x.bits, sizeof(value));
    return static_cast<float>(value);
}
inline float to_working(BFloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
inline float to_working(float x) { return x; }
inline double to_working(double x) { return x; }

// Runs `blocks` blocks, `at_once` of them together, in an order that `seed` shuffles. Fresh shared memory holds NaN.
// A kernel whose blocks wait for one another needs all of them at once.
template <class Kernel>
void run_grid(const Kernel& kernel, int blocks, int at_once, unsigned seed) {
    std::vector<int> order(static_cast<std::size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    std::atomic<int> next{0};

    const auto live = [&](HostProcessor* processor, int index) {
        host_thread = HostThread{processor, index, 0};
        while (true) {
            if (index == 0) {
                const int turn = next.fetch_add(1);
                processor->block = turn < blocks ? order[static_cast<std::size_t>(turn)] : -1;
                std::fill(processor->shared.begin(), processor->shared.end(), static_cast<unsigned char>(0xff));
            }
            block_barrier();
            if (processor->block < 0) return;
            kernel.run(processor->shared.data());
            block_barrier();
        }
    };

    std::vector<std::unique_ptr<HostProcessor>> processors;
    std::vector<std::thread> threads;
    for (int p = 0; p < std::min(at_once, blocks); ++p) {
        processors.push_back(std::make_unique<HostProcessor>());
        processors.back()->blocks = blocks;
        processors.back()->shared.resize(static_cast<std::size_t>(kernel.shared_bytes(host_threads)));
        for (int i = 0; i < host_threads; ++i) threads.emplace_back(live, processors.back().get(), i);
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace mpamatch::cuda
