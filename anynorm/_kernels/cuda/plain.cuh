// Rows of 16 and 32 bits, reduced in float64, which has bits and range to spare. Where nothing is of extreme magnitude they
// are applied in float32, those of 32 bits in pairs of it: there are few conversions between the two in a clock cycle, and
// in float64 a row would need four or five of them an element.
#pragma once

#include "parameters.cuh"

// Below the first, a mean square is that of a row of zeros and of an eps too small to divide by; so is a norm below the
// second.
constexpr double EMPTY_SQUARE = 0x1p-960, EMPTY_NORM = 1e-300;

// Exponents of factors of which products in float32 stay in range, and of factors and weights of which pairs do.
constexpr int MODERATE_FACTOR = 100, MODERATE_OF_PAIR = 40;
constexpr float LEAST_WEIGHT = 0x1p-40f, MOST_WEIGHT = 0x1p40f;
// A weight of bfloat16 up to here leaves nothing of what an x_hat below the normal numbers of float32 has lost.
constexpr float MODERATE_WEIGHT = 256.0f;
// Sums of squares of bfloat16 that have lost nothing of interest in float32.
constexpr float LEAST_SQUARES = 0x1p-60f, MOST_SQUARES = 0x1p100f;

template <class E>
__device__ __forceinline__ Slot<E> narrowed(const float* of) {
    Slot<E> slot;
    if constexpr (sizeof(E) == 2) {
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i += 2) slot.of.words[i / 2] = two_narrowed(of[i], of[i + 1], E());
    } else {
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i++) slot.of[i] = of[i];
    }
    return slot;
}

struct alignas(16) PlainSums {
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

// x_hat is (x - mean) * factor.
struct Plain {
    double shift, factor, whole;  // what deviations are taken from, and the mean
    Pair<float> mean, times;  // mean and factor in float32
    bool is_moderate;         // whether these can be used

    Plain() = default;

    template <class Row>
    __device__ Plain(const Task& task, const Choice& choice, const Team& team, const Row& row) {
        // Any element will do for a shift: none is further from the mean than sqrt(features) standard deviations
        // (Samuelson 1968, "How deviant can you be?"), and float64 has the bits to spare.
        double from = choice.rule == LAYER ? (double)widen(row.first_element) : 0.0;
        PlainSums sums = {};
        row.each([&](long long start, const auto& slot) { add(task, choice, sums, start, slot, from); });
        *this = team.finish(sums, [&](const PlainSums& whole) { return finished(task, choice, whole, from); });
    }

    template <class E>
    __device__ __forceinline__ static void add(
        const Task& task, const Choice& choice, PlainSums& sums, long long start, const Slot<E>& slot, double from) {
        constexpr int N = Slot<E>::SIZE;
        if (sizeof(E) == 2 && choice.rule != LAYER) {
            // Squares of 16 bits are exact in float32, and the sum of a slot is good to 21 bits. Zeros stand for what lies
            // behind the row.
            float squares = 0.0f;
#pragma unroll
            for (int i = 0; i < N; i++) squares = fma((float)widen(slot.of[i]), (float)widen(slot.of[i]), squares);
            if (!HAS_RANGE_OF_FLOAT<E> || (squares >= LEAST_SQUARES && squares <= MOST_SQUARES)) {
                sums.of[1] += squares;
                return;
            }
        }
        bool all = choice.aligned && start < task.features;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (all || start + i < task.features) sums.add((double)widen(slot.of[i]) - from);
    }

    __device__ static Plain finished(const Task& task, const Choice& choice, const PlainSums& sums, double shift) {
        Plain row = {};
        double squares = sums.of[1], between = choice.rule == LAYER ? sums.of[0] * task.reciprocal : 0.0;
        row.shift = shift;
        if (choice.rule == SCALE) {
            double scale = scale_of(task, choice);
            double norm = fmax(sqrt(squares), task.eps);
            row.factor = norm < EMPTY_NORM ? 0.0 : scale / norm;
            // Infinity times a zero of the row would be NaN.
            if (fabs(scale) <= LARGEST) row.factor = fmax(fmin(row.factor, LARGEST), -LARGEST);
        } else {
            double variance = (squares - sums.of[0] * between) * task.reciprocal;
            double mean_square = (variance > 0.0 ? variance : 0.0) + task.eps;
            row.factor = mean_square < EMPTY_SQUARE ? 0.0 : rsqrt(mean_square);
        }
        // Squares of finite numbers are finite here, so a row that holds NaN or Inf is one whose squares are not.
        if (!(squares <= LARGEST)) row.factor = not_a_number();
        row.whole = shift + between;
        row.mean.high = (float)row.whole, row.mean.low = (float)(row.whole - row.mean.high);
        row.times.high = (float)row.factor, row.times.low = (float)(row.factor - row.times.high);
        row.is_moderate = abs(exponent_of(row.factor)) < MODERATE_FACTOR;
        return row;
    }

    // Normalize a slot; false where it takes more care.
    template <class E>
    __device__ __forceinline__ bool apply(
        const Task& task, const Choice& choice, long long start, const Slot<E>& slot, Slot<E>& result) const {
        constexpr int N = Slot<E>::SIZE;
        FloatParameters<N> parameters(task, choice, start);
        if (!will_float_do<E>(choice, parameters)) return false;
        result = in_float<E>(choice, slot, parameters);
        return true;
    }

    template <class E, int N>
    __device__ __forceinline__ Slot<E> in_float(
        const Choice& choice, const Slot<E>& slot, const FloatParameters<N>& parameters) const {
        float of[N];
#pragma unroll
        for (int i = 0; i < N; i++) of[i] = in_float<E>(choice, slot.of[i], parameters, i);
        return narrowed<E>(of);
    }

    // Whether a slot of a row can be applied in float32.
    template <class E, int N>
    __device__ __forceinline__ bool will_float_do(const Choice& choice, const FloatParameters<N>& parameters) const {
        return will_float_do<E>(choice) && are_moderate<E>(choice, parameters);
    }

    // As far as that is a matter of the row, and of the parameters of the slot. Of layer_norm an error counts beside an
    // x_hat of 1.
    template <class E>
    __device__ __forceinline__ bool will_float_do(const Choice& choice) const {
        bool has_pairs = choice.rule == RMS && choice.weight != NOTHING && sizeof(E) == 4;
        return is_moderate && (!has_pairs || abs(exponent_of(factor)) < MODERATE_OF_PAIR);
    }
    template <class E, int N>
    __device__ __forceinline__ static bool are_moderate(const Choice& choice, const FloatParameters<N>& parameters) {
        bool is_weighted = choice.is_weighted();
        if (choice.bias == DOUBLE || (is_weighted && choice.weight == DOUBLE)) return false;
        if (choice.rule != RMS || !is_weighted || !HAS_RANGE_OF_FLOAT<E>) return true;
        return sizeof(E) == 2 ? parameters.are_within(0.0f, MODERATE_WEIGHT) : parameters.are_within(LEAST_WEIGHT, MOST_WEIGHT);
    }

    template <class E, int N>
    __device__ __forceinline__ float in_float(
        const Choice& choice, E element, const FloatParameters<N>& parameters, int i) const {
        float weight = choice.is_weighted() ? parameters.weight[i] : 1.0f, low = choice.offset ? parameters.low[i] : 0.0f;
        if (sizeof(E) == 4) return in_pairs(choice, widen(element), {weight, low}, parameters.bias[i]);
        float value = widen(element);  // of 16 bits, for which float32 has enough
        value = (choice.rule == LAYER ? (value - mean.high) - mean.low : value) * times.high;
        return fma(value, weight, parameters.bias[i]);
    }

    // Of 32 bits: all is rounded once, but for the sum of a bias and what is far below it.
    __device__ __forceinline__ float in_pairs(const Choice& choice, float value, Pair<float> weight, float bias) const {
        if (choice.rule == LAYER) {
            Pair<float> deviation = two_sum(value, -mean.high), x_hat;
            deviation.low -= mean.low;
            x_hat.high = deviation.high * times.high;
            x_hat.low = fma(deviation.high, times.high, -x_hat.high);
            x_hat.low = fma(deviation.high, times.low, fma(deviation.low, times.high, x_hat.low));
            return fma(x_hat.high, weight.high, fma(x_hat.low, weight.high, fma(x_hat.high, weight.low, bias)));
        }
        // The factor and the weight first: their product is in range where that with the element may not be.
        float product = times.high * weight.high;
        float low = fma(times.high, weight.low, fma(times.low, weight.high, fma(times.high, weight.high, -product)));
        return fma(value, product, fma(value, low, bias));
    }

    // The same in float64.
    template <class E>
    __device__ __forceinline__ void apply_carefully(
        const Task& task, const Choice& choice, long long start, const Slot<E>& slot, Slot<E>& result) const {
        constexpr int N = Slot<E>::SIZE;
        Parameters<double, N> parameters(task, choice, start, 0);
#pragma unroll
        for (int i = 0; i < N; i++) {
            E element = slot.of[i];
            narrow(carefully(choice, element, parameters.weight[i], parameters.bias[i]), result.of[i]);
        }
    }

    template <class E>
    __device__ __forceinline__ double carefully(const Choice& choice, E element, double weight, double bias) const {
        double value = widen(element);
        value = (choice.rule == LAYER ? value - whole : value) * factor;
        if (choice.is_weighted()) return fma(value, weight, bias);
        return choice.bias != NOTHING ? value + bias : value;
    }
};
