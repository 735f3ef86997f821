// Just enough of CUDA C++ to run the kernels on a CPU, one thread after the other, as fibers.
//
// The threads of a warp take turns at its shuffles, and warps at the barriers of their block: each warp runs as far as
// it gets before the next one starts, so that a barrier that is missing shows; so do the blocks of a cluster. `reversed`
// turns the order round.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#define ANYNORM_EMULATED
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
// One for each block of a cluster; clusters run one after the other, and what is left of an earlier one is no number.
#define SHARED(type, name, count)                            \
    static type name##_of_blocks[emulator::MOST_BLOCKS][count]; \
    type* name = name##_of_blocks[emulator::rank()];            \
    emulator::sizes[name##_of_blocks[0]] = sizeof name##_of_blocks[0]

struct Index {
    unsigned x, y;
};

namespace emulator {

constexpr int WARP = 32;
constexpr int MOST_BLOCKS = 16;  // of a cluster
constexpr size_t STACK_NBYTES = 64 << 10;

enum Waiting { RUNS, AT_SHUFFLE, AT_BARRIER, AT_CLUSTER, ENDED };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    Waiting waiting;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline unsigned current;  // fiber; those of a cluster's blocks follow one another
inline unsigned threads;  // of a block
inline bool reversed = false;
inline unsigned char exchanged[8192][16];
inline std::map<void*, size_t> sizes;  // of a block's share of what is shared, by where the first block's begins

inline unsigned char rooms[MOST_BLOCKS][227 << 10];  // shared memory of which the kernel does not know the size

inline unsigned rank() { return current / threads; }

inline void fail(const char* message) {
    std::fprintf(stderr, "emulator: %s\n", message);
    std::abort();
}

inline void wait(Waiting waiting) {
    Fiber& fiber = fibers[current];
    fiber.waiting = waiting;
    swapcontext(&fiber.context, &scheduler);
}

inline void enter() {
    body();
    fibers[current].waiting = ENDED;
    swapcontext(&fibers[current].context, &scheduler);
}

// Run the threads of a warp until all of them wait for the block or the cluster, or have ended.
inline Waiting run_warp(unsigned first, unsigned last, Index& thread) {
    for (;;) {
        for (unsigned k = first; k < last; k++) {
            current = reversed ? first + last - 1 - k : k;
            thread.x = current % threads;
            if (fibers[current].waiting != ENDED) swapcontext(&scheduler, &fibers[current].context);
        }
        Waiting waiting = fibers[first].waiting;
        for (unsigned k = first; k < last; k++)
            if (fibers[k].waiting != waiting) fail("threads of a warp have parted");
        if (waiting != AT_SHUFFLE) return waiting;
    }
}

// Run the warps of a block until all of them wait for the cluster, or have ended.
inline Waiting run_block(unsigned block, Index& thread) {
    unsigned warps = (threads + WARP - 1) / WARP;
    for (;;) {
        unsigned count[ENDED + 1] = {};
        for (unsigned k = 0; k < warps; k++) {
            unsigned warp = reversed ? warps - 1 - k : k;
            unsigned first = warp * WARP, last = first + WARP < threads ? first + WARP : threads;
            count[run_warp(block * threads + first, block * threads + last, thread)]++;
        }
        for (Waiting waiting : {AT_CLUSTER, ENDED})
            if (count[waiting] == warps) return waiting;
        if (count[AT_BARRIER] != warps) fail("some warps have ended and others wait for them");
    }
}

// Run the blocks that share rows, the first of them this one.
inline void run_cluster(unsigned blocks, unsigned first, Index& block, Index& thread, const std::function<void()>& kernel) {
    body = kernel;
    if (fibers.size() < blocks * threads) fibers.resize(blocks * threads);
    for (unsigned k = 0; k < blocks * threads; k++) {
        Fiber& fiber = fibers[k];
        fiber.stack.resize(STACK_NBYTES);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK_NBYTES;
        fiber.context.uc_link = nullptr;
        fiber.waiting = RUNS;
        makecontext(&fiber.context, enter, 0);
    }
    for (;;) {
        unsigned ended = 0;
        for (unsigned k = 0; k < blocks; k++) {
            unsigned rank = reversed ? blocks - 1 - k : k;
            block.x = first + rank;
            ended += run_block(rank, thread) == ENDED;
        }
        if (ended == blocks) return;
        if (ended) fail("some blocks have ended and others wait for them");
    }
}

}  // namespace emulator

inline Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulator::wait(emulator::AT_BARRIER); }
inline void arrive_at_cluster() {}
inline void wait_for_cluster() { emulator::wait(emulator::AT_CLUSTER); }

template <class S>
void write_to_block(unsigned block, S* place, const S& value) {
    for (auto& [shared, nbytes] : emulator::sizes) {
        char *here = (char*)place, *first = (char*)shared;
        if (here < first || here >= first + nbytes * emulator::MOST_BLOCKS) continue;
        *(S*)(first + nbytes * block + (here - first) % nbytes) = value;
        return;
    }
    emulator::fail("no such shared memory");
}

// A barrier stands for the count of what has come.
struct Inbox {
    int turn = 0;
    void open() const { arrive_at_cluster(); }
    template <class S>
    void send(unsigned block, S* place, const S& value) const {
        write_to_block(block, place, value);
    }
    void receive(unsigned) {
        wait_for_cluster();
        turn ^= 1;
    }
};

template <class S>
S* block_room() {
    return (S*)emulator::rooms[emulator::rank()];
}
template <class S>
void copy_to_room(S* to, const S* from, bool is_there) {
    *to = is_there ? *from : S{};
}
template <int LAST>
void wait_for_copies() {}

template <class S>
S read_slot(const S* from) {
    return *from;
}
template <class S>
void write_slot(S* to, const S& slot) {
    *to = slot;
}
template <class S>
S unconverted(const S& slot) {
    return slot;
}

// What another thread of the warp has.
template <class T>
T exchange(T value, unsigned other) {
    unsigned self = emulator::current;
    std::memcpy(emulator::exchanged[self], &value, sizeof value);
    emulator::wait(emulator::AT_SHUFFLE);
    if (other / emulator::threads != self / emulator::threads || other / emulator::WARP != self / emulator::WARP)
        emulator::fail("no such lane");
    std::memcpy(&value, emulator::exchanged[other], sizeof value);
    emulator::wait(emulator::AT_SHUFFLE);
    return value;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    return exchange(value, emulator::current ^ distance);
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return exchange(value, emulator::current / emulator::WARP * emulator::WARP + lane);
}

template <class To, class From>
To as_bits(From value) {
    To to;
    static_assert(sizeof to == sizeof value, "sizes differ");
    std::memcpy(&to, &value, sizeof to);
    return to;
}

inline float __int_as_float(int bits) { return as_bits<float>(bits); }
inline int __float_as_int(float value) { return as_bits<int>(value); }
inline double __longlong_as_double(long long bits) { return as_bits<double>(bits); }
inline long long __double_as_longlong(double value) { return as_bits<long long>(value); }

inline float __double2float_rz(double value) {
    float rounded = (float)value;
    if (std::fabs((double)rounded) > std::fabs(value)) rounded = std::nextafterf(rounded, 0.0f);
    return rounded;
}

inline float half_to_float(unsigned short bits) { return (float)as_bits<_Float16>(bits); }
inline unsigned short float_to_half(float value) { return as_bits<unsigned short>((_Float16)value); }
inline unsigned short float_to_bfloat16(float value) {
    unsigned bits = as_bits<unsigned>(value);
    if (value != value) return (unsigned short)(bits >> 16 | 64);
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

using std::abs;
using std::fabs;
using std::fma;
using std::fmax;
using std::fmin;
using std::scalbn;
using std::sqrt;
inline double rsqrt(double value) { return 1.0 / std::sqrt(value); }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }

template <class Kernel>
bool launch(Index grid, Index block, unsigned cluster, const Kernel& kernel) {
    blockDim = block;
    gridDim = grid;
    emulator::threads = block.x;
    unsigned clusters = grid.x / cluster * grid.y;
    for (unsigned k = 0; k < clusters; k++) {
        unsigned index = (emulator::reversed ? clusters - 1 - k : k) * cluster;
        blockIdx = {index % grid.x, index / grid.x};
        emulator::run_cluster(cluster, blockIdx.x, blockIdx, threadIdx, kernel);
    }
    return true;
}
