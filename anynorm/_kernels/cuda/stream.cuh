// The derivative of blocks of rows one after the other, whose sums over rows stay in registers: x and dy are read once.
//
// The next row is on its way while a row is worked on.
#pragma once

#include "gradient.cuh"

constexpr int STREAM_WARPS = 16;   // of a block at most
constexpr int MOST_OF_SHARED = 256;  // threads of a block of 16 bits
constexpr int SHARED_BLOCK = 128;  // threads of a block where several teams share it

// Merge what the threads of a team have, in the order of Team in task.cuh. `turn` is another one each time, 0 or 1.
__device__ __forceinline__ Sums<2> merge_team(Sums<2> sums, int threads, int turn) {
    if (threads <= GROUP) {
        for (int distance = 1; distance < threads; distance *= 2)
#pragma unroll
            for (int i = 0; i < 2; i++) sums.of[i] += __shfl_xor_sync(0xffffffffu, sums.of[i], distance);
        return sums;
    }
    __shared__ double groups[2][STREAM_WARPS][2];
    // Of neighbouring lanes each goes on with one of the sums.
    int which = threadIdx.x % 2;
    double passed = __shfl_xor_sync(0xffffffffu, which ? sums.of[0] : sums.of[1], 1);
    double sum = (which ? sums.of[1] : sums.of[0]) + passed;
#pragma unroll
    for (int distance = 2; distance < GROUP; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (threadIdx.x % GROUP < 2) groups[turn][threadIdx.x / GROUP][which] = sum;
    __syncthreads();
    sum = groups[turn][0][which];
#pragma unroll 4
    for (int group = 1; group < threads / GROUP; group++) sum += groups[turn][group][which];
    return {{__shfl_sync(0xffffffffu, sum, 0), __shfl_sync(0xffffffffu, sum, 1)}};
}

// A slot as it is kept: the compiler takes apart what has elements of 16 bits, each for a register of its own.
template <class E>
struct alignas(SLOT_NBYTES) Packed {
    int of[SLOT_NBYTES / sizeof(int)];

    // Nor may it hold on to what was made of the slot before.
    __device__ __forceinline__ Slot<E> slot() {
#ifndef ANYNORM_EMULATED
        asm volatile("" : "+r"(of[0]), "+r"(of[1]), "+r"(of[2]), "+r"(of[3]));
#endif
        Slot<E> slot;
        memcpy(&slot, of, sizeof slot);
        return slot;
    }
};

// As in task.cuh; most often there is one axis and nothing to divide.
__device__ __forceinline__ long long row_offset(const Task& task, int array, long long row) {
    long long offset = 0;
#pragma unroll 1
    for (int axis = task.free_axes - 1; axis > 0; axis--) {
        long long before = row / task.lengths[axis];
        offset += (row - before * task.lengths[axis]) * task.strides[array][axis];
        row = before;
    }
    return offset + row * task.strides[array][0];
}

// The rows of one of the arrays.
template <class E>
struct Lines {
    E* first;
    long long step;
    int features;
    bool aligned;

    __device__ Lines(const Task& task, const Choice& choice, int array) {
        first = (E*)task.arrays[array], step = task.steps[array], features = (int)task.features;
        aligned = choice.aligned;
    }

    __device__ __forceinline__ E* row(const Task& task, int array, long long row) const {
        return first + row_offset(task, array, row);
    }

    // Zeros stand for what lies behind the row, and for rows that are not there.
    template <int HELD>
    __device__ __forceinline__ void read(const E* from, bool is_there, const int* starts, Packed<E>* to) const {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            to[k] = Packed<E>{};
            if (aligned) {
                if (is_there && starts[k] < features) to[k] = *(const Packed<E>*)(from + starts[k]);
                continue;
            }
            Slot<E> slot = {};
#pragma unroll
            for (int i = 0; i < Slot<E>::SIZE; i++)
                if (is_there && starts[k] + i < features) slot.of[i] = from[(starts[k] + i) * step];
            memcpy(to[k].of, &slot, sizeof slot);
        }
    }

    // A slot that begins in the row.
    __device__ __forceinline__ void write(E* to, int start, const Slot<E>& slot) const {
        if (aligned) {
            *(Slot<E>*)(to + start) = slot;
            return;
        }
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i++)
            if (start + i < features) to[(start + i) * step] = slot.of[i];
    }
};

// The sums of dy of a thread's features: in registers for float32, and in shared memory for 16 bits, of whose sixteen
// features the other sums alone fill half of the registers.
template <class E>
struct BiasSums {
    double of[of_thread<E>()];

    __device__ void clear() {
        for (double& sum : of) sum = 0.0;
    }
    __device__ void add(int j, double first, double second) { of[j] += first, of[j + 1] += second; }
    __device__ double at(int j) const { return of[j]; }
};

struct alignas(16) Two {
    double of[2];
};

template <class E>
struct SharedBiasSums {
    Two* own;

    __device__ SharedBiasSums() {
        __shared__ Two room[of_thread<E>() / 2 * MOST_OF_SHARED];
        own = room + threadIdx.x;
    }
    __device__ void clear() {
        for (int j = 0; j < of_thread<E>() / 2; j++) own[j * MOST_OF_SHARED] = Two{};
    }
    __device__ __forceinline__ void add(int j, double first, double second) {
        Two sums = own[j / 2 * MOST_OF_SHARED];
        own[j / 2 * MOST_OF_SHARED] = {sums.of[0] + first, sums.of[1] + second};
    }
    __device__ double at(int j) const { return own[j / 2 * MOST_OF_SHARED].of[j % 2]; }
};

template <>
struct BiasSums<Half> : SharedBiasSums<Half> {};
template <>
struct BiasSums<Bfloat16> : SharedBiasSums<Bfloat16> {};

template <class E, bool HAS_SUMS>
__device__ void stream_rows(const Task& task, const Choice& choice) {
    constexpr int N = Slot<E>::SIZE, HELD = of_thread<E>() / N, OF_THREAD = of_thread<E>();
    bool is_layer = choice.rule == LAYER, is_scale = choice.rule == SCALE;
    bool sums_weight = HAS_SUMS && !is_scale && choice.weight != NOTHING, sums_bias = HAS_SUMS && choice.bias != NOTHING;
    int thread = threadIdx.x % task.threads, team = threadIdx.x / task.threads, features = (int)task.features;
    int starts[HELD];
#pragma unroll
    for (int k = 0; k < HELD; k++) starts[k] = (k * task.threads + thread) * N;
    BlockSums block(task, choice, blockIdx.x);
    Lines<E> x(task, choice, X), dy(task, choice, OTHER), dx(task, choice, Y), dtotal(task, choice, choice.added ? ADDED : Y);
    double inverse_count = 1.0 / (double)features, scale_sum = 0.0;
    double weight_sums[OF_THREAD] = {};
    BiasSums<E> bias_sums;
    if (sums_bias) bias_sums.clear();

    Packed<E> kept[HELD], kept_gradients[HELD], next[HELD], next_gradients[HELD];
    E shift = {}, next_shift = {};
    auto read = [&](long long row) {
        bool is_there = row < block.last;
        const E* first = x.row(task, X, is_there ? row : 0);
        x.template read<HELD>(first, is_there, starts, next);
        if (is_layer && is_there) next_shift = *first;
        dy.template read<HELD>(dy.row(task, OTHER, is_there ? row : 0), is_there, starts, next_gradients);
    };
    read(block.first + team);
    int turns = (int)((block.last - block.first + task.teams - 1) / task.teams);
    for (int turn = 0; turn < turns; turn++) {
        long long row = block.first + team + (long long)turn * task.teams;
        shift = next_shift;
#pragma unroll
        for (int k = 0; k < HELD; k++) kept[k] = next[k], kept_gradients[k] = next_gradients[k];
        read(row + task.teams);
        Derived of;
        of.shift = widen(shift);
        Sums<2> sums = {};
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            Slot<E> slot = kept[k].slot();
#pragma unroll
            for (int i = 0; i < N; i++)
                if (!is_layer || starts[k] + (choice.aligned ? 0 : i) < features)
                    add_deviation(of, widen(slot.of[i]), choice, sums.of);
        }
        sums = merge_team(sums, task.threads, 0);
        of.finish(task, choice, inverse_count, sums.of[0], sums.of[1]);
        sums = Sums<2>{};
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            double g[N], x_hat[N];
            Slot<E> gradients = kept_gradients[k].slot();
            weigh<E>(task, choice, of, starts[k], kept[k].slot(), gradients, g, x_hat);
#pragma unroll
            for (int i = 0; i < N; i++) {
                add_gradient(g[i], x_hat[i], choice, sums.of);
                double gradient = widen(gradients.of[i]);
                if (sums_weight) weight_sums[k * N + i] = fma(gradient, x_hat[i], weight_sums[k * N + i]);
            }
            if (sums_bias)
#pragma unroll
                for (int i = 0; i < N; i += 2) bias_sums.add(k * N + i, widen(gradients.of[i]), widen(gradients.of[i + 1]));
        }
        sums = merge_team(sums, task.threads, 1);
        if (is_scale) scale_sum += sums.of[1];
        of.finish_gradient(task, choice, inverse_count, sums.of[0], sums.of[1]);
        if (row >= block.last) continue;
        E* to = dx.row(task, Y, row);
        Packed<E> more[HELD] = {};
        if (choice.added) dtotal.template read<HELD>(dtotal.row(task, ADDED, row), true, starts, more);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (starts[k] >= features) continue;
            Slot<E> result, added = more[k].slot();
            double g[N], x_hat[N];
            weigh<E>(task, choice, of, starts[k], kept[k].slot(), kept_gradients[k].slot(), g, x_hat);
#pragma unroll
            for (int i = 0; i < N; i++) result.of[i] = dx_of(of, g[i], x_hat[i], added.of[i], choice);
            dx.write(to, starts[k], result);
        }
    }
    if constexpr (HAS_SUMS) {
        __shared__ double room[SHARED_BLOCK * N];
        // Write the sums of the block's teams, one after the other.
        auto write = [&](double* to, auto of_thread) {
#pragma unroll
            for (int k = 0; k < HELD; k++) {
                if (task.teams == 1) {
#pragma unroll
                    for (int i = 0; i < N; i++)
                        if (starts[k] + i < features) to[starts[k] + i] = of_thread(k * N + i);
                    continue;
                }
                __syncthreads();
                for (int i = 0; i < N; i++) room[threadIdx.x * N + i] = of_thread(k * N + i);
                __syncthreads();
                int count = task.threads * N, first = k * count;
                for (int i = threadIdx.x; i < count && first + i < features; i += blockDim.x) {
                    double sum = 0.0;
                    for (int j = 0; j < task.teams; j++) sum += room[j * count + i];
                    to[first + i] = sum;
                }
            }
        };
        if (sums_weight) write(block.weight(0), [&](int j) { return weight_sums[j]; });
        if (sums_bias) write(block.bias(0), [&](int j) { return bias_sums.at(j); });
        if (!is_scale) return;
        if (thread == 0) room[team] = scale_sum;
        __syncthreads();
        if (threadIdx.x) return;
        double sum = 0.0;
        for (int j = 0; j < task.teams; j++) sum += room[j];
        *block.weight(0) = sum;
    }
}
