// What is compiled, with the names in capitals defined by compile.py.
#include "add_blocks.cuh"
#include "derive.cuh"
#include "normalize.cuh"
#include "stream.cuh"

enum { NORMALIZE = 0, DERIVE = 1, ADD_ROWS = 2, ADD_BLOCKS = 3, STREAM = 4, STREAM_AND_ADD = 5 };

extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS_AT_ONCE) anynorm(const __grid_constant__ Task task) {
    constexpr Choice choice = {RULE, WEIGHT, BIAS, OFFSET, ALIGNED, IS_ADDED};
    constexpr bool is_double = sizeof(ELEMENT) == sizeof(double);
    if constexpr (STEP == NORMALIZE) normalize_rows<ELEMENT, MODE, HELD_SLOTS>(task, choice);
    if constexpr (STEP == DERIVE && is_double) derive_rows<ELEMENT, MODE, HELD_SLOTS>(task, choice);
    if constexpr (STEP == DERIVE && !is_double) derive_again<ELEMENT>(task, choice);
    if constexpr (STEP == ADD_ROWS) add_rows<ELEMENT, MODE>(task, choice);
    if constexpr (STEP == ADD_BLOCKS) add_blocks(task, choice);
    if constexpr (STEP == STREAM) stream_rows<ELEMENT, false>(task, choice);
    if constexpr (STEP == STREAM_AND_ADD) stream_rows<ELEMENT, true>(task, choice);
}
