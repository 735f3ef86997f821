// Pairs (high, low) that stand for the exact sum of both.
//
// Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 and the fused multiplication and addition (two_product).
#pragma once

template <class B>
struct Pair {
    B high, low;
};

template <class B>
__device__ __forceinline__ Pair<B> two_sum(B a, B b) {
    B high = a + b;
    B b_seen = high - a;
    return {high, (a - (high - b_seen)) + (b - b_seen)};
}

template <class B>
__device__ __forceinline__ Pair<B> two_product(B a, B b) {
    B high = a * b;
    return {high, fma(a, b, -high)};
}

// A power of two, of exponents that a normal number can have.
__device__ __forceinline__ double power_of_two(int exponent, double) {
    return __longlong_as_double((long long)(exponent + 1023) << 52);
}
__device__ __forceinline__ float power_of_two(int exponent, float) { return __int_as_float((exponent + 127) << 23); }

// The exponent of the leading bit; of 0, and of what is neither finite, something out of range.
__device__ __forceinline__ int exponent_of(double value) {
    int biased = (int)(__double_as_longlong(value) >> 52) & 2047;
    if (biased) return biased - 1023;
    return value == 0.0 ? -2000 : ((int)(__double_as_longlong(value * 0x1p100) >> 52) & 2047) - 1123;
}

// A number times a power of two, rounded once.
__device__ inline double scaled(double value, int exponent) {
    // Up in large steps, and down so that only the last one rounds.
    for (; exponent > 1000; exponent -= 1000) value *= 0x1p1000;
    if (exponent < -1000) {
        int size = exponent_of(value);
        if (size + exponent < -1100) return value * 0.0;
        int most = size + 1000 > -exponent ? -exponent : size + 1000;
        for (; most > 1000; most -= 1000, exponent += 1000) value *= 0x1p-1000;
        value *= power_of_two(-most, double());
        exponent += most;
    }
    return value * power_of_two(exponent, double());
}
