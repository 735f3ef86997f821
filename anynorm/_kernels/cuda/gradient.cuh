// The derivative of a row of 16 or 32 bits, in float64: what each way of going over rows has in common.
//
// A row is cut into parts, each for the threads of a block. A thread sums up its elements of a part, and each group of
// threads merges what they have in a tree. Of the groups of all parts every TREE-th follow in order, and those sums are
// merged in a tree.
#pragma once

#include "parameters.cuh"
#include "plain.cuh"

// Elements of a part that a thread takes.
template <class E>
constexpr int of_thread() { return sizeof(E) == sizeof(float) ? 8 : 16; }

constexpr int TREE = 16;
constexpr int STATISTICS = 5;  // of a row: four from which x_hat follows, and the sum of dy * x_hat

template <int N>
struct Sums {
    static constexpr int SIZE = N;
    double of[SIZE];

    __device__ void merge(const Sums& other) {
        for (int i = 0; i < SIZE; i++) of[i] += other.of[i];
    }
};

// x_hat is (x - shift) * factor + constant. `rest` is what the mean of x_hat differs from 0 by, as the constant is rounded.
struct Derived {
    double shift, factor, constant, rest;
    double middle, across;  // what is taken away from g, and how much of x_hat
    double times;           // and what that leaves is multiplied by
    bool is_short;          // whether eps is the divisor of scale_norm

    __device__ __forceinline__ double deviation(double x, const Choice& choice) const {
        return choice.rule == LAYER ? x - shift : x;
    }

    __device__ __forceinline__ double x_hat(double deviation, const Choice& choice) const {
        return choice.rule == LAYER ? fma(deviation, factor, constant) : deviation * factor;
    }

    // From the sums of deviations from the shift and of their squares.
    __device__ __forceinline__ void finish(const Task& task, const Choice& choice, double sum, double squares) {
        if (choice.rule == SCALE) {
            double norm = sqrt(squares);
            is_short = norm <= task.eps;
            norm = fmax(norm, task.eps);
            factor = norm < EMPTY_NORM ? 0.0 : fmin(1.0 / norm, LARGEST);
        } else {
            double between = choice.rule == LAYER ? sum * task.reciprocal : 0.0;
            double variance = choice.rule == LAYER ? fma(-sum, between, squares) * task.reciprocal : squares * task.reciprocal;
            double mean_square = (variance > 0.0 ? variance : 0.0) + task.eps;
            factor = mean_square < EMPTY_SQUARE ? 0.0 : rsqrt(mean_square);
            constant = 0.0 - between * factor;
            rest = fma(between, factor, constant);
        }
        // Squares of finite numbers are finite here, so a row that holds NaN or Inf is one whose squares are not.
        if (!(squares <= LARGEST)) factor = not_a_number();
    }

    // From the sums of g and of g * x_hat; for scale_norm g is dy, and the scale is multiplied to the factor.
    __device__ __forceinline__ void finish_gradient(
        const Task& task, const Choice& choice, double sum, double products) {
        if (choice.rule == LAYER) middle = sum * task.reciprocal;
        across = choice.rule == SCALE ? products : fma(-middle, rest, products * task.reciprocal);
        bool is_finite = fabs(across) <= LARGEST && fabs(middle) <= LARGEST;
        if (choice.rule == SCALE && is_short) across = 0.0;
        if (!is_finite) across = not_a_number();
        times = choice.rule == SCALE ? factor * scale_of(task, choice) : factor;
    }

    __device__ __forceinline__ double dx(double g, double x_hat, const Choice& choice) const {
        return fma(-x_hat, across, choice.rule == LAYER ? g - middle : g) * times;
    }
};

__device__ __forceinline__ void add_deviation(double deviation, const Choice& choice, double* sums) {
    if (choice.rule == LAYER) sums[0] += deviation;
    sums[1] = fma(deviation, deviation, sums[1]);
}

__device__ __forceinline__ void add_gradient(double g, double x_hat, const Choice& choice, double* sums) {
    if (choice.rule == LAYER) sums[0] += g;
    sums[1] = fma(g, x_hat, sums[1]);
}

// Rounded twice where it has 16 bits, which makes an error of half a unit larger by less than a thousandth.
template <class E>
__device__ __forceinline__ E dx_of(const Derived& row, double g, double x_hat, E dtotal, const Choice& choice) {
    double value = row.dx(g, x_hat, choice);
    if (choice.added) value += widen(dtotal);
    E result;
    narrow((float)value, result);
    return result;
}

// The weights of a slot as float64; 1 for scale_norm and where there are none.
template <int N>
__device__ __forceinline__ void read_weights(const Task& task, const Choice& choice, long long start, double* to) {
    if (choice.rule == SCALE || choice.weight == NOTHING) {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = 1.0;
        return;
    }
    read_parameters<N>(task.weight, choice.weight, start, task.features - start, choice.aligned, to);
    if (choice.offset) {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] += task.number;
    }
}

// Of a slot of x and of dy: g and x_hat of its elements. An element behind the row has a dy of 0.
template <class E>
__device__ __forceinline__ void weigh(
    const Task& task, const Choice& choice, const Derived& row, long long start, const Slot<E>& x, const Slot<E>& dy,
    double* g, double* x_hat) {
    constexpr int N = Slot<E>::SIZE;
    bool has_weight = choice.is_weighted();
    double weights[N] = {};
    if (has_weight && start < task.features) read_weights<N>(task, choice, start, weights);
#pragma unroll
    for (int i = 0; i < N; i++) {
        x_hat[i] = row.x_hat(row.deviation(widen((E)x.of[i]), choice), choice);
        g[i] = widen((E)dy.of[i]);
        if (has_weight) g[i] *= weights[i];
    }
}

// Where the sums of a block of rows lie, weights before biases, and which rows it has.
struct BlockSums {
    long long first, last, features;
    double* sums;
    bool has_weight;

    __device__ BlockSums(const Task& task, const Choice& choice, long long block) {
        first = task.rows * block / task.blocks, last = task.rows * (block + 1) / task.blocks;
        features = choice.rule == SCALE ? 1 : task.features;
        has_weight = choice.weight != NOTHING;
        sums = task.sums + block * features * (has_weight + (choice.bias != NOTHING));
    }
    __device__ double* weight(long long feature) const { return sums + feature; }
    __device__ double* bias(long long feature) const { return sums + (has_weight ? features : 0) + feature; }
};
