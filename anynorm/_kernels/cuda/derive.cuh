// The derivative of rows. With x_hat = (x - mean) * factor and g = dy * weight:
//
//     dx = factor * (g - mean(g) - x_hat * mean(g * x_hat))
//
// Sums over rows, which the gradients of the parameters are, come after it: first of blocks of rows, then of the blocks,
// each in the order of the rows.
#pragma once

#include "paired.cuh"
#include "plain.cuh"

constexpr int STATISTICS = 5;  // of a row: four from which x_hat follows, and the sum of dy * x_hat
constexpr int MODERATE = 400;  // exponents of numbers of which products stay in range

struct Exponents {
    static constexpr int SIZE = 3;
    int of[SIZE];  // the largest of dy, of weights and of their products

    __device__ void merge(const Exponents& other) {
        for (int i = 0; i < SIZE; i++) of[i] = max(of[i], other.of[i]);
    }
};

struct GradientSums {
    static constexpr int SIZE = 4;
    double of[SIZE];  // of x_hat, g, g * x_hat and dy * x_hat

    __device__ void merge(const GradientSums& other) {
        for (int i = 0; i < SIZE; i++) of[i] += other.of[i];
    }
};

// g in units of 2**exponent, which is 0 unless g might leave the range of float64.
struct Weighted {
    int exponent;

    __device__ double product(double dy, double weight) const {
        if (!exponent || dy == 0.0 || weight == 0.0 || !(fabs(dy) <= LARGEST)) return dy * weight;
        int of_dy = exponent_of(dy), of_weight = exponent_of(weight);
        return scaled(scaled(dy, -of_dy) * scaled(weight, -of_weight), of_dy + of_weight - exponent);
    }
};

// Whether the largest exponents say that products of float64 stay in range.
__device__ inline int common_exponent(const Exponents& found) {
    bool moderate = found.of[0] < MODERATE && found.of[1] < MODERATE && found.of[2] > -MODERATE;
    return moderate || found.of[2] == 0 ? 0 : found.of[2];
}

template <class E, class Mode, int HELD>
__device__ void derive_rows(const Task& task, Choice choice) {
    constexpr int N = Slot<E>::SIZE;
    bool is_added = choice.added, is_scale = choice.rule == SCALE, centred = choice.rule == LAYER;
    Choice of_row = choice;
    of_row.weight = NOTHING, of_row.added = 0;
    Team team(task, choice);
    Row<E, HELD> row(task, of_row, team);
    team.wait_for_others();
    Mode mode(task, of_row, team, row);
    Line<E> dy(task, choice, OTHER, team), dx(task, choice, Y, team), dtotal(task, choice, is_added ? ADDED : Y, team);
    Weighted g = {0};
    if (sizeof(E) == sizeof(double)) {
        Exponents largest = {-4000, -4000, -4000};
        for (long long start = row.first; start < row.features; start += row.distance)
            for (long long i = start; i < row.features && i < start + N; i++) {
                int of_dy = exponent_of(widen(dy.first[i * dy.step])), of_weight = exponent_of(weight_of(task, choice, i).high);
                largest.merge({of_dy, of_weight, of_dy + of_weight});
            }
        g.exponent = common_exponent(team.merge(largest));
    }
    GradientSums sums = {};
    row.each([&](long long start, const Slot<E>& slot) {
        Slot<E> gradients = dy.read(start);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (start + i < row.features) {
                double gradient = widen(gradients.of[i]), x_hat = mode.x_hat(widen(slot.of[i]), choice);
                double weighted = g.product(gradient, weight_of(task, choice, start + i).high);
                sums.of[0] += x_hat;
                sums.of[1] += weighted;
                sums.of[2] = fma(weighted, x_hat, sums.of[2]);
                sums.of[3] = fma(gradient, x_hat, sums.of[3]);
            }
    });
    sums = team.merge(sums);
    double count = (double)task.features, middle = centred ? sums.of[1] / count : 0.0;
    double across = is_scale ? sums.of[2] : (sums.of[2] - middle * sums.of[0]) / count;
    // A row of dy that holds NaN or Inf.
    double spoilt = fabs(across) <= LARGEST && fabs(sums.of[1]) <= LARGEST ? 0.0 : not_a_number();
    if (is_scale && mode.is_short) across = 0.0;
    if (team.active && team.thread == 0 && task.statistics) {
        mode.keep(task.statistics + team.row * STATISTICS);
        task.statistics[team.row * STATISTICS + 4] = sums.of[3];
    }
    row.each([&](long long start, const Slot<E>& slot) {
        if (start >= row.features) return;
        Slot<E> gradients = dy.read(start), result = {}, more = {};
        if (is_added) more = dtotal.read(start);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (start + i < row.features) {
                double weighted = g.product(widen(gradients.of[i]), weight_of(task, choice, start + i).high);
                double rest = (weighted - middle) - mode.x_hat(widen(slot.of[i]), choice) * across + spoilt;
                double value = mode.times_factor(rest, g.exponent);
                narrow(is_added ? value + widen(more.of[i]) : value, result.of[i]);
            }
        dx.write(start, result);
    });
}

// Of one feature, or the scale, and a block of rows: the sums of dy * x_hat and of dy. A thread for each feature.
template <class E, class Mode>
__device__ void add_rows(const Task& task, const Choice& choice) {
    long long feature = (long long)blockIdx.x * blockDim.x + threadIdx.x, features = choice.rule == SCALE ? 1 : task.features;
    if (feature >= features) return;
    for (long long block = blockIdx.y; block < task.blocks; block += gridDim.y) {
        long long first = block * task.rows_of_block, last = first + task.rows_of_block;
        double of_weight = 0.0, of_bias = 0.0;
        for (long long k = first; k < last && k < task.rows; k++) {
            const double* kept = task.statistics + k * STATISTICS;
            if (choice.rule == SCALE) {
                of_weight += kept[4];
                continue;
            }
            double x = widen(((const E*)task.arrays[X])[offset_of(task, X, k) + feature * task.steps[X]]);
            double dy = widen(((const E*)task.arrays[OTHER])[offset_of(task, OTHER, k) + feature * task.steps[OTHER]]);
            of_weight = fma(dy, Mode::x_hat_from(kept, x, choice), of_weight);
            of_bias += dy;
        }
        double* sums = task.sums + 2 * (block * features + feature);
        sums[0] = of_weight, sums[1] = of_bias;
    }
}

__device__ inline void put_parameter(void* to, int code, long long i, double value) {
    switch (code) {
        case HALF: return narrow(value, ((Half*)to)[i]);
        case BFLOAT16: return narrow(value, ((Bfloat16*)to)[i]);
        case FLOAT: return narrow(value, ((float*)to)[i]);
        default: return narrow(value, ((double*)to)[i]);
    }
}

// The sums of all blocks as gradients of the parameters.
__device__ inline void add_blocks(const Task& task, const Choice& choice) {
    long long feature = (long long)blockIdx.x * blockDim.x + threadIdx.x, features = choice.rule == SCALE ? 1 : task.features;
    if (feature >= features) return;
    double of_weight = 0.0, of_bias = 0.0;
    for (long long block = 0; block < task.blocks; block++) {
        const double* sums = task.sums + 2 * (block * features + feature);
        of_weight += sums[0], of_bias += sums[1];
    }
    if (task.dweight) put_parameter(task.dweight, task.dweight_code, feature, of_weight);
    if (task.dbias) put_parameter(task.dbias, task.dbias_code, feature, of_bias);
}
