// Weight and bias, of whichever dtype.
#pragma once

#include "pairs.cuh"
#include "rows.cuh"

template <class P, int N>
struct alignas(N * sizeof(P) < SLOT_NBYTES ? N * sizeof(P) : SLOT_NBYTES) Several {
    P of[N];
};

template <class P, int N, class B>
__device__ __forceinline__ void read_several(const void* from, long long start, long long count, bool aligned, B* to) {
    const P* first = (const P*)from + start;
    if (aligned) {
        Several<P, N> all = *(const Several<P, N>*)first;
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = (B)widen(all.of[i]);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = i < count ? (B)widen(first[i]) : (B)0;
}

// The next N parameters of a row, as numbers of the dtype B.
template <int N, class B>
__device__ __forceinline__ void read_parameters(
    const void* from, int code, long long start, long long count, bool aligned, B* to) {
    switch (code) {
        case HALF: return read_several<Half, N>(from, start, count, aligned, to);
        case BFLOAT16: return read_several<Bfloat16, N>(from, start, count, aligned, to);
        case FLOAT: return read_several<float, N>(from, start, count, aligned, to);
        default: return read_several<double, N>(from, start, count, aligned, to);
    }
}

__device__ __forceinline__ double read_parameter(const void* from, int code, long long i) {
    double value;
    read_parameters<1>(from, code, i, 1, false, &value);
    return value;
}

// The scale of scale_norm, which may be an array of one element.
__device__ __forceinline__ double scale_of(const Task& task, const Choice& choice) {
    if (choice.weight == NOTHING) return 1.0;
    return choice.weight == NUMBER ? task.number : read_parameter(task.weight, choice.weight, 0);
}

// weight + weight_offset as float64 and what that rounds off; 1 where there is none.
__device__ __forceinline__ Pair<double> weight_of(const Task& task, const Choice& choice, long long i) {
    if (choice.rule == SCALE) return {scale_of(task, choice), 0.0};
    if (choice.weight == NOTHING) return {1.0, 0.0};
    double weight = read_parameter(task.weight, choice.weight, i);
    return choice.offset ? two_sum(weight, task.number) : Pair<double>{weight, 0.0};
}

// -0.0 leaves a result of -0.0 as it is.
__device__ __forceinline__ double bias_of(const Task& task, const Choice& choice, long long i) {
    return choice.bias == NOTHING ? -0.0 : read_parameter(task.bias, choice.bias, i);
}

// The weights and biases of a slot in float32, where they have no more bits; a weight and an offset as a pair.
template <int N>
struct FloatParameters {
    float weight[N], low[N], bias[N];

    FloatParameters() = default;

    __device__ FloatParameters(const Task& task, const Choice& choice, long long start) {
        long long count = task.features - start;
        bool aligned = choice.aligned;
        if (choice.is_weighted()) {
            read_parameters<N>(task.weight, choice.weight, start, count, aligned, weight);
            float high = (float)task.number, rest = (float)(task.number - high);
#pragma unroll
            for (int i = 0; i < N; i++) {
                Pair<float> sum = choice.offset ? two_sum(weight[i], high) : Pair<float>{weight[i], 0.0f};
                if (choice.offset) sum = two_sum(sum.high, sum.low + rest);
                weight[i] = sum.high, low[i] = sum.low;
            }
        }
        // -0.0 leaves a result of -0.0 as it is.
#pragma unroll
        for (int i = 0; i < N; i++) bias[i] = -0.0f;
        if (choice.bias != NOTHING) read_parameters<N>(task.bias, choice.bias, start, count, aligned, bias);
    }

    // Whether all weights are 0 or between these.
    __device__ bool are_within(float least, float most) const {
        bool are = true;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float size = fabs(weight[i]);
            are = are && size <= most && (least == 0.0f || size == 0.0f || size >= least);
        }
        return are;
    }
};

// The weights and biases of a slot, the weights as pairs.
template <class B, int N>
struct Parameters {
    B weight[N], low[N], bias[N];
    bool safe = true;  // whether all are 0 or within 2**-`range` and 2**`range`

    __device__ Parameters(const Task& task, const Choice& choice, long long start, int range) {
        long long count = task.features - start;
        bool aligned = choice.aligned;
#pragma unroll
        for (int i = 0; i < N; i++) weight[i] = 1, low[i] = 0, bias[i] = (B)-0.0;
        if (choice.rule == SCALE) {
            double scale = scale_of(task, choice);
#pragma unroll
            for (int i = 0; i < N; i++) weight[i] = (B)scale, low[i] = (B)(scale - (B)scale);
            check(scale, range);
        } else if (choice.weight == DOUBLE || (choice.weight != NOTHING && choice.offset)) {
            double wide[N];
            read_parameters<N>(task.weight, choice.weight, start, count, aligned, wide);
#pragma unroll
            for (int i = 0; i < N; i++) {
                Pair<double> sum = choice.offset ? two_sum(wide[i], task.number) : Pair<double>{wide[i], 0.0};
                weight[i] = (B)sum.high;
                low[i] = (B)((sum.high - weight[i]) + sum.low);
                if (i < count) check(sum.high, range);
            }
        } else if (choice.weight != NOTHING) {
            read_parameters<N>(task.weight, choice.weight, start, count, aligned, weight);
#pragma unroll
            for (int i = 0; i < N; i++) check(weight[i], range);
        }
        if (choice.bias == DOUBLE && sizeof(B) < sizeof(double)) {
            double wide[N];
            read_parameters<N>(task.bias, choice.bias, start, count, aligned, wide);
#pragma unroll
            for (int i = 0; i < N; i++) bias[i] = (B)wide[i], check(wide[i], range);
        } else if (choice.bias != NOTHING) {
            read_parameters<N>(task.bias, choice.bias, start, count, aligned, bias);
        }
    }

    template <class T>
    __device__ __forceinline__ void check(T number, int range) {
        T size = fabs(number);
        safe = safe && (size == 0 || (size > power_of_two(-range, T()) && size < power_of_two(range, T())));
    }
};
