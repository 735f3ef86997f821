// The norm of rows: reduce, finish and apply.
#pragma once

#include "paired.cuh"
#include "plain.cuh"

template <class E, class Mode, int HELD, bool IN_SHARED = false>
__device__ void normalize_rows(const Task& task, const Choice& choice) {
    Team team(task, choice);
    Row<E, HELD, IN_SHARED> row(task, choice, team);
    team.wait_for_others();
    Mode mode(task, choice, team, row);
    Line<E> y(task, choice, Y, team), added(task, choice, choice.added ? ADDED : Y, team);
    bool all_done = true;
    row.each([&](long long start, const Slot<E>& slot) {
        Slot<E> result;
        if (!y.holds(start)) return;
        if (!mode.apply(task, choice, start, slot, result)) {
            all_done = false;
            return;
        }
        if (choice.added) added.write(start, slot);
        y.write(start, result);
    });
    if (all_done) return;
    // What is left is read again, where nothing has been written yet.
#pragma unroll 1
    for (long long start = row.first; start < row.features; start += row.distance) {
        Slot<E> result, slot = row.read(start);
        if (mode.apply(task, choice, start, slot, result)) continue;
        mode.apply_carefully(task, choice, start, slot, result);
        if (choice.added) added.write(start, slot);
        y.write(start, result);
    }
}
