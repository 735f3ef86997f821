// The derivative of blocks of rows one after the other, whose sums over rows stay in registers: x and dy are read once.
//
// While the gradient of a row is formed, the deviations of the next one are summed up, so that both wait for the same
// merging; the dy of the next row and the x of the one after that are on their way meanwhile.
#pragma once

#include "gradient.cuh"

constexpr int STREAM_WARPS = 16;  // of a block

// Merge what the threads of a team have, in the order of Team in task.cuh. `turn` is one that no team merged in before.
__device__ __forceinline__ Sums<4> merge_team(Sums<4> sums, int threads, int turn) {
    if (threads <= GROUP) {
        for (int distance = 1; distance < threads; distance *= 2)
#pragma unroll
            for (int i = 0; i < 4; i++) sums.of[i] += __shfl_xor_sync(0xffffffffu, sums.of[i], distance);
        return sums;
    }
    __shared__ double groups[2][STREAM_WARPS][4];
    int lane = threadIdx.x % GROUP;
    // Of the four sums a lane and its neighbours keep fewer and fewer, each another one.
    bool second = lane & 1, fourth = lane & 2;
    double pair[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        double passed = second ? sums.of[i] : sums.of[i + 2];
        pair[i] = (second ? sums.of[i + 2] : sums.of[i]) + __shfl_xor_sync(0xffffffffu, passed, 1);
    }
    double passed = fourth ? pair[0] : pair[1];
    double sum = (fourth ? pair[1] : pair[0]) + __shfl_xor_sync(0xffffffffu, passed, 2);
#pragma unroll
    for (int distance = 4; distance < GROUP; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    int which = lane % 4;  // sums 0, 2, 1 and 3
    if (lane < 4) groups[turn % 2][threadIdx.x / GROUP][which] = sum;
    __syncthreads();
    sum = groups[turn % 2][0][which];
#pragma unroll
    for (int group = 1; group < STREAM_WARPS; group++)
        if (group < threads / GROUP) sum += groups[turn % 2][group][which];
#pragma unroll
    for (int i = 0; i < 4; i++) sums.of[i] = __shfl_sync(0xffffffffu, sum, (i % 2) * 2 + i / 2);
    return sums;
}

// Keep the compiler from holding on to what it has made of a slot.
template <class E>
__device__ __forceinline__ void forget([[maybe_unused]] Slot<E>& slot) {
#ifndef ANYNORM_EMULATED
    int* bits = (int*)&slot;
    asm volatile("" : "+r"(bits[0]), "+r"(bits[1]), "+r"(bits[2]), "+r"(bits[3]));
#endif
}

// One of the arrays.
template <class E>
struct Lines {
    E* first;
    long long step, features, last;  // last: the row behind those of the block
    bool aligned;

    __device__ Lines(const Task& task, const Choice& choice, int array, long long last) : last(last) {
        first = (E*)task.arrays[array], step = task.steps[array], features = task.features;
        aligned = choice.aligned;
    }

    // Zeros stand for what lies behind the row, and for rows behind the last.
    template <int HELD>
    __device__ __forceinline__ void read(const Task& task, int array, long long row, const int* starts, Slot<E>* to) const {
        const E* from = first + (row < last ? offset_of(task, array, row) : 0);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            to[k] = Slot<E>{};
            if (aligned) {
                if (row < last && starts[k] < features) to[k] = *(const Slot<E>*)(from + starts[k]);
                continue;
            }
#pragma unroll
            for (int i = 0; i < Slot<E>::SIZE; i++)
                if (row < last && starts[k] + i < features) to[k].of[i] = from[(starts[k] + i) * step];
        }
    }
};

template <class E, bool HAS_SUMS>
__device__ void stream_rows(const Task& task, const Choice& choice) {
    constexpr int N = Slot<E>::SIZE, HELD = OF_THREAD / N;
    bool is_layer = choice.rule == LAYER, is_scale = choice.rule == SCALE;
    bool sums_weight = HAS_SUMS && !is_scale && choice.weight != NOTHING, sums_bias = HAS_SUMS && choice.bias != NOTHING;
    int thread = threadIdx.x % task.threads, team = threadIdx.x / task.threads, features = (int)task.features;
    int starts[HELD];
#pragma unroll
    for (int k = 0; k < HELD; k++) starts[k] = (k * task.threads + thread) * N;
    BlockSums block(task, choice, blockIdx.x);
    Lines<E> x(task, choice, X, block.last), dy(task, choice, OTHER, block.last), dx(task, choice, Y, block.last);
    Lines<E> dtotal(task, choice, choice.added ? ADDED : Y, block.last);
    double inverse_count = 1.0 / (double)features, scale_sum = 0.0;
    double weight_sums[OF_THREAD] = {}, bias_sums[OF_THREAD] = {};

    auto read_shift = [&](long long row) {
        return is_layer && row < block.last ? x.first[offset_of(task, X, row)] : E{};
    };
    auto sum_deviations = [&](const Derived& of, const Slot<E>* slots, double* sums) {
#pragma unroll
        for (int k = 0; k < HELD; k++)
#pragma unroll
            for (int i = 0; i < N; i++)
                if (!is_layer || starts[k] + (choice.aligned ? 0 : i) < features)
                    add_deviation(of, widen(slots[k].of[i]), choice, sums);
    };

    // x of this row, the next and the one after it.
    Slot<E> here[HELD], next[HELD], after[HELD], gradients[HELD], next_gradients[HELD];
    long long row = block.first + team;
    x.template read<HELD>(task, X, row, starts, here);
    E shift = read_shift(row);
    dy.template read<HELD>(task, OTHER, row, starts, gradients);
    x.template read<HELD>(task, X, row + task.teams, starts, next);
    E next_shift = read_shift(row + task.teams);
    Derived of;
    of.shift = widen(shift);
    Sums<4> sums = {};
    sum_deviations(of, here, sums.of + 2);
    sums = merge_team(sums, task.threads, 1);
    of.finish(task, choice, inverse_count, sums.of[2], sums.of[3]);
    int turns = (int)((block.last - block.first + task.teams - 1) / task.teams);
    for (int turn = 0; turn < turns; turn++, row += task.teams) {
        dy.template read<HELD>(task, OTHER, row + task.teams, starts, next_gradients);
        x.template read<HELD>(task, X, row + 2 * task.teams, starts, after);
        E after_shift = read_shift(row + 2 * task.teams);
        double g[HELD][N], x_hat[HELD][N];
        sums = Sums<4>{};
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            weigh<E>(task, choice, of, starts[k], here[k], gradients[k], g[k], x_hat[k]);
#pragma unroll
            for (int i = 0; i < N; i++) {
                add_gradient(g[k][i], x_hat[k][i], choice, sums.of);
                double gradient = widen(gradients[k].of[i]);
                if (sums_weight) weight_sums[k * N + i] = fma(gradient, x_hat[k][i], weight_sums[k * N + i]);
                if (sums_bias) bias_sums[k * N + i] += gradient;
            }
        }
        Derived of_next;
        of_next.shift = widen(next_shift);
        sum_deviations(of_next, next, sums.of + 2);
        sums = merge_team(sums, task.threads, turn);
        if (is_scale) scale_sum += sums.of[1];
        of.finish_gradient(task, choice, inverse_count, sums.of[0], sums.of[1]);
        of_next.finish(task, choice, inverse_count, sums.of[2], sums.of[3]);
        E* to = dx.first + (row < block.last ? offset_of(task, Y, row) : 0);
        Slot<E> more[HELD] = {};
        if (choice.added) dtotal.template read<HELD>(task, ADDED, row, starts, more);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (row >= block.last || starts[k] >= features) continue;
            if (sizeof(E) == sizeof(float)) {
                forget(here[k]), forget(gradients[k]);
                weigh<E>(task, choice, of, starts[k], here[k], gradients[k], g[k], x_hat[k]);
            }
            Slot<E> result;
#pragma unroll
            for (int i = 0; i < N; i++) result.of[i] = dx_of(of, g[k][i], x_hat[k][i], more[k].of[i], choice);
            if (choice.aligned) {
                *(Slot<E>*)(to + starts[k]) = result;
                continue;
            }
#pragma unroll
            for (int i = 0; i < N; i++)
                if (starts[k] + i < features) to[(starts[k] + i) * dx.step] = result.of[i];
        }
        of = of_next, next_shift = after_shift;
#pragma unroll
        for (int k = 0; k < HELD; k++) here[k] = next[k], next[k] = after[k], gradients[k] = next_gradients[k];
    }
    if constexpr (HAS_SUMS) {
        __shared__ double room[STREAM_WARPS * GROUP * OF_THREAD / 4];
        // Teams one after the other.
        auto add_teams = [&](auto of_feature, long long count, double* to, double* of_thread) {
            if (task.teams == 1) {
                for (int j = 0; j < OF_THREAD; j++)
                    if (of_feature(j) < count) to[of_feature(j)] = of_thread[j];
                return;
            }
            __syncthreads();
            for (int j = 0; j < OF_THREAD; j++)
                if (of_feature(j) < count) room[team * count + of_feature(j)] = of_thread[j];
            __syncthreads();
            for (int i = threadIdx.x; i < count; i += blockDim.x) {
                double sum = 0.0;
                for (int k = 0; k < task.teams; k++) sum += room[k * count + i];
                to[i] = sum;
            }
        };
        auto feature_of = [&](int j) { return starts[j / N] + j % N; };
        if (is_scale) {
            double only[OF_THREAD] = {scale_sum};
            add_teams([&](int j) { return j || thread ? 1 : 0; }, 1, block.weight(0), only);
        }
        if (sums_weight) add_teams(feature_of, features, block.weight(0), weight_sums);
        if (sums_bias) add_teams(feature_of, features, block.bias(0), bias_sums);
    }
}
