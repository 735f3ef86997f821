// The norm of rows side by side, whose slots lie across them: a slot holds one feature of SIZE neighbouring rows. A thread
// takes the features that are its own where rows lie one after the other, in the same order; so the bits are the same.
#pragma once

#include "plain.cuh"

// So much shared memory of a block is for each of its rows once reduced, as launch.py has it.
static_assert(sizeof(Plain) == 48);

// The slots of a thread, SIZE of them for each that it would hold of a row.
template <class E, int HELD, bool IN_SHARED>
struct Abreast {
    static constexpr int SIZE = Slot<E>::SIZE;
    Line<E> x, other;
    int first, distance;
    bool added;
    Slot<E> held[IN_SHARED ? 1 : HELD * SIZE];

    __device__ Abreast(const Task& task, const Choice& choice, const Team& team)
        : x(task, choice, X, team), other(task, choice, choice.added ? OTHER : X, team) {
        first = team.thread * SIZE, distance = team.count * SIZE, added = choice.added;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
#pragma unroll
            for (int i = 0; i < SIZE; i++) {
                int feature = first + k * distance + i;
                if constexpr (IN_SHARED) {
                    Slot<E>* place = own_room<Slot<E>>() + (k * SIZE + i) * blockDim.x;
                    if (!x.holds(feature)) continue;
                    if (added) *place = read(feature);
                    else copy_to_room(place, x.across(feature), true);
                } else {
                    held[k * SIZE + i] = x.holds(feature) ? read(feature) : Slot<E>{};
                }
            }
        }
        if constexpr (IN_SHARED) wait_for_copies<0>();
    }

    __device__ __forceinline__ Slot<E> read(long long feature) const {
        Slot<E> slot = read_slot(x.across(feature));
        if (!added) return slot;
        Slot<E> more = read_slot(other.across(feature));
#pragma unroll
        for (int j = 0; j < SIZE; j++) slot.of[j] = add_rounded<E>(slot.of[j], more.of[j]);
        return slot;
    }

    __device__ __forceinline__ Slot<E> at(int k) const {
        if constexpr (IN_SHARED) return own_room<Slot<E>>()[k * blockDim.x];
        else return unconverted(held[k]);
    }

    // Call f(k, start) for each run of SIZE features that is this thread's; the first of its slots is at(k).
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (x.holds(first + k * distance)) f(k * SIZE, first + k * distance);
    }
};

// What the threads of a row have, merged as in Team::merge; `count` is a power of two and at most N.
template <int N, class S>
__device__ __forceinline__ S merge_tree(const S* from, int count, int distance) {
    if constexpr (N == 1) {
        return *from;
    } else {
        S sums = merge_tree<N / 2>(from, count, distance);
        if (count >= N) sums.merge(merge_tree<N / 2>(from + N / 2 * distance, count, distance));
        return sums;
    }
}

// Reduce and finish the rows of a block; returns what is kept of them, row j of a slot `j * lanes` behind that of its lane.
template <class E, int HELD, bool IN_SHARED>
__device__ __forceinline__ const Plain* finish_rows(
    const Task& task, const Choice& choice, const Team& team, const Abreast<E, HELD, IN_SHARED>& rows, int lanes, int lane) {
    constexpr int SIZE = Slot<E>::SIZE;
    // Of each thread and each row; then of each row. Neighbouring threads write side by side.
    int count = choice.neighbours;
    PlainSums* sums = (PlainSums*)(block_room<Slot<E>>() + (IN_SHARED ? HELD * SIZE * blockDim.x : 0));
    Plain* finished = (Plain*)(sums + team.count * count);
    Slot<E> at_first = {};
    if (choice.rule == LAYER && team.active) at_first = rows.read(0);
    double shifts[SIZE];
    PlainSums own[SIZE] = {};
#pragma unroll
    for (int j = 0; j < SIZE; j++) shifts[j] = choice.rule == LAYER ? (double)widen(at_first.of[j]) : 0.0;
    rows.each([&](int k, int start) {
        Slot<E> run[SIZE];
#pragma unroll
        for (int i = 0; i < SIZE; i++) run[i] = rows.at(k + i);
#pragma unroll
        for (int j = 0; j < SIZE; j++) {
            Slot<E> of_row;
#pragma unroll
            for (int i = 0; i < SIZE; i++) of_row.of[i] = (E)run[i].of[j];
            Plain::add(task, choice, own[j], start, of_row, shifts[j]);
        }
    });
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
        sums[team.thread * count + j * lanes + lane] = own[j];
        if (team.thread == 0) finished[j * lanes + lane].shift = shifts[j];
    }
    __syncthreads();
    // All threads merge first, few of each row; then one for each row.
    int few = team.count < SIZE ? team.count : SIZE, of_group = (team.count < GROUP ? team.count : GROUP) / few;
    for (int k = threadIdx.x; k < team.count / few * count; k += blockDim.x) {
        PlainSums* from = sums + k / count * few * count + k % count;
        *from = merge_tree<SIZE>(from, few, count);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        PlainSums whole = merge_tree<GROUP / SIZE>(sums + k, of_group, few * count);
#pragma unroll 1
        for (int group = GROUP; group < team.count; group += GROUP)
            whole.merge(merge_tree<GROUP / SIZE>(sums + group * count + k, of_group, few * count));
        finished[k] = Plain::finished(task, choice, whole, finished[k].shift);
    }
    __syncthreads();
    return finished + lane;
}

// Normalize a slot across rows of which float32 will not do for all; bit j of `in_float` says whether for row j it will.
template <class E>
__device__ __forceinline__ Slot<E> apply_carefully(
    const Task& task, const Choice& choice, int feature, const Slot<E>& slot, const Plain* finished, int lanes, unsigned in_float) {
    FloatParameters<1> narrow_ones(task, choice, feature);
    Parameters<double, 1> wide_ones(task, choice, feature, 0);
    Slot<E> result;
#pragma unroll
    for (int j = 0; j < Slot<E>::SIZE; j++) {
        const Plain& mode = finished[j * lanes];
        E element = slot.of[j];
        if (in_float >> j & 1) {
            narrow(mode.in_float(choice, element, narrow_ones, 0), result.of[j]);
        } else {
            narrow(mode.carefully(choice, element, wide_ones.weight[0], wide_ones.bias[0]), result.of[j]);
        }
    }
    return result;
}

template <class E, int HELD, bool IN_SHARED>
__device__ void normalize_abreast(const Task& task, const Choice& choice) {
    constexpr int SIZE = Slot<E>::SIZE;
    Team team(task, choice);
    Abreast<E, HELD, IN_SHARED> rows(task, choice, team);
    int lanes = choice.neighbours / SIZE;
    const Plain* finished = finish_rows(task, choice, team, rows, lanes, team.neighbour / SIZE);
    Line<E> y(task, choice, Y, team), total(task, choice, choice.added ? ADDED : Y, team);
    Plain modes[SIZE];
    bool all_done = true;
#pragma unroll
    for (int j = 0; j < SIZE; j++) modes[j] = finished[j * lanes];
    auto write = [&](int feature, const Slot<E>& slot, const Slot<E>& result) {
        if (choice.added) write_slot(total.across(feature), slot);
        write_slot(y.across(feature), result);
    };
    rows.each([&](int k, int start) {
        FloatParameters<SIZE> parameters(task, choice, start);
        bool will_float_do = true;
#pragma unroll
        for (int j = 0; j < SIZE; j++) will_float_do = will_float_do && modes[j].template will_float_do<E>(choice, parameters);
        if (!will_float_do) {
            all_done = false;
            return;
        }
#pragma unroll
        for (int i = 0; i < SIZE; i++) {
            const Slot<E> slot = rows.at(k + i);
            float of[SIZE];
#pragma unroll
            for (int j = 0; j < SIZE; j++) of[j] = modes[j].in_float(choice, (E)slot.of[j], parameters, i);
            write(start + i, slot, narrowed<E>(of));
        }
    });
    if (all_done) return;
    // What is left is read again, where nothing has been written yet.
#pragma unroll 1
    for (int start = rows.first; start < rows.x.features; start += rows.distance) {
        FloatParameters<SIZE> parameters(task, choice, start);
        unsigned in_float = 0;
#pragma unroll
        for (int j = 0; j < SIZE; j++)
            in_float |= (unsigned)finished[j * lanes].template will_float_do<E>(choice, parameters) << j;
        if (in_float == (1u << SIZE) - 1) continue;
#pragma unroll 1
        for (int i = 0; i < SIZE; i++) {
            Slot<E> slot = rows.read(start + i);
            write(start + i, slot, apply_carefully(task, choice, start + i, slot, finished, lanes, in_float));
        }
    }
}
