// Rows of 16 and 32 bits in float64, which has bits and range to spare. Rows of 16 bits are reduced in it and applied in
// float32 where nothing is of extreme magnitude: there are few conversions between the two in a clock cycle.
#pragma once

#include "parameters.cuh"

// Below the first, a mean square is that of a row of zeros and of an eps too small to divide by; so is a norm below the
// second.
constexpr double EMPTY_SQUARE = 0x1p-960, EMPTY_NORM = 1e-300;

// Exponents of factors of which products in float32 stay in range.
constexpr int MODERATE_FACTOR = 100;
// A weight up to here leaves nothing of what an x_hat below the normal numbers of float32 has lost.
constexpr float MODERATE_WEIGHT = 256.0f;

struct PlainSums {
    static constexpr int SIZE = 2;
    double of[SIZE];  // of deviations from the shift, and of their squares

    __device__ void add(double deviation) {
        of[0] += deviation;
        of[1] = fma(deviation, deviation, of[1]);
    }
    __device__ void merge(const PlainSums& other) {
        for (int i = 0; i < SIZE; i++) of[i] += other.of[i];
    }
};

// x_hat is (x - shift) * factor + constant, where constant is -factor times what lies between mean and shift.
struct Plain {
    using Number = double;
    double shift, factor, constant;
    Pair<float> mean;       // of rows of 16 bits
    bool is_moderate;       // whether they can be applied in float32
    bool is_short;          // whether eps is the divisor of scale_norm

    Plain() = default;

    template <class Row>
    __device__ Plain(const Task& task, const Choice& choice, const Team& team, const Row& row) {
        // Any element will do for a shift: none is further from the mean than sqrt(features) standard deviations
        // (Samuelson 1968, "How deviant can you be?"), and float64 has the bits to spare.
        double from = choice.rule == LAYER ? (double)widen(row.at_first()) : 0.0;
        PlainSums sums = {};
        row.each_element([&](auto element) { sums.add((double)widen(element) - from); });
        *this = team.finish(sums, [&](const PlainSums& whole) { return finished(task, choice, whole, from); });
    }

    __device__ static Plain finished(const Task& task, const Choice& choice, const PlainSums& sums, double shift) {
        Plain row = {};
        double squares = sums.of[1], between = choice.rule == LAYER ? sums.of[0] * task.reciprocal : 0.0;
        row.shift = shift;
        if (choice.rule == SCALE) {
            double scale = scale_of(task, choice);
            row.is_short = sqrt(squares) <= task.eps;
            double norm = fmax(sqrt(squares), task.eps);
            row.factor = norm < EMPTY_NORM ? 0.0 : scale / norm;
            // Infinity times a zero of the row would be NaN.
            if (fabs(scale) <= LARGEST) row.factor = fmax(fmin(row.factor, LARGEST), -LARGEST);
        } else {
            double variance = (squares - sums.of[0] * between) * task.reciprocal;
            double mean_square = (variance > 0.0 ? variance : 0.0) + task.eps;
            row.factor = mean_square < EMPTY_SQUARE ? 0.0 : rsqrt(mean_square);
            row.constant = 0.0 - between * row.factor;
        }
        // Squares of finite numbers are finite here, so a row that holds NaN or Inf is one whose squares are not.
        if (!(squares <= LARGEST)) row.factor = not_a_number();
        double mean = shift + between;
        row.mean.high = (float)mean, row.mean.low = (float)(mean - row.mean.high);
        row.is_moderate = abs(exponent_of(row.factor)) < MODERATE_FACTOR;
        return row;
    }

    // Normalize a slot; false where it takes more care.
    template <class E>
    __device__ __forceinline__ bool apply(
        const Task& task, const Choice& choice, long long start, const Slot<E>& slot, Slot<E>& result) const {
        if constexpr (sizeof(E) == 2) {
            return is_moderate && apply_in_float(task, choice, start, slot, result);
        } else {
            apply_carefully(task, choice, start, slot, result);
            return true;
        }
    }

    template <class E>
    __device__ __forceinline__ void apply_carefully(
        const Task& task, const Choice& choice, long long start, const Slot<E>& slot, Slot<E>& result) const {
        constexpr int N = Slot<E>::SIZE;
        Parameters<double, N> parameters(task, choice, start, 0);
#pragma unroll
        for (int i = 0; i < N; i++) {
            double value = widen(slot.of[i]);
            if (sizeof(E) == 2) {  // for which the mean of float32 will do, so that nothing else has to be kept
                value = (choice.rule == LAYER ? (value - mean.high) - mean.low : value) * factor;
            } else {
                value = choice.rule == LAYER ? fma(value - shift, factor, constant) : value * factor;
            }
            if (choice.rule != SCALE && choice.weight != NOTHING) {
                value = fma(value, parameters.weight[i], parameters.bias[i]);
            } else if (choice.bias != NOTHING) {
                value += parameters.bias[i];
            }
            narrow(value, result.of[i]);
        }
    }

    // A slot of 16 bits in float32; false where a parameter is too wide or too large for that.
    template <class E>
    __device__ __forceinline__ bool apply_in_float(
        const Task& task, const Choice& choice, long long start, const Slot<E>& slot, Slot<E>& result) const {
        constexpr int N = Slot<E>::SIZE;
        if (choice.bias == DOUBLE || (choice.weight == DOUBLE && choice.rule != SCALE)) return false;
        FloatParameters<N> parameters(task, choice, start);
        bool is_weighted = choice.rule != SCALE && choice.weight != NOTHING;
        // An error of layer_norm counts beside an x_hat of 1.
        if (is_weighted && choice.rule == RMS && HAS_RANGE_OF_FLOAT<E> && !(parameters.largest_weight() <= MODERATE_WEIGHT))
            return false;
        float of[N], times = (float)factor;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value = widen(slot.of[i]);
            value = (choice.rule == LAYER ? (value - mean.high) - mean.low : value) * times;
            of[i] = is_weighted ? fma(value, parameters.weight[i], parameters.bias[i])
                    : choice.bias != NOTHING ? value + parameters.bias[i] : value;
        }
#pragma unroll
        for (int i = 0; i < N; i += 2) result.of.words[i / 2] = two_narrowed(of[i], of[i + 1], E());
        return true;
    }

    __device__ __forceinline__ double x_hat(double value, const Choice& choice) const {
        return choice.rule == LAYER ? fma(value - shift, factor, constant) : value * factor;
    }
    __device__ double times_factor(double value, int) const { return value * factor; }
    __device__ void keep(double* to) const { to[0] = shift, to[1] = factor, to[2] = constant; }
    __device__ static double x_hat_from(const double* kept, double value, const Choice& choice) {
        return choice.rule == LAYER ? fma(value - kept[0], kept[1], kept[2]) : value * kept[1];
    }
};
