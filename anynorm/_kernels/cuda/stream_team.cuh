// The threads that go over rows one after the other, and how their sums are merged.
#pragma once

#include "gradient.cuh"

#ifdef ANYNORM_EMULATED
constexpr int STREAM_CLUSTER = 16;  // blocks of a row
inline int block_threads() { return blockDim.x; }
#else
constexpr int STREAM_CLUSTER = CLUSTER;
__device__ constexpr int block_threads() { return BLOCK; }
#endif

constexpr int STREAM_WARPS = 16;     // of a block at most
constexpr int SHARED_BLOCK = 128;    // threads of a block where several teams share it

// The threads that share a row of a block: a team of them, of as many teams as take rows at a time, or all threads of the
// blocks of a cluster, each with a part of the row.
struct StreamTeam {
    int count, thread, team;  // count: in a block
    int parts, part;
    int turn = 0;  // of merging, 0 and 1 in turns, each with room of its own
    Inbox inbox;

    __device__ StreamTeam(const Choice& choice) {
        count = choice.threads, parts = choice.cluster;
        thread = threadIdx.x % count, team = threadIdx.x / count;
        part = parts > 1 ? blockIdx.x % parts : 0;
        // Nobody may send to a block that has not begun.
        if (parts > 1) inbox.open(), wait_for_cluster();
    }

    // Teams do not wait for each other.
    __device__ __forceinline__ void wait_for_team() const {
#ifdef ANYNORM_EMULATED
        __syncthreads();
#else
        asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(count) : "memory");
#endif
    }

    // Merge what the threads of a row have and call f(whole) in its first group; each thread gets what that returns. What
    // else would each of them do in float64 takes more time than the row.
    template <class F>
    __device__ __forceinline__ Derived finish(Sums<2> sums, F f) {
        if (count <= GROUP) {
            for (int distance = 1; distance < count; distance *= 2)
#pragma unroll
                for (int i = 0; i < 2; i++) sums.of[i] += __shfl_xor_sync(0xffffffffu, sums.of[i], distance);
            return f(sums);
        }
        SHARED(Sums<2>, room, 2 * STREAM_CLUSTER * STREAM_WARPS);
        SHARED(Derived, finished, STREAM_WARPS);
        Sums<2>* groups = room + turn * STREAM_CLUSTER * STREAM_WARPS + team * (count / GROUP);
        int lane = threadIdx.x % GROUP, which = lane % 2, groups_of_row = parts * (count / GROUP);
        // Of neighbouring lanes each goes on with one of the sums.
        double passed = __shfl_xor_sync(0xffffffffu, which ? sums.of[0] : sums.of[1], 1);
        double sum = (which ? sums.of[1] : sums.of[0]) + passed;
#pragma unroll
        for (int distance = 2; distance < GROUP; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        double* place = &groups[part * (count / GROUP) + thread / GROUP].of[which];
        if (parts > 1) {
            if (lane < 2 * parts) inbox.send(lane / 2, place, sum);
            inbox.receive(groups_of_row * sizeof(Sums<2>));
        } else {
            if (lane < 2) *place = sum;
            wait_for_team();
        }
        turn ^= 1;
        if (thread < GROUP) {
            sum = 0.0;
            for (int group = lane / 2; group < groups_of_row; group += TREE) sum += groups[group].of[which];
#pragma unroll
            for (int distance = 2; distance < GROUP; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
            passed = __shfl_xor_sync(0xffffffffu, sum, 1);
            Derived row = f(Sums<2>{{which ? passed : sum, which ? sum : passed}});
            if (thread == 0) finished[team] = row;
        }
        wait_for_team();
        return finished[team];
    }
};
