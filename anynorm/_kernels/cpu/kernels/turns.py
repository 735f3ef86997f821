"""Rows that take turns with some weights and biases, as heads do: row after row, each with that of its turn.

Parameters lie one after the other, in the dtype that is computed in or in that of x. A turn has an element of them for
each feature, or one number.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.parameters import are_near_one, itemsize_of
from anynorm._kernels.cpu.kernels.values import TaskValues, word
from anynorm._kernels.cpu.language.arithmetic import is_false, where
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, LAYER, NUMBERS, Dtype
from anynorm._kernels.cpu.language.flow import cases, cell, when


def with_turns(task: TaskValues, address: int) -> TaskValues:
    """The task of rows that take turns: nothing is widened."""
    is_wide = task.compute_dtype is FLOAT64
    names = ("wide_weight", "wide_bias") if is_wide else ("weight", "bias")
    weight, bias = (word(address, name) for name in names)
    direct = False if is_wide else word(address, "direct") != 0
    return task._replace(direct=direct, widened=task.widened & False, weight=weight, bias=bias)


def turns_of_weights(address: int) -> int:
    """How many turns have a weight of their own, of a Task at an address."""
    turns: int = where(word(address, "weight_step") == 0, 1, word(address, "turns"))
    return turns


def place_of_weight(address: int, row: int) -> int:
    """How many elements lie before the weight of a row."""
    return row // word(address, "repeat") % word(address, "turns") * word(address, "weight_step")


def of_turn(task: TaskValues, row: int) -> tuple[int, TaskValues]:
    """Whose turn it is at a row, and the task with the parameters of that turn, in their own dtype."""
    turn = row // word(task.address, "repeat") % word(task.address, "turns")
    weight, bias = (
        where(one == 0, 0, one + turn * word(task.address, step) * itemsize_of(code))
        for one, code, step in (
            (task.weight, task.weight_code, "weight_step"), (task.bias, task.bias_code, "bias_step")
        )
    )  # fmt: skip
    return turn, task._replace(weight=weight, bias=bias)


class Turns:
    """Whose turn it is, from one row to the next: to divide for each row would show where rows are short."""

    def __init__(self, task: TaskValues, row: int) -> None:
        self._task, self._turns, self._repeat = task, word(task.address, "turns"), word(task.address, "repeat")
        self._turn, self._passed = cell(row // self._repeat % self._turns), cell(row % self._repeat)

    def parameters(self, start: int, dtype: Dtype) -> tuple[int, int]:
        """Where weight and bias of the row lie, from a feature on; 0 where there is none."""
        task = self._task
        start = 0 if task.variant.parameters == NUMBERS else start
        weight, bias = (
            where(one == 0, 0, one + (self._turn * word(task.address, step) + start) * dtype.itemsize)
            for one, step in ((task.weight, "weight_step"), (task.bias, "bias_step"))
        )
        return weight, bias

    def go_on(self) -> None:
        """Go to the next row."""
        passed = self._passed + 1
        is_over = passed == self._repeat
        turn = where(is_over, self._turn + 1, self._turn + 0)
        self._passed[...] = where(is_over, 0, passed)
        self._turn[...] = where(turn == self._turns, 0, turn)


def are_turns_safe(task: TaskValues) -> bool:
    """The same as `are_weights_safe`, of the weights of all turns; where each is one row, it is asked row by row."""
    turns = turns_of_weights(task.address)
    return _are_safe(task, is_false(_are_rows(task)), 0, turns)


def is_turn_safe(task: TaskValues, row: int) -> bool:
    """The same of a row, where each turn is one; elsewhere it is known."""
    return _are_safe(task, _are_rows(task), row, 1)


def _are_rows(task: TaskValues) -> bool:
    """Whether each turn is one row: to read all weights beforehand would be to read them twice."""
    return word(task.address, "turns") == word(task.address, "rows")


def _are_safe(task: TaskValues, is_asked: bool, turn: int, turns: int) -> bool:
    safe = cell(True)
    if task.compute_dtype is FLOAT64:
        return safe
    of_turn = 1 if task.variant.parameters == NUMBERS else task.features
    in_doubt = (task.rule != LAYER) | (task.weight_code == FLOAT64.code) | (task.weight_offset != 0.0)
    for _ in when((task.weight != 0) & in_doubt & is_asked):
        for direct in cases(task.direct):
            dtype = task.dtype if direct else FLOAT32
            weight = task.weight + turn * word(task.address, "weight_step") * dtype.itemsize
            safe[...] = are_near_one(dtype, weight, turns * of_turn, 2.0**60)
    return safe
