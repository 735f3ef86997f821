// Numbers of 16 bits, and how elements are widened and rounded; no header of CUDA is needed.
#pragma once

constexpr double LARGEST = 1.7976931348623157e308;

__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000LL); }

struct Half {
    unsigned short bits;
};

struct Bfloat16 {
    unsigned short bits;
};

template <class E>
constexpr bool HAS_RANGE_OF_FLOAT = true;
template <>
constexpr bool HAS_RANGE_OF_FLOAT<Half> = false;

#ifndef ANYNORM_EMULATED  // which brings its own for the processor at hand
__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ unsigned short float_to_bfloat16(float value) {
#if __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    unsigned bits = __float_as_uint(value);
    if (value != value) return (unsigned short)(bits >> 16 | 64);
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}
#endif

// Two numbers at once, the first in the lower half; below sm_80 one after the other.
__device__ __forceinline__ unsigned two_narrowed(float first, float second, Half) {
#if !defined(ANYNORM_EMULATED) && __CUDA_ARCH__ >= 800
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#else
    return float_to_half(first) | (unsigned)float_to_half(second) << 16;
#endif
}

__device__ __forceinline__ unsigned two_narrowed(float first, float second, Bfloat16) {
#if !defined(ANYNORM_EMULATED) && __CUDA_ARCH__ >= 800
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#else
    return float_to_bfloat16(first) | (unsigned)float_to_bfloat16(second) << 16;
#endif
}

__device__ __forceinline__ float widen(Half value) { return half_to_float(value.bits); }
__device__ __forceinline__ float widen(Bfloat16 value) { return __int_as_float((int)value.bits << 16); }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }

// A float from which 16 bits are rounded as from the double itself: cut off, with the last bit set where something was
// (Boldo, Melquiond 2008, "Emulation of a FMA and correctly rounded sums", rounding to odd).
__device__ __forceinline__ float to_odd(double value) {
    float cut = __double2float_rz(value);
    return (double)cut == value || value != value ? cut : __int_as_float(__float_as_int(cut) | 1);
}

__device__ __forceinline__ void narrow(float value, Half& to) { to.bits = float_to_half(value); }
__device__ __forceinline__ void narrow(float value, Bfloat16& to) { to.bits = float_to_bfloat16(value); }
__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, Half& to) { to.bits = float_to_half(to_odd(value)); }
__device__ __forceinline__ void narrow(double value, Bfloat16& to) { to.bits = float_to_bfloat16(to_odd(value)); }
__device__ __forceinline__ void narrow(double value, float& to) { to = (float)value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }

template <class E>
__device__ __forceinline__ E add_rounded(E a, E b) {
    // The sum of two numbers of 16 bits is rounded twice, which with 24 bits in between changes nothing
    // (Figueroa 1995, "When is double rounding innocuous?").
    E sum;
    narrow(widen(a) + widen(b), sum);
    return sum;
}

// As the codes of dtypes in Python have them.
enum { HALF = 0, BFLOAT16 = 1, FLOAT = 2, DOUBLE = 3, NOTHING = 4, NUMBER = 5 };
