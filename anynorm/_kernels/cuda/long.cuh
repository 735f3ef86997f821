// The norm of rows too long for a block, by the blocks of a cluster, one row after the other. Each block keeps the
// parameters of its part in shared memory, where all rows would otherwise ask the last cache for them; the next row is on
// its way while one is worked on. The bits are those of normalize_rows.
#pragma once

#include "normalize.cuh"

// The parameters of a thread's slots in float32, in shared memory.
template <class E, int HELD>
struct HeldParameters {
    static constexpr int N = Slot<E>::SIZE;
    struct alignas(SLOT_NBYTES) Four {
        float of[4];
    };
    Four* room;
    int threads;
    bool has_weight, has_low, has_bias;
    unsigned moderate = 0;  // slots whose parameters are

    __device__ HeldParameters(const Task& task, const Choice& choice, long long first, long long distance, int of_block)
        : room(own_room<Four>()), threads(of_block) {
        has_weight = choice.is_weighted();
        has_low = has_weight && choice.offset, has_bias = choice.bias != NOTHING;
#pragma unroll 1
        for (int k = 0; k < HELD; k++) {
            long long start = first + k * distance;
            if (start >= task.features) break;
            FloatParameters<N> parameters(task, choice, start);
            if (Plain::are_moderate<E>(choice, parameters)) moderate |= 1u << k;
            each(k, parameters, [](Four& place, float* of) { place = {{of[0], of[1], of[2], of[3]}}; });
        }
    }

    __device__ __forceinline__ FloatParameters<N> at(int k) const {
        FloatParameters<N> parameters;
        each(k, parameters, [](Four& place, float* of) {
            Four four = place;
#pragma unroll
            for (int i = 0; i < 4; i++) of[i] = four.of[i];
        });
        if (!has_bias)
#pragma unroll
            for (int i = 0; i < N; i++) parameters.bias[i] = -0.0f;
        return parameters;
    }

    // Call f(place, numbers) for each four numbers of a slot.
    template <class F>
    __device__ __forceinline__ void each(int k, FloatParameters<N>& parameters, F f) const {
        int place = k * (has_weight + has_low + has_bias) * (N / 4);
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            if (has_weight) f(room[place++ * threads], parameters.weight + i);
            if (has_low) f(room[place++ * threads], parameters.low + i);
            if (has_bias) f(room[place++ * threads], parameters.bias + i);
        }
    }
};

template <class E, int HELD>
__device__ void normalize_long(const Task& task, const Choice& choice) {
    Team team(task, choice);
    Row<E, HELD> row(task, choice, team);
    HeldParameters<E, HELD> parameters(task, choice, row.first, row.distance, team.count / team.cluster);
    team.wait_for_others();
#pragma unroll 1
    while (team.active) {
        Team next_team = team;
        next_team.row += gridDim.x / team.cluster, next_team.active = next_team.row < task.rows;
        Row<E, HELD> next(task, choice, next_team);
        Plain mode(task, choice, team, row);
        Line<E> y(task, choice, Y, team), added(task, choice, choice.added ? ADDED : Y, team);
        unsigned left = mode.template will_float_do<E>(choice) ? ~parameters.moderate : ~0u;
        int k = 0;
        row.each([&](long long start, const Slot<E>& slot) {
            int current = k++;
            if (!y.holds(start) || left >> current & 1) return;
            if (choice.added) added.write(start, slot);
            y.write(start, mode.template in_float<E>(choice, slot, parameters.at(current)));
        });
        if (left & ((1u << HELD) - 1))
#pragma unroll 1
            for (k = 0; k < HELD; k++)
                if (left >> k & 1) normalize_carefully(task, choice, row, mode, k, y, added);
        next_team.inbox = team.inbox;
        team = next_team, row = next;
    }
}
