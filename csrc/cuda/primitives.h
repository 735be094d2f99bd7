// The few things a kernel of ours asks of the machine it runs on, and the arithmetic types it reads.
//
// A kernel is a struct: its members are its arguments, `run(shared)` is what every thread of every block does. nvcc
// compiles it for the GPU through `entry` below; a C++20 compiler compiles the same source for the processor through
// primitives_host.h, where a thread of the block is a std::thread. So the logic, the barriers and the order of every
// sum are tested where there is no GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "arguments/common.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define MPAMATCH_DEVICE __device__ __forceinline__
#define MPAMATCH_BOTH __host__ __device__ inline
#define MPAMATCH_UNROLL _Pragma("unroll")
#define MPAMATCH_UNROLL_8 _Pragma("unroll 8")
#else
#define MPAMATCH_DEVICE inline
#define MPAMATCH_BOTH inline
#define MPAMATCH_UNROLL
#define MPAMATCH_UNROLL_8
#endif

namespace mpamatch::cuda {

constexpr int warp_size = 32;
constexpr int lanes = 8;  // of a lane group, which reads one row: 8 x 16 bytes are one 128-byte cache line

// Storage types of the half precisions, bits only: they are read, never computed with.
struct Float16 {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

// What a storage type is computed in.
template <class Storage>
using Working = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

template <class Storage, int size>
struct alignas(sizeof(Storage) * size) Pack {
    Storage value[size];
};

// Elements of one 16-byte load.
template <class Storage>
constexpr int full_vector = 16 / static_cast<int>(sizeof(Storage));

// The value at `place` where it lies in [0, bound), else -1: every other value means ignored.
MPAMATCH_BOTH int read_index(const Indices& indices, std::int64_t place, int bound) {
    std::int64_t value = 0;
    if (indices.type == IndexType::u8) value = static_cast<const std::uint8_t*>(indices.data)[place];
    if (indices.type == IndexType::i32) value = static_cast<const std::int32_t*>(indices.data)[place];
    if (indices.type == IndexType::i64) value = static_cast<const std::int64_t*>(indices.data)[place];
    return value >= 0 && value < bound ? static_cast<int>(value) : -1;
}

MPAMATCH_BOTH constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// 1/||x|| from ||x||^2, and 0 below a length of 1e-6, where the unit vector is 0.
template <class Real>
MPAMATCH_BOTH Real inverse_length(Real squared) {
    return squared >= Real(1e-12) ? Real(1) / std::sqrt(squared) : Real(0);
}

// Hands out pieces of a block's shared memory, each aligned to 16 bytes. With a null pointer it only counts.
class Shared {
  public:
    MPAMATCH_BOTH explicit Shared(unsigned char* memory) : memory_(memory) {}

    template <class T>
    MPAMATCH_BOTH T* take(std::int64_t count) {
        unsigned char* piece = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += divide_up(count * static_cast<std::int64_t>(sizeof(T)), 16) * 16;
        return reinterpret_cast<T*>(piece);
    }
    MPAMATCH_BOTH std::int64_t bytes() const { return used_; }

  private:
    unsigned char* memory_;
    std::int64_t used_ = 0;
};

}  // namespace mpamatch::cuda

#ifdef __CUDACC__

namespace mpamatch::cuda {

constexpr int blocks_per_bundle = 16;  // of the sums in ordered_sum.h

MPAMATCH_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MPAMATCH_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
MPAMATCH_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
MPAMATCH_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
MPAMATCH_DEVICE void block_barrier() { __syncthreads(); }
MPAMATCH_DEVICE void warp_barrier() { __syncwarp(); }
MPAMATCH_DEVICE int count_bits(std::uint32_t bits) { return __popc(bits); }
// The place of the highest or lowest bit that is set; at least one is.
MPAMATCH_DEVICE int highest_bit(std::uint32_t bits) { return 31 - __clz(static_cast<int>(bits)); }
MPAMATCH_DEVICE int lowest_bit(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

// receive = what the lane at (own lane XOR offset) sends. The whole warp takes part.
template <class Real, int size>
MPAMATCH_DEVICE void exchange(const Real (&send)[size], Real (&receive)[size], int offset) {
    MPAMATCH_UNROLL
    for (int i = 0; i < size; ++i) receive[i] = __shfl_xor_sync(0xffffffffu, send[i], offset);
}

// Bit l is set where lane l of the warp holds the same value. The whole warp takes part.
MPAMATCH_DEVICE std::uint32_t same_in_warp(int value) { return __match_any_sync(0xffffffffu, value); }

// Takes the next number of an integer ticket. What the block wrote before its last barrier is visible to whoever
// takes a later number: the fences are cumulative over the barrier (PTX memory model).
MPAMATCH_DEVICE int take_ticket(int* ticket) {
    __threadfence();
    const int number = atomicAdd(ticket, 1);
    __threadfence();
    return number;
}

// Waits until a ticket has been taken `goal` times. The caller's next block barrier passes on to its whole block what
// those who took one wrote before it. Only where all blocks of the launch run at once.
MPAMATCH_DEVICE void wait_for_tickets(const int* ticket, int goal) {
    int taken;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(taken) : "l"(ticket) : "memory");
    } while (taken < goal);
}

// A value another block of this launch wrote: from L2, never from a stale line of the first-level cache.
template <class Real>
MPAMATCH_DEVICE Real read_other_block(const Real* place) {
    return __ldcg(place);
}

// Rows of the embedding are read once: they leave the first-level cache to the prototypes.
template <class Storage, int size>
MPAMATCH_DEVICE Pack<Storage, size> read_once(const Storage* place) {
    Pack<Storage, size> pack;
    unsigned word[4];
    const std::size_t address = __cvta_generic_to_global(place);
    if constexpr (sizeof(pack) == 16) {
        asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
            : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
            : "l"(address));
        memcpy(&pack, word, sizeof(pack));
    } else if constexpr (sizeof(pack) == 8) {
        asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(address));
        memcpy(&pack, word, sizeof(pack));
    } else {
        pack = *reinterpret_cast<const Pack<Storage, size>*>(place);
    }
    return pack;
}

// Prototypes stay in the first-level cache: every pixel of a class reads the same.
template <class Real, int size>
MPAMATCH_DEVICE void read_often(const Real* place, Real (&value)[size]) {
    constexpr int step = size < full_vector<Real> ? size : full_vector<Real>;
    MPAMATCH_UNROLL
    for (int i = 0; i < size; i += step) {
        const auto pack = *reinterpret_cast<const Pack<Real, step>*>(place + i);
        MPAMATCH_UNROLL
        for (int j = 0; j < step; ++j) value[i + j] = pack.value[j];
    }
}

template <class Real, int size>
MPAMATCH_DEVICE void write_pack(Real* place, const Real (&value)[size]) {
    constexpr int step = size < full_vector<Real> ? size : full_vector<Real>;
    MPAMATCH_UNROLL
    for (int i = 0; i < size; i += step) {
        Pack<Real, step> pack;
        MPAMATCH_UNROLL
        for (int j = 0; j < step; ++j) pack.value[j] = value[i + j];
        *reinterpret_cast<Pack<Real, step>*>(place + i) = pack;
    }
}

MPAMATCH_DEVICE float to_working(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
MPAMATCH_DEVICE float to_working(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
MPAMATCH_DEVICE float to_working(float x) { return x; }
MPAMATCH_DEVICE double to_working(double x) { return x; }

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks_per_processor) entry(const Kernel kernel) {
    extern __shared__ __align__(16) unsigned char shared[];
    kernel.run(shared);
}

}  // namespace mpamatch::cuda

#else
#include "cuda/primitives_host.h"
#endif

namespace mpamatch::cuda {

// The sum over a lane group of eight, in every lane of it: ((0+4)+(2+6))+((1+5)+(3+7)) whichever lane asks, as
// floating-point addition commutes. The whole warp takes part.
template <class Real>
MPAMATCH_DEVICE Real group_sum(Real value) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        const Real send[1] = {value};
        Real receive[1];
        exchange(send, receive, offset);
        value += receive[0];
    }
    return value;
}

// Sums eight lists over the eight lanes of a group; list l arrives whole in lane l. Each of the three steps sends away
// the half that the other side owns, so 7 x size shuffles do the work of 24 x size. The whole warp takes part.
template <class Real, int size, int lists = lanes>
MPAMATCH_DEVICE void sums_to_owners(const Real (&value)[lists * size], Real (&sum)[size]) {
    constexpr int half = lists / 2 * size;
    const bool upper = (thread_index() & (lists / 2)) != 0;
    Real send[half];
    Real kept[half];
    MPAMATCH_UNROLL
    for (int i = 0; i < half; ++i) {
        send[i] = upper ? value[i] : value[half + i];
        kept[i] = upper ? value[half + i] : value[i];
    }
    Real receive[half];
    exchange(send, receive, lists / 2);
    MPAMATCH_UNROLL
    for (int i = 0; i < half; ++i) kept[i] += receive[i];
    if constexpr (lists > 2) {
        sums_to_owners<Real, size, lists / 2>(kept, sum);
    } else {
        MPAMATCH_UNROLL
        for (int i = 0; i < size; ++i) sum[i] = kept[i];
    }
}

// put(i, the sum of size_of(j) over j < i) for i in [0, count], at the last the sum of all; each i by one thread.
// `piece` holds an integer for each thread. What size_of reads is complete; begins and ends without a barrier.
template <class Size, class Put>
MPAMATCH_DEVICE void sums_before(int count, int* piece, const Size& size_of, const Put& put) {
    const int each = static_cast<int>(divide_up(count, thread_count()));
    const int first = thread_index() * each < count ? thread_index() * each : count;
    const int end = first + each < count ? first + each : count;
    int sum = 0;
    for (int i = first; i < end; ++i) sum += size_of(i);
    piece[thread_index()] = sum;
    block_barrier();
    sum = 0;
    MPAMATCH_UNROLL_8
    for (int thread = 0; thread < thread_index(); ++thread) sum += piece[thread];
    for (int i = first; i < end; ++i) {
        put(i, sum);
        sum += size_of(i);
    }
    if (thread_index() == thread_count() - 1) put(count, sum);
}

// The sum over a block whose number of threads is a power of two, in every thread; `shared` holds one per thread.
template <class Real>
MPAMATCH_DEVICE Real block_sum(Real value, Real* shared) {
    shared[thread_index()] = value;
    block_barrier();
    for (int half = thread_count() / 2; half > 0; half /= 2) {
        if (thread_index() < half) shared[thread_index()] += shared[thread_index() + half];
        block_barrier();
    }
    const Real sum = shared[0];
    block_barrier();
    return sum;
}

}  // namespace mpamatch::cuda
