// What a kernel is handed, the threads that share a row, and how elements are read and written.
#pragma once

#include "elements.cuh"
#include "memory.cuh"

constexpr int FREE_AXES = 6;
constexpr int ARRAYS = 4;
constexpr int GROUP = 32;  // threads of a row whose numbers are merged in a tree; of those the groups follow in order
constexpr int SLOT_NBYTES = 16;
constexpr int MOST_THREADS = 1024;  // of a block
#ifdef ANYNORM_EMULATED
constexpr int MOST_GROUPS = 8 * MOST_THREADS / GROUP;  // of threads of a row
#else
constexpr int MOST_GROUPS = BLOCK * CLUSTER < GROUP ? 1 : BLOCK * CLUSTER / GROUP;
#endif

enum { LAYER = 0, RMS = 1, SCALE = 2 };
enum { X = 0, OTHER = 1, Y = 2, ADDED = 3 };  // OTHER: the residual, or dy; Y: or dx; ADDED: their sum, or dtotal

// The same fields in the same order as in task.py. Strides and steps are counted in elements.
struct Task {
    long long rows, features;
    double eps, number;  // number: weight_offset, or the scale
    double reciprocal;   // of features
    void* arrays[ARRAYS];
    const void* weight;
    const void* bias;
    double* statistics;  // of the derivative, for each row; null where no parameter wants a gradient
    double* sums;        // of blocks of rows, for each feature
    void* dweight;
    void* dbias;
    long long blocks;  // of rows, whose sums are formed one by one
    long long lengths[FREE_AXES];
    long long strides[ARRAYS][FREE_AXES];
    long long steps[ARRAYS];
    int free_axes;
    int dweight_code, dbias_code;
    int teams;  // rows that a block of the derivative takes at a time, with sums of their own
};

// What the compiler is to know; in tests on a CPU it does not.
struct Choice {
    int rule;
    int weight;  // the code of its dtype, NOTHING, or NUMBER
    int bias;
    int offset;  // whether a number is added to the weight
    int aligned;  // whether every array is whole slots, each at a multiple of its size, and so are the parameters
    int added;  // whether there is a residual and a sum, or a dtotal
    int threads;     // that share a row
    int neighbours;  // rows side by side in a block whose neighbouring threads take neighbouring rows; 0: one by one
    int in_shared;   // whether the held slots of a thread lie in shared memory, and not in registers
    int full;  // whether rows are aligned and fill the held slots of their threads to the last
    int cluster;  // how many blocks share a row
    int abreast;  // how many neighbouring rows a slot lies across; 1: it lies along a row
};

// The elements of a slot. Those of 16 bits stay two to a word, or the compiler takes a register for each.
template <class E, bool IN_PAIRS = sizeof(E) == 2>
struct Elements {
    E of[SLOT_NBYTES / sizeof(E)];

    __device__ __forceinline__ E operator[](int i) const { return of[i]; }
    __device__ __forceinline__ E& operator[](int i) { return of[i]; }
};

template <class E>
struct Elements<E, true> {
    unsigned words[SLOT_NBYTES / 4];

    struct Place {
        using Element = E;
        unsigned& word;
        int shift;
        __device__ __forceinline__ operator E() const { return {(unsigned short)(word >> shift)}; }
        __device__ __forceinline__ void operator=(E element) const {
            word = (word & ~(0xffffu << shift)) | (unsigned)element.bits << shift;
        }
    };
    __device__ __forceinline__ E operator[](int i) const { return {(unsigned short)(words[i / 2] >> i % 2 * 16)}; }
    __device__ __forceinline__ Place operator[](int i) { return {words[i / 2], i % 2 * 16}; }
};

template <class E>
struct alignas(SLOT_NBYTES) Slot {
    static constexpr int SIZE = SLOT_NBYTES / sizeof(E);
    Elements<E> of;
};

template <class T, class Place, class Element = typename Place::Element>
__device__ __forceinline__ void narrow(T value, const Place& place) {
    Element element;
    narrow(value, element);
    place = element;
}

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

// Where a row begins, in elements from the first one of an array.
__device__ __forceinline__ long long offset_of(const Task& task, int array, long long row) {
    long long offset = 0;
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

    __device__ void put(long long i, E element) const { first[i * step] = element; }

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
