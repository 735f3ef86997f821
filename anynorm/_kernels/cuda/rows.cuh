// The elements of a row, where they lie, and how they are read and written.
#pragma once

#include "team.cuh"

// Where a row begins, in elements from the first one of an array; most often there is one axis and nothing to divide.
__device__ __forceinline__ long long offset_of(const Task& task, int array, long long row) {
    long long offset = 0;
#pragma unroll 1
    for (int axis = task.free_axes - 1; axis > 0; axis--) {
        long long before = row / task.lengths[axis];
        offset += (row - before * task.lengths[axis]) * task.strides[array][axis];
        row = before;
    }
    return offset + row * task.strides[array][0];
}

// The elements of a row in one of the arrays, in slots that lie one after the other among the threads of a team.
template <class E>
struct Line {
    E* first;
    long long step, features;
    bool aligned, full;

    __device__ Line(const Task& task, const Choice& choice, int array, const Team& team) {
        first = (E*)task.arrays[array] + (team.active ? offset_of(task, array, team.row) : 0);
        step = task.steps[array];
        features = team.active ? task.features : 0;
        aligned = choice.aligned, full = choice.full;
    }

    __device__ bool holds(long long start) const { return full ? features != 0 : start < features; }

    // The slot of a feature, of this row and its neighbours.
    __device__ Slot<E>* across(long long feature) const { return (Slot<E>*)(first + feature * step); }

    // Zeros stand for what lies behind the row.
    __device__ Slot<E> read(long long start) const {
        Slot<E> slot = {};
        if (aligned) return holds(start) ? read_slot((const Slot<E>*)(first + start)) : slot;
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i++)
            if (start + i < features) slot.of[i] = first[(start + i) * step];
        return slot;
    }

    // A slot that begins in the row.
    __device__ void write(long long start, const Slot<E>& slot) const {
        if (aligned) {
            write_slot((Slot<E>*)(first + start), slot);
            return;
        }
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i++)
            if (start + i < features) first[(start + i) * step] = slot.of[i];
    }
};

// A row of x, or of x and a residual, whose sum is rounded as it is returned. HELD slots of it stay in registers; with
// HELD = 0 they are read again whenever they are asked for.
template <class E, int HELD>
struct Row {
    Line<E> x, other;
    long long first, distance, features;
    bool added;
    Slot<E> held[HELD ? HELD : 1];
    E first_element;  // for all threads of the row; zero where there is no row, and where nobody asks for it

    __device__ Row(const Task& task, const Choice& choice, const Team& team)
        : x(task, choice, X, team), other(task, choice, choice.added ? OTHER : X, team) {
        features = x.features;
        added = choice.added;
        first = (long long)team.thread * Slot<E>::SIZE;
        distance = (long long)team.count * Slot<E>::SIZE;
#pragma unroll
        for (int k = 0; k < HELD; k++) held[k] = read(first + k * distance);
        first_element = choice.rule == LAYER && features ? at(0) : E{};
    }

    __device__ Slot<E> read(long long start) const {
        Slot<E> slot = x.read(start);
        if (!added) return slot;
        Slot<E> more = other.read(start);
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i++) slot.of[i] = add_rounded<E>(slot.of[i], more.of[i]);
        return slot;
    }

    __device__ E at(long long i) const {
        return added ? add_rounded(x.first[i * x.step], other.first[i * other.step]) : x.first[i * x.step];
    }

    // Call f(start, slot) for each slot that is this thread's.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
        if constexpr (HELD) {
#pragma unroll
            for (int k = 0; k < HELD; k++) f(first + k * distance, unconverted(held[k]));
        } else {
            for (long long start = first; start < features; start += distance) f(start, read(start));
        }
    }

    // Call f(element) for each element that is this thread's.
    template <class F>
    __device__ __forceinline__ void each_element(F f) const {
        each([&](long long start, const Slot<E>& slot) {
#pragma unroll
            for (int i = 0; i < Slot<E>::SIZE; i++)
                if (x.aligned ? x.holds(start) : start + i < features) f(slot.of[i]);
        });
    }
};
