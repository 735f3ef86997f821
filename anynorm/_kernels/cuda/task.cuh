// What a kernel is handed, what it is compiled for, and slots of elements.
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

    // Whether there is a weight for each feature, which the scale of scale_norm is not.
    __device__ constexpr bool is_weighted() const { return rule != SCALE && weight != NOTHING; }
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
