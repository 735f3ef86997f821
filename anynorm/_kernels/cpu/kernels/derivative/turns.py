"""The kernel for the derivative of rows that take turns with some weights, as heads do.

Each turn has sums of its own. The rows of one turn make a group, so that the sums of a column stay in registers from
row to row; and as many rounds as that takes are gone over turn by turn, so that what is read lies together.
"""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cpu.kernels.derivative.portions import add_up, clear, write_gradients
from anynorm._kernels.cpu.kernels.derivative.rows import Memory, Parameters, differentiate_some, rows_at_once
from anynorm._kernels.cpu.kernels.derivative.steps import Columns
from anynorm._kernels.cpu.kernels.parameters import itemsize_of, widen_chunk
from anynorm._kernels.cpu.kernels.task import Variant, are_few_rounds
from anynorm._kernels.cpu.kernels.turns import turns_of_weights
from anynorm._kernels.cpu.kernels.values import TaskValues, load_task, word
from anynorm._kernels.cpu.language.arithmetic import is_false, larger, smaller, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import fence, store, store_integer

# What is read next is fetched while rows of one turn are reduced, each of which lies elsewhere: rms_norm of float32, 32
# heads of 128, 8 MB without that and with it 1.44 and 1.16 of the time for one weight, 64 MB 1.40 and 1.25, 8 heads of
# 64 in 64 MB 1.70 and 1.2 (EPYC 9005).
_FETCHED_NBYTES = 512


class _Rows(NamedTuple):
    """Which rows take which turn: rounds of turns of rows that repeat one."""

    rounds: int
    turns: int
    repeat: int

    def note(self, to: int, turn: int, first: int, count: int) -> None:
        """Write down the numbers of so many rows of a turn, from one on that is counted among the rows of this turn."""
        begin, passed = cell((first // self.repeat * self.turns + turn) * self.repeat), cell(first % self.repeat)
        for k in loop(0, 8 * count, 8):
            store_integer(to + k, begin + passed)
            following = passed + 1
            is_over = following == self.repeat
            begin[...] = where(is_over, begin + self.turns * self.repeat, begin + 0)
            passed[...] = where(is_over, 0, following)


class _OfTurn(Parameters):
    """Those of rows of one turn. Weights are read as they are, if that is the dtype that is computed in, or widened."""

    def __init__(self, task: TaskValues, turn: int, columns: Columns, scratch: tuple[int, int]) -> None:
        """In scratch there is memory for the weights of all turns, and for those of one in float64."""
        super().__init__(columns)
        self._task, self._turn, (widened, self._wide) = task, turn, scratch
        self._dtype = FLOAT64 if task.dtype is FLOAT64 else FLOAT32
        is_there = (task.weight != 0) & (task.weight_code == self._dtype.code) & (task.weight_offset == 0.0)
        self._is_there, self._weights = is_there, where(is_there, task.weight, widened)
        self._offset = where(task.weight_offset == 0.0, -0.0, task.weight_offset)

    def prepare(self) -> None:
        """Widen the weights of all turns, where that is to be done; they are 1 where there is none."""
        task, dtype = self._task, self._dtype
        for given in cases(task.weight != 0):
            if given:
                count = where(self._is_there, 0, turns_of_weights(task.address) * task.features)
                widen_chunk(task.weight_code, dtype, task.weight, count, self._offset, self._weights)
            else:
                for i in loop(0, task.features, 1):
                    store(self._weights + i * dtype.itemsize, dtype, splat(1.0, dtype, 1))

    def _place(self) -> int:
        """How many elements lie before the weights of the turn."""
        return self._turn * word(self._task.address, "weight_step")

    def of(self, task: TaskValues, row: int) -> tuple[TaskValues, Columns]:
        place = self._weights + self._place() * self._dtype.itemsize
        weight = place if self._dtype is FLOAT64 else self._wide
        return super().of(task._replace(weight=weight, narrow_weight=place), row)

    def widen(self) -> None:
        task = self._task
        for given in cases(task.weight != 0):
            if given:
                source = task.weight + self._place() * itemsize_of(task.weight_code)
                widen_chunk(task.weight_code, FLOAT64, source, task.features, self._offset, self._wide)
            else:
                widen_chunk(FLOAT32.code, FLOAT64, self._weights, task.features, -0.0, self._wide)


def differentiate_turns(variant: Variant, address: int, first: int, last: int) -> int:
    """Find the derivative at portions of all rows, first to last; return the last.

    Portions are as in `differentiate_rows`: some of all rounds, whose sums are those of all turns; or where there are
    few rounds, some of all turns, whose gradients are written when their rows are done. ``work`` holds the sums of each
    portion, for each the weights of one turn in float64, and those of all turns.
    """
    task = load_task(address, variant, has_dy=True)._replace(bias=word(address, "dbias"))
    turns, repeat, portion, sums = (word(address, name) for name in ("turns", "repeat", "portion", "work"))
    rows = _Rows(word(address, "rows") // (turns * repeat), turns, repeat)
    few, of_row = are_few_rounds(rows.rounds), task.features * 8
    units, of_portion = where(few, turns, rows.rounds), where(few, 1, turns) * 2 * of_row
    portions = (units + portion - 1) // portion
    wide = sums + portions * of_portion
    widened, memory = wide + portions * of_row, Memory.new()
    for _ in when(first < 0):
        _OfTurn(task, 0, Columns(0, 0), (widened, 0)).prepare()
    has_sums = (word(address, "dweight") != 0) | (word(address, "dbias") != 0)
    for i in loop(larger(first, 0), smaller(last, portions), 1):
        begin, end = i * portion, smaller(units, (i + 1) * portion)
        turns_of, rounds_of = (
            (where(few == is_turns, begin, 0), where(few == is_turns, end, all_of))
            for is_turns, all_of in ((True, turns), (False, rows.rounds))
        )
        of_sums = where(has_sums, sums + i * of_portion, 0)
        _differentiate_portion(task, memory, rows, turns_of, rounds_of, of_sums, (widened, wide + i * of_row))
    for _ in when((last > portions) & has_sums & is_false(few)):
        add_up(sums, portions, 2 * turns * task.features)
        for turn in loop(0, turns, 1):
            write_gradients(task, address, sums + turn * 2 * of_row, turn * task.features)
    for _ in when(task.streaming):
        fence()
    return last


def _differentiate_portion(
    task: TaskValues, memory: Memory, rows: _Rows, turns: tuple[int, int], rounds: tuple[int, int],
    sums: int, scratch: tuple[int, int],
) -> None:  # fmt: skip
    """The derivative at some turns of some rounds; if these are few, with the gradients of the parameters."""
    few, at_once, features = are_few_rounds(rows.rounds), rows_at_once(task), task.features
    has_sums, row_nbytes = sums != 0, features * task.itemsize
    clear(sums, where(has_sums & is_false(few), 2 * rows.turns * features, 0))
    task = task._replace(ahead=larger(1, _FETCHED_NBYTES // row_nbytes) * row_nbytes)
    step = where(few, rows.rounds, larger(1, at_once // rows.repeat))
    for first in loop(*rounds, step):
        count = smaller(step, rounds[1] - first) * rows.repeat
        for turn in loop(*turns, 1):
            of_turn = where(has_sums & is_false(few), sums + turn * features * 16, sums)
            clear(of_turn, where(has_sums & few, 2 * features, 0))
            parameters = _OfTurn(task, turn, Columns.at(of_turn, features), scratch)
            for start in loop(0, count, at_once):
                some = smaller(at_once, count - start)
                rows.note(memory.group.row, turn, first * rows.repeat + start, some)
                differentiate_some(task, memory, parameters, some)
            for _ in when(has_sums & few):
                write_gradients(task, task.address, of_turn, turn * features)
