// The sums of all blocks of rows as gradients of the parameters.
#pragma once

#include "gradient.cuh"

constexpr int ADD_THREADS = 1024, ADD_FEATURES = 32;  // of a block

__device__ inline void put_parameter(void* to, int code, long long i, double value) {
    switch (code) {
        case HALF: return narrow(value, ((Half*)to)[i]);
        case BFLOAT16: return narrow(value, ((Bfloat16*)to)[i]);
        case FLOAT: return narrow(value, ((float*)to)[i]);
        default: return narrow(value, ((double*)to)[i]);
    }
}

// Neighbouring threads take neighbouring features, and the others every so many-th block; what they have is added in a
// tree. For scale_norm all threads share the one scale.
__device__ inline void add_blocks(const Task& task, const Choice& choice) {
    SHARED(double, room, 2 * ADD_THREADS);
    bool is_scale = choice.rule == SCALE;
    int thread = threadIdx.x, across = is_scale ? 1 : ADD_FEATURES, down = ADD_THREADS / across;
    long long feature = (long long)blockIdx.x * across + thread % across, features = is_scale ? 1 : task.features;
    double of_weight = 0.0, of_bias = 0.0;
    if (feature < features) {
#pragma unroll 4
        for (long long block = thread / across; block < task.blocks; block += down) {
            BlockSums from(task, choice, block);
            if (choice.weight != NOTHING) of_weight += *from.weight(feature);
            if (choice.bias != NOTHING) of_bias += *from.bias(feature);
        }
    }
    room[thread] = of_weight, room[ADD_THREADS + thread] = of_bias;
    for (int count = ADD_THREADS / 2; count >= across; count /= 2) {
        __syncthreads();
        if (thread >= count) continue;
        for (int k = 0; k < 2; k++) room[k * ADD_THREADS + thread] += room[k * ADD_THREADS + thread + count];
    }
    if (thread >= across || feature >= features) return;
    if (task.dweight) put_parameter(task.dweight, task.dweight_code, feature, room[thread]);
    if (task.dbias) put_parameter(task.dbias, task.dbias_code, feature, room[ADD_THREADS + thread]);
}
