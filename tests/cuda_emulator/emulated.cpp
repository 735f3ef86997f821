// The kernels on a CPU, chosen when they are called.
#include "emulator.hpp"

#include "abreast.cuh"
#include "add_blocks.cuh"
#include "derive.cuh"
#include "long.cuh"
#include "normalize.cuh"
#include "stream.cuh"

#ifndef HELD_SLOTS
#error "which numbers of held slots to compile"
#endif

enum { NORMALIZE = 0, DERIVE = 1, ADD_ROWS = 2, ADD_BLOCKS = 3, STREAM = 4, STREAM_AND_ADD = 5, NORMALIZE_LONG = 6 };

struct Launch {
    int step, held;
    Index grid, block;
    bool reversed;
};

template <class E, class Mode, int HELD>
void run_held(const Launch& how, const Task& task, const Choice& choice) {
    if constexpr (std::is_same_v<Mode, Paired<double>>) {
        if (how.step == DERIVE) {
            launch(how.grid, how.block, choice.cluster, [&] { derive_rows<E, Mode, HELD>(task, choice); });
            return;
        }
    }
    if constexpr (std::is_same_v<Mode, Plain> && HELD > 0) {
        if (choice.abreast > 1) {
            // Where registers would not do they lie in shared memory.
            constexpr bool IN_SHARED = HELD * Slot<E>::SIZE * Slot<E>::SIZE > 64;
            launch(how.grid, how.block, choice.cluster, [&] { normalize_abreast<E, HELD, IN_SHARED>(task, choice); });
            return;
        }
    }
    if constexpr (std::is_same_v<Mode, Plain> && HELD > 0) {
        if (how.step == NORMALIZE_LONG) {
            launch(how.grid, how.block, choice.cluster, [&] { normalize_long<E, HELD>(task, choice); });
            return;
        }
    }
    launch(how.grid, how.block, choice.cluster, [&] { normalize_rows<E, Mode, HELD>(task, choice); });
}

template <class E>
bool differentiate(const Launch& how, const Task& task, const Choice& choice) {
    return launch(how.grid, how.block, choice.cluster, [&] {
        if (how.step == DERIVE) derive_again<E>(task, choice);
        if (how.step == STREAM) stream_rows<E, false>(task, choice);
        if (how.step == STREAM_AND_ADD) stream_rows<E, true>(task, choice);
    });
}

template <class E, class Mode>
bool run(const Launch& how, const Task& task, const Choice& choice) {
    if (how.step == ADD_BLOCKS) return launch(how.grid, how.block, choice.cluster, [&] { add_blocks(task, choice); });
    if constexpr (!std::is_same_v<Mode, Paired<float>>) {
        if (how.step == ADD_ROWS) return launch(how.grid, how.block, choice.cluster, [&] { add_rows<E, Mode>(task, choice); });
    }
    if constexpr (std::is_same_v<Mode, Plain>) {
        if (how.step == DERIVE || how.step == STREAM || how.step == STREAM_AND_ADD) return differentiate<E>(how, task, choice);
    }
    bool found = false;
    [&]<int... HELD>(std::integer_sequence<int, HELD...>) {
        ((how.held == HELD ? (run_held<E, Mode, HELD>(how, task, choice), found = true) : false), ...);
    }(std::integer_sequence<int, HELD_SLOTS>());
    return found;
}

template <class E>
bool run_either(bool paired, const Launch& how, const Task& task, const Choice& choice) {
    return paired ? run<E, Paired<float>>(how, task, choice) : run<E, Plain>(how, task, choice);
}

extern "C" bool emulate(int dtype, bool paired, const Launch* how, const Task* task, const Choice* choice) {
    emulator::reversed = how->reversed;
    switch (dtype) {
        case HALF: return run_either<Half>(paired, *how, *task, *choice);
        case BFLOAT16: return run_either<Bfloat16>(paired, *how, *task, *choice);
        case FLOAT: return run_either<float>(paired, *how, *task, *choice);
        default: return run<double, Paired<double>>(*how, *task, *choice);
    }
}
