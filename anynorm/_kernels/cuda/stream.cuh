// The derivative of blocks of rows one after the other, whose sums over rows stay in shared memory: x and dy are read
// once.
//
// The next row is on its way while a row is worked on.
#pragma once

#include "stream_team.cuh"

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
        return first + offset_of(task, array, row);
    }

    // Zeros stand for what lies behind the row, and for rows that are not there.
    template <int HELD>
    __device__ __forceinline__ void read(const E* from, bool is_there, const int* starts, Slot<E>* to) const {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            to[k] = Slot<E>{};
            if (aligned) {
                if (is_there && starts[k] < features) to[k] = read_slot((const Slot<E>*)(from + starts[k]));
                continue;
            }
#pragma unroll
            for (int i = 0; i < Slot<E>::SIZE; i++)
                if (is_there && starts[k] + i < features) to[k].of[i] = from[(starts[k] + i) * step];
        }
    }

    // A slot that begins in the row.
    __device__ __forceinline__ void write(E* to, int start, const Slot<E>& slot) const {
        if (aligned) {
            write_slot((Slot<E>*)(to + start), slot);
            return;
        }
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i++)
            if (start + i < features) to[(start + i) * step] = slot.of[i];
    }
};

struct alignas(16) Two {
    double of[2];
};

// The sums over rows of a thread's features, in shared memory: in registers they would take half of those there are.
// Those of two features lie side by side, as do the threads.
struct OverRows {
    Two* own;

    // The place of sums j and j + 1.
    __device__ __forceinline__ Two& operator[](int j) const { return own[j / 2 * block_threads()]; }

    template <int COUNT>
    __device__ void clear() const {
#pragma unroll
        for (int j = 0; j < COUNT; j += 2) (*this)[j] = Two{};
    }

    // Write the sums of the block's features, those of its teams added one after the other.
    template <class E>
    __device__ void write(const StreamTeam& team, const int* starts, int features, bool aligned, double* to) const {
        constexpr int N = Slot<E>::SIZE, HELD = of_thread<E>() / N;
        int teams = block_threads() / team.count;
        if (teams > 1) {
            if (team.team) return;
            for (int j = 0; j < HELD * N; j += 2)
                for (int other = 1; other < teams; other++)
                    for (int i = 0; i < 2; i++) (*this)[j].of[i] += (&(*this)[j])[other * team.count].of[i];
        }
#pragma unroll
        for (int j = 0; j < HELD * N; j += 2) {
            int start = starts[j / N] + j % N;
            Two sums = (*this)[j];
            if (aligned) {
                if (start < features) write_slot((Two*)(to + start), sums);
                continue;
            }
            for (int i = 0; i < 2; i++)
                if (start + i < features) to[start + i] = sums.of[i];
        }
    }
};

template <class E, bool HAS_SUMS>
__device__ void stream_rows(const Task& task, const Choice& choice) {
    constexpr int N = Slot<E>::SIZE, HELD = of_thread<E>() / N, OF_THREAD = of_thread<E>();
    bool is_layer = choice.rule == LAYER, is_scale = choice.rule == SCALE;
    bool has_weight = choice.is_weighted();
    bool sums_weight = HAS_SUMS && has_weight, sums_bias = HAS_SUMS && choice.bias != NOTHING;
    int features = (int)task.features, starts[HELD];
    StreamTeam team(choice);
#pragma unroll
    for (int k = 0; k < HELD; k++) starts[k] = ((team.part * HELD + k) * team.count + team.thread) * N;
    BlockSums block(task, choice, blockIdx.x / team.parts);
    Lines<E> x(task, choice, X), dy(task, choice, OTHER), dx(task, choice, Y), dtotal(task, choice, choice.added ? ADDED : Y);
    double scale_sum = 0.0;
    OverRows weight_sums = {own_room<Two>()}, bias_sums = weight_sums;
    if (sums_weight) weight_sums.clear<OF_THREAD>(), bias_sums.own += OF_THREAD / 2 * block_threads();
    if (sums_bias) bias_sums.clear<OF_THREAD>();

    Slot<E> next[HELD], next_gradients[HELD];
    E next_shift = {};
    auto read = [&](long long row) {
        bool is_there = row < block.last;
        const E* first = x.row(task, X, is_there ? row : 0);
        x.template read<HELD>(first, is_there, starts, next);
        if (is_layer && is_there) next_shift = *first;
        dy.template read<HELD>(dy.row(task, OTHER, is_there ? row : 0), is_there, starts, next_gradients);
    };
    read(block.first + team.team);
    int turns = (int)((block.last - block.first + task.teams - 1) / task.teams);
#pragma unroll 1
    for (int turn = 0; turn < turns; turn++) {
        long long row = block.first + team.team + (long long)turn * task.teams;
        Derived of = {};
        of.shift = widen(next_shift);
        Slot<E> slots[HELD], gradients[HELD];
#pragma unroll
        for (int k = 0; k < HELD; k++) slots[k] = next[k], gradients[k] = next_gradients[k];
        read(row + task.teams);
        // From here on each element is converted once: x becomes its deviation, then x_hat, and dy becomes g.
        double x_hat[HELD][N] = {}, g[HELD][N];
        Sums<2> sums = {};
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            slots[k] = unconverted(slots[k]);
            if (is_layer && choice.aligned && starts[k] >= features) continue;
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (is_layer && !choice.aligned && starts[k] + i >= features) continue;
                x_hat[k][i] = of.deviation(widen((E)slots[k].of[i]), choice);
                add_deviation(x_hat[k][i], choice, sums.of);
            }
        }
        of = team.finish(sums, [&](const Sums<2>& whole) {
            Derived row = of;
            row.finish(task, choice, whole.of[0], whole.of[1]);
            return row;
        });
        sums = Sums<2>{};
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            gradients[k] = unconverted(gradients[k]);
            double weights[N] = {};
            if (has_weight && starts[k] < features) read_weights<N>(task, choice, starts[k], weights);
#pragma unroll
            for (int i = 0; i < N; i += 2) {
                double first = widen((E)gradients[k].of[i]), second = widen((E)gradients[k].of[i + 1]);
#pragma unroll
                for (int j = i; j < i + 2; j++) {
                    x_hat[k][j] = of.x_hat(x_hat[k][j], choice);
                    g[k][j] = j == i ? first : second;
                    if (has_weight) g[k][j] *= weights[j];
                    add_gradient(g[k][j], x_hat[k][j], choice, sums.of);
                }
                if (sums_weight) {
                    Two& place = weight_sums[k * N + i];
                    Two of_two = place;
                    place = {fma(first, x_hat[k][i], of_two.of[0]), fma(second, x_hat[k][i + 1], of_two.of[1])};
                }
                if (sums_bias) {
                    Two& place = bias_sums[k * N + i];
                    Two of_two = place;
                    place = {of_two.of[0] + first, of_two.of[1] + second};
                }
            }
        }
        of = team.finish(sums, [&](const Sums<2>& whole) {
            Derived row = of;
            row.finish_gradient(task, choice, whole.of[0], whole.of[1]);
            if (is_scale) scale_sum += whole.of[1];
            return row;
        });
        if (row >= block.last) continue;
        E* to = dx.row(task, Y, row);
        Slot<E> more[HELD] = {};
        if (choice.added) dtotal.template read<HELD>(dtotal.row(task, ADDED, row), true, starts, more);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (starts[k] >= features) continue;
            Slot<E> result;
#pragma unroll
            for (int i = 0; i < N; i++) result.of[i] = dx_of<E>(of, g[k][i], x_hat[k][i], more[k].of[i], choice);
            dx.write(to, starts[k], result);
        }
    }
    if constexpr (HAS_SUMS) {
        if (block_threads() > team.count) __syncthreads();
        if (sums_weight) weight_sums.write<E>(team, starts, features, choice.aligned, block.weight(0));
        if (sums_bias) bias_sums.write<E>(team, starts, features, choice.aligned, block.bias(0));
        if (!is_scale) return;
        SHARED(double, room, SHARED_BLOCK);
        if (team.thread == 0) room[team.team] = scale_sum;
        __syncthreads();
        if (threadIdx.x || team.part) return;
        double sum = 0.0;
        for (int j = 0; j < task.teams; j++) sum += room[j];
        *block.weight(0) = sum;
    }
}
