// The threads that share a row, what each has to itself of it, and how their sums are merged.
#pragma once

#include "task.cuh"

// The threads of a row. Which elements each takes, and the order in which sums are merged, follow from `count` and
// `cluster` alone.
struct Team {
    int count, cluster, thread;
    int neighbours, neighbour;  // 0 where a warp, or a whole block, holds rows one after the other
    long long row;
    bool active;
    mutable Inbox inbox;

    __device__ Team(const Task& task, const Choice& choice) {
        count = choice.threads;
        cluster = choice.cluster;
        neighbours = choice.neighbours;
        if (cluster > 1) {
            neighbour = 0;
            thread = blockIdx.x % cluster * (count / cluster) + threadIdx.x;
            row = blockIdx.x / cluster;
        } else {
            int lanes = neighbours / choice.abreast;
            long long rows_of_block = neighbours ? neighbours : blockDim.x / count;
            neighbour = neighbours ? threadIdx.x % lanes * choice.abreast : threadIdx.x / count;
            thread = neighbours ? threadIdx.x / lanes : threadIdx.x % count;
            row = (long long)blockIdx.x * rows_of_block + neighbour;
        }
        active = row < task.rows;
        if (cluster > 1) inbox.open();
    }

    // Nobody may send to a block that has not begun.
    __device__ void wait_for_others() const {
        if (cluster > 1) wait_for_cluster();
    }

    template <class B>
    __device__ B exchange(B value, int distance) const {
        if (!neighbours) return __shfl_xor_sync(0xffffffffu, value, distance);
        SHARED(B, room, MOST_THREADS);
        room[threadIdx.x] = value;
        __syncthreads();
        B other = room[(thread ^ distance) * neighbours + neighbour];
        __syncthreads();
        return other;
    }

    // Merge what the threads of a row have; each gets the same whole. Merging must not depend on which of two comes first.
    template <class S>
    __device__ S merge(const S& sums) const {
        return finish(sums, [](const S& whole) { return whole; });
    }

    // Merge what the threads of a row have, and call f(whole) in the first of their groups; each gets what that returns.
    // What else would each thread of a row do in float64 takes more time than the row.
    template <class S, class F>
    __device__ auto finish(S sums, F f) const -> decltype(f(sums)) {
        sums = merge_group(sums, count < GROUP ? count : GROUP);
        if (count <= GROUP) return f(sums);
        using Result = decltype(f(sums));
        SHARED(S, rooms, 2 * MOST_GROUPS);
        SHARED(Result, finished, MOST_GROUPS);
        S* groups = rooms + inbox.turn * MOST_GROUPS;
        int places = neighbours ? neighbours : 1, place = neighbours ? neighbour : 0;
        if (cluster > 1) {
            if ((int)threadIdx.x % GROUP < cluster) inbox.send(threadIdx.x % GROUP, &groups[thread / GROUP], sums);
            inbox.receive(count / GROUP * sizeof(S));
        } else {
            if (thread % GROUP == 0) groups[thread / GROUP * places + place] = sums;
            __syncthreads();
        }
        if (thread % (count / cluster) < GROUP) {
            Result result = f(merge_groups(groups + place, places));
            if (thread % GROUP == 0) finished[place] = result;
        }
        __syncthreads();
        return finished[place];
    }

    template <class S>
    __device__ S merge_group(S sums, int size) const {
        for (int distance = 1; distance < size; distance *= 2) {
            S other;
            for (int i = 0; i < S::SIZE; i++) other.of[i] = exchange(sums.of[i], distance);
            sums.merge(other);
        }
        return sums;
    }

    // Few groups in their order, each thread all of them; many, which blocks of a cluster have, in a tree.
    template <class S>
    __device__ S merge_groups(const S* groups, int places) const {
        int size = count / GROUP, first = size < GROUP ? 0 : thread % GROUP, step = size < GROUP ? 1 : GROUP;
        S whole = groups[first * places];
        for (int group = first + step; group < size; group += step) whole.merge(groups[group * places]);
        return size < GROUP ? whole : merge_group(whole, GROUP);
    }
};
