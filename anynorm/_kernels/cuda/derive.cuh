// The derivative of rows that are read again for each pass over them. With x_hat = (x - mean) * factor and
// g = dy * weight:
//
//     dx = factor * (g - mean(g) - x_hat * mean(g * x_hat))
//
// Sums over rows, which the gradients of the parameters are, come after it, in the order of stream.cuh.
#pragma once

#include "gradient.cuh"
#include "paired.cuh"

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

// Rows of 16 and 32 bits.
template <class E>
__device__ void derive_again(const Task& task, const Choice& choice) {
    constexpr int N = Slot<E>::SIZE, OF_THREAD = of_thread<E>();
    Team team(task, choice);
    Line<E> x(task, choice, X, team), dy(task, choice, OTHER, team), dx(task, choice, Y, team);
    Line<E> dtotal(task, choice, choice.added ? ADDED : Y, team);
    long long of_part = (long long)team.count * OF_THREAD, features = x.features;
    // Call f(start) for each slot of a part that is this thread's.
    auto each = [&](long long part, auto f) {
#pragma unroll 1
        for (int k = 0; k < OF_THREAD / N; k++) {
            long long start = part * of_part + ((long long)k * team.count + team.thread) * N;
            if (start < features) f(start);
        }
    };
    auto sum_up = [&](auto f) {
        SHARED(Sums<2>, room, TREE * MOST_THREADS / GROUP);
        int places = team.neighbours ? team.neighbours : 1, groups = team.count / GROUP;
        Sums<2>* columns = room + (team.neighbours ? team.neighbour : 0);
        if (groups > 1) {
            if (team.thread < TREE) columns[team.thread * places] = Sums<2>{};
            __syncthreads();
        }
        Sums<2> sums;
        for (long long part = 0; part * of_part < task.features; part++) {
            sums = Sums<2>{};
            each(part, [&](long long start) { f(start, sums.of); });
            sums = team.merge_group(sums, groups ? GROUP : team.count);
            if (groups <= 1) continue;
            if (team.thread % GROUP == 0) columns[(part * groups + team.thread / GROUP) % TREE * places].merge(sums);
            __syncthreads();
        }
        if (groups <= 1) return sums;
        sums = team.merge_group(columns[team.thread % TREE * places], TREE);
        __syncthreads();
        return sums;
    };
    Derived row = {};
    if (choice.rule == LAYER && features) row.shift = widen(x.first[0]);
    Sums<2> sums = sum_up([&](long long start, double* of) {
        Slot<E> slot = unconverted(x.read(start));
        for (int i = 0; i < N; i++)
            if (start + i < features) add_deviation(row.deviation(widen((E)slot.of[i]), choice), choice, of);
    });
    row.finish(task, choice, sums.of[0], sums.of[1]);
    double* kept = task.statistics && team.active && team.thread == 0 ? task.statistics + team.row * STATISTICS : nullptr;
    if (kept) kept[0] = row.shift, kept[1] = row.factor, kept[2] = row.constant;
    double g[N], x_hat[N];
    sums = sum_up([&](long long start, double* of) {
        Slot<E> slot = unconverted(x.read(start)), gradients = unconverted(dy.read(start));
        weigh<E>(task, choice, row, start, slot, gradients, g, x_hat);
        for (int i = 0; i < N; i++) add_gradient(g[i], x_hat[i], choice, of);
    });
    if (kept) kept[4] = sums.of[1];
    row.finish_gradient(task, choice, sums.of[0], sums.of[1]);
    for (long long part = 0; part * of_part < features; part++)
        each(part, [&](long long start) {
            Slot<E> result, more = {};
            Slot<E> slot = unconverted(x.read(start)), gradients = unconverted(dy.read(start));
            weigh<E>(task, choice, row, start, slot, gradients, g, x_hat);
            if (choice.added) more = dtotal.read(start);
            for (int i = 0; i < N; i++) result.of[i] = dx_of<E>(row, g[i], x_hat[i], more.of[i], choice);
            dx.write(start, result);
        });
}

// Rows of float64, in pairs.
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
    Exponents largest = {-4000, -4000, -4000};
    for (long long start = row.first; start < row.features; start += row.distance)
        for (long long i = start; i < row.features && i < start + N; i++) {
            int of_dy = exponent_of(widen(dy.first[i * dy.step])), of_weight = exponent_of(weight_of(task, choice, i).high);
            largest.merge({of_dy, of_weight, of_dy + of_weight});
        }
    Weighted g = {common_exponent(team.merge(largest))};
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

template <class E, class Mode>
__device__ __forceinline__ double x_hat_from(const double* kept, double x, const Choice& choice) {
    if constexpr (sizeof(E) == sizeof(double)) return Mode::x_hat_from(kept, x, choice);
    Derived row = {};
    row.shift = kept[0], row.factor = kept[1], row.constant = kept[2];
    return row.x_hat(row.deviation(x, choice), choice);
}

// The sums of dy * x_hat and of dy over the rows of a block, a thread for each feature; for scale_norm for each block.
template <class E, class Mode>
__device__ void add_rows(const Task& task, const Choice& choice) {
    bool is_scale = choice.rule == SCALE;
    long long feature = (long long)blockIdx.x * blockDim.x + threadIdx.x, block = is_scale ? feature : blockIdx.y;
    if (is_scale ? block >= task.blocks : feature >= task.features) return;
    BlockSums to(task, choice, block);
    double of_weight = 0.0, of_bias = 0.0;
    // As if teams took turns, each with sums of its own.
    for (int team = 0; team < task.teams; team++) {
        double weight_sum = 0.0, bias_sum = 0.0;
        for (long long k = to.first + team; k < to.last; k += task.teams) {
            const double* kept = task.statistics + k * STATISTICS;
            if (is_scale) {
                weight_sum += kept[4];
                continue;
            }
            double x = widen(((const E*)task.arrays[X])[offset_of(task, X, k) + feature * task.steps[X]]);
            double dy = widen(((const E*)task.arrays[OTHER])[offset_of(task, OTHER, k) + feature * task.steps[OTHER]]);
            weight_sum = fma(dy, x_hat_from<E, Mode>(kept, x, choice), weight_sum);
            bias_sum += dy;
        }
        of_weight += weight_sum, of_bias += bias_sum;
    }
    if (choice.weight != NOTHING) *to.weight(is_scale ? 0 : feature) = of_weight;
    if (choice.bias != NOTHING) *to.bias(feature) = of_bias;
}
