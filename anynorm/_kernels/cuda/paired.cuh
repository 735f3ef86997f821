// Rows in pairs of numbers of the dtype B: float64, for which there is no wider dtype, and rows of 16 and 32 bits where a
// card is slow at float64.
//
// Sums are formed of elements times a power of two, so that they neither overflow nor underflow.
#pragma once

#include "parameters.cuh"

template <class B>
struct Bounds;

template <>
struct Bounds<double> {
    static constexpr int UNIT = 1000;   // exponents of units, up and down
    static constexpr int SAFE = 300;    // exponents of factors and weights whose products stay in range
};

template <>
struct Bounds<float> {
    static constexpr int UNIT = 120;
    static constexpr int SAFE = 40;
};

template <class B>
struct Largest {
    static constexpr int SIZE = 1;
    B of[SIZE];
    // NaN is larger than anything.
    __device__ void merge(const Largest& other) {
        if (other.of[0] > of[0] || other.of[0] != other.of[0]) of[0] = other.of[0];
    }
};

template <class B>
struct PairedSums {
    static constexpr int SIZE = 4;
    B of[SIZE];  // of deviations from the shift, high and low, and of their squares

    __device__ void put(int i, B high, B low) {
        Pair<B> sum = two_sum(of[i], high);
        of[i] = sum.high;
        of[i + 1] += low + sum.low;
    }
    __device__ void add(B value, B shift, bool centred) {
        if (!centred) {
            Pair<B> square = two_product(value, value);
            put(2, square.high, square.low);
            return;
        }
        Pair<B> deviation = two_sum(value, -shift);
        put(0, deviation.high, deviation.low);
        Pair<B> square = two_product(deviation.high, deviation.high);
        put(2, square.high, fma(deviation.high + deviation.high, deviation.low, square.low));
    }
    __device__ void merge(const PairedSums& other) {
        for (int i = 0; i < SIZE; i += 2) {
            Pair<B> sum = two_sum(of[i], other.of[i]);
            of[i] = sum.high;
            of[i + 1] = (of[i + 1] + other.of[i + 1]) + sum.low;
        }
    }
};

// What a row is moved by and multiplied by, in the unit of the row: x_hat = (x * unit - mean) * factor.
template <class B>
struct Moved {
    Pair<B> mean, factor;
    double whole;  // the factor where B may not hold it
    bool is_short; // whether eps is the divisor of scale_norm
};

// In the unit of its row any deviation has squares far above this, and the factor of a smaller eps cannot be squared.
constexpr double EMPTY_ENERGY = 0x1p-960;

// The mean is shift + sums / count, and count times the variance is squares - sums * (sums / count).
__device__ inline Moved<double> finish(const PairedSums<double>& sums, double shift, double count, double eps, bool is_scale) {
    Moved<double> row = {};
    double between = sums.of[0] / count;
    Pair<double> product = two_product(between, count);
    double between_low = (((sums.of[0] - product.high) - product.low) + sums.of[1]) / count;
    row.mean = two_sum(shift, between);
    row.mean.low += between_low;
    product = two_product(sums.of[0], between);
    Pair<double> energy = two_sum(sums.of[2], -product.high);
    energy.low += (sums.of[3] - product.low) - fma(sums.of[0], between_low, sums.of[1] * between);
    double numerator = is_scale ? 1.0 : count;
    if (is_scale) {
        Pair<double> least = two_product(eps, eps);
        row.is_short = energy.high <= least.high;
        if (row.is_short) energy = least;
    } else {
        Pair<double> more = two_product(eps, count);
        Pair<double> sum = two_sum(energy.high, more.high);
        energy = {sum.high, energy.low + (more.low + sum.low)};
    }
    // Where most of it has cancelled, as with an outlier for a shift, the low half is no longer low.
    energy = two_sum(energy.high, energy.low);
    // Of equal numbers nothing is left, not even rounding, but an eps that may be far below their unit.
    if (!(energy.high > EMPTY_ENERGY)) {
        row.whole = energy.high != energy.high ? energy.high : 0.0;
        row.factor = {row.whole, 0.0};
        return row;
    }
    // One step of Newton from the rounded root, with the residual formed exactly.
    double factor = 1.0 / sqrt(energy.high / numerator);
    Pair<double> square = two_product(factor, factor);
    product = two_product(square.high, energy.high);
    double residual = ((numerator - product.high) - product.low) - square.low * energy.high - square.high * energy.low;
    row.factor = {factor, factor * residual / (numerator + numerator)};
    row.whole = factor;
    return row;
}

// In float64, which holds pairs of float32 exactly; so few operations cost little where it is slow.
__device__ inline Moved<float> finish(const PairedSums<float>& of, float shift, double count, double eps, bool is_scale) {
    double sums = (double)of.of[0] + of.of[1], energy = (double)of.of[2] + of.of[3];
    double between = sums / count, mean = shift + between;
    energy -= sums * between;
    double root = is_scale ? fmax(sqrt(energy), eps) : sqrt(energy / count + eps);
    double factor = root > 0.0 ? 1.0 / root : 0.0;
    // Of NaN and a number fmax makes the number.
    if (of.of[2] != of.of[2]) factor = of.of[2];
    Moved<float> row = {};
    row.mean = {(float)mean, (float)(mean - (float)mean)};
    row.factor = {(float)factor, (float)(factor - (float)factor)};
    row.whole = factor;
    return row;
}

template <class B>
struct Paired {
    Moved<B> moved;
    bool is_short;
    B unit;
    int exponent;  // of the unit's reciprocal
    double alone;  // what a row without deviations is multiplied by where eps vanishes in its unit, or 0
    bool safe;     // whether what the row is multiplied by is of moderate size

    Paired() = default;

    template <class Row>
    __device__ Paired(const Task& task, const Choice& choice, const Team& team, const Row& row) {
        bool centred = choice.rule == LAYER;
        Largest<B> largest = {};
        row.each_element([&](auto element) { largest.merge(Largest<B>{{(B)fabs((B)widen(element))}}); });
        largest = team.merge(largest);
        // That of eps too: what is far below it may vanish in sums.
        int of_eps = exponent_of(task.eps);
        if (choice.rule != SCALE) of_eps >>= 1;
        int up = max(exponent_of((double)largest.of[0]), of_eps);
        up = min(max(up, -Bounds<B>::UNIT), Bounds<B>::UNIT);
        B one = power_of_two(-up, B());
        // Any element will do for a shift (Samuelson 1968), and a constant row has no deviations then.
        B shift = centred ? (B)widen(row.first_element) * one : (B)0;
        PairedSums<B> sums = {};
        row.each_element([&](auto element) { sums.add((B)widen(element) * one, shift, centred); });
        *this = team.finish(
            sums, [&](const PairedSums<B>& whole) { return finished(task, choice, whole, shift, largest.of[0], up); });
    }

    __device__ static Paired finished(
        const Task& task, const Choice& choice, const PairedSums<B>& sums, B shift, B largest, int exponent) {
        Paired row = {};
        row.exponent = exponent, row.unit = power_of_two(-exponent, B());
        double eps = task.eps * power_of_two(-exponent, double());
        if (choice.rule != SCALE) eps *= power_of_two(-exponent, double());
        row.moved = finish(sums, shift, (double)task.features, eps, choice.rule == SCALE);
        // Inf less Inf is NaN already, and so is the exact square of Inf.
        row.is_short = row.moved.is_short;
        row.alone = choice.rule != SCALE && row.moved.whole == 0.0 && task.eps > 0.0 ? 1.0 / sqrt(task.eps) : 0.0;
        int size = exponent_of(row.moved.whole);
        row.safe = row.moved.whole == 0.0 || abs(size) < Bounds<B>::SAFE;
        if (choice.rule != LAYER) row.safe = row.safe && abs(exponent) < Bounds<B>::SAFE;
        if (!((double)largest <= LARGEST)) row.moved.factor.high = row.moved.whole = (B)not_a_number();
        return row;
    }

    // Normalize a slot; whether that could be done without leaving the range of B.
    template <class E>
    __device__ __forceinline__ bool apply(
        const Task& task, const Choice& choice, long long start, const Slot<E>& slot, Slot<E>& result) const {
        constexpr int N = Slot<E>::SIZE;
        bool is_layer = choice.rule == LAYER;
        Parameters<B, N> parameters(task, choice, start, Bounds<B>::SAFE);
        // Deviations of float64 are multiplied by a weight of any magnitude.
        if (!(safe && parameters.safe) && !(is_layer && sizeof(B) == sizeof(double))) return false;
#pragma unroll
        for (int i = 0; i < N; i++) {
            B value = widen(slot.of[i]), weight = parameters.weight[i], low = parameters.low[i];
            if (is_layer) {
                value = (value * unit - moved.mean.high) - moved.mean.low;
                value = fma(value, moved.factor.high, value * moved.factor.low);
                narrow(fma(value, weight, fma(value, low, parameters.bias[i])), result.of[i]);
            } else {
                // The factor and the weight first: neither their product nor that with the element leaves its range.
                B rest = fma(weight, moved.factor.low, low * moved.factor.high);
                narrow(fma(value, fma(weight, moved.factor.high, rest) * unit, parameters.bias[i]), result.of[i]);
            }
        }
        return true;
    }

    // Normalize a slot whatever its magnitudes, one element after the other.
    template <class E>
    __device__ void apply_carefully(
        const Task& task, const Choice& choice, long long start, const Slot<E>& slot, Slot<E>& result) const {
#pragma unroll
        for (int i = 0; i < Slot<E>::SIZE; i++)
            if (start + i < task.features) narrow((B)with_exponents(task, choice, start + i, widen(slot.of[i])), result.of[i]);
    }

    // An element with exponents apart.
    __device__ double with_exponents(const Task& task, const Choice& choice, long long i, double value) const {
        Pair<double> weight = weight_of(task, choice, i);
        double bias = bias_of(task, choice, i), factor = moved.whole;
        if (choice.rule == LAYER) {
            double deviation = ((B)value * unit - moved.mean.high) - moved.mean.low;
            return fma(deviation * factor, weight.high, bias);
        }
        if (value == 0.0 || weight.high == 0.0 || factor == 0.0 || factor != factor)
            return fma(value * weight.high, factor, bias);
        double factor_low = sizeof(B) == sizeof(double) ? (double)moved.factor.low : 0.0;
        int of_value = exponent_of(value), of_weight = exponent_of(weight.high);
        value = scaled(value, -of_value);
        double product = scaled(weight.high, -of_weight);
        product = fma(product, factor, fma(product, factor_low, scaled(weight.low, -of_weight) * factor));
        return scaled(value * product, of_value + of_weight - exponent) + bias;
    }

    // For the derivative, which is formed in float64.
    __device__ __forceinline__ double x_hat(double value, const Choice& choice) const {
        return x_hat_of(value, unit, moved.mean, moved.factor.high, choice);
    }
    __device__ double times_factor(double value, int more) const {
        return alone > 0.0 ? scaled(value * alone, more) : scaled(value * moved.factor.high, more - exponent);
    }
    __device__ void keep(double* to) const {
        to[0] = moved.mean.high, to[1] = moved.mean.low, to[2] = moved.factor.high, to[3] = unit;
    }
    __device__ static double x_hat_from(const double* kept, double value, const Choice& choice) {
        return x_hat_of(value, kept[3], {kept[0], kept[1]}, kept[2], choice);
    }
    __device__ static double x_hat_of(double value, double unit, Pair<double> mean, double factor, const Choice& choice) {
        value *= unit;
        return (choice.rule == LAYER ? (value - mean.high) - mean.low : value) * factor;
    }
};
