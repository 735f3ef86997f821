// The norm of rows: reduce, finish and apply.
#pragma once

#include "paired.cuh"
#include "plain.cuh"

// A slot that is read again, where nothing has been written yet.
template <class E, class Mode, int HELD>
__device__ void normalize_carefully(
    const Task& task, const Choice& choice, const Row<E, HELD>& row, const Mode& mode, int k, const Line<E>& y,
    const Line<E>& added) {
    long long start = row.first + k * row.distance;
    if (start >= row.features) return;
    Slot<E> result, slot = row.read(start);
    mode.apply_carefully(task, choice, start, slot, result);
    if (choice.added) added.write(start, slot);
    y.write(start, result);
}

template <class E, class Mode, int HELD>
__device__ void normalize_rows(const Task& task, const Choice& choice) {
    Team team(task, choice);
    Row<E, HELD> row(task, choice, team);
    team.wait_for_others();
    Mode mode(task, choice, team, row);
    Line<E> y(task, choice, Y, team), added(task, choice, choice.added ? ADDED : Y, team);
    unsigned left = 0;
    int k = 0;
    row.each([&](long long start, const Slot<E>& slot) {
        Slot<E> result;
        unsigned bit = HELD ? 1u << k++ : 0;
        if (!y.holds(start)) return;
        if (!mode.apply(task, choice, start, slot, result)) {
            left |= bit;
            if (HELD) return;
            mode.apply_carefully(task, choice, start, slot, result);
        }
        if (choice.added) added.write(start, slot);
        y.write(start, result);
    });
    // Beside the rest this would take its registers.
#pragma unroll 1
    for (k = 0; left >> k; k++)
        if (left >> k & 1) normalize_carefully(task, choice, row, mode, k, y, added);
}
