// What is compiled, with the names in capitals defined by compile.py.
#include "abreast.cuh"
#include "add_blocks.cuh"
#include "derive.cuh"
#include "long.cuh"
#include "normalize.cuh"
#include "stream.cuh"

enum { NORMALIZE = 0, DERIVE = 1, ADD_ROWS = 2, ADD_BLOCKS = 3, STREAM = 4, STREAM_AND_ADD = 5, NORMALIZE_LONG = 6 };

#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif

extern "C" __global__ void CLUSTERED __launch_bounds__(BLOCK, LEAST_BLOCKS) anynorm(const __grid_constant__ Task task) {
    constexpr Choice choice = {RULE, WEIGHT, BIAS, OFFSET, ALIGNED, IS_ADDED, THREADS, NEIGHBOURS, SLOTS_IN_SHARED, IS_FULL, CLUSTER, ABREAST};
    if constexpr (ABREAST > 1) normalize_abreast<ELEMENT, HELD_SLOTS, SLOTS_IN_SHARED>(task, choice);
    else if constexpr (STEP == NORMALIZE) normalize_rows<ELEMENT, MODE, HELD_SLOTS>(task, choice);
    if constexpr (STEP == NORMALIZE_LONG) normalize_long<ELEMENT, HELD_SLOTS>(task, choice);
    if constexpr (STEP == DERIVE && sizeof(ELEMENT) == sizeof(double)) derive_rows<ELEMENT, MODE, HELD_SLOTS>(task, choice);
    if constexpr (STEP == DERIVE && sizeof(ELEMENT) < sizeof(double)) derive_again<ELEMENT>(task, choice);
    if constexpr (STEP == ADD_ROWS) add_rows<ELEMENT, MODE>(task, choice);
    if constexpr (STEP == ADD_BLOCKS) add_blocks(task, choice);
    if constexpr (STEP == STREAM) stream_rows<ELEMENT, false>(task, choice);
    if constexpr (STEP == STREAM_AND_ADD) stream_rows<ELEMENT, true>(task, choice);
}
