"""Rows that take turns with some weights and biases, as heads do: row after row, each with that of its turn.

Parameters lie one after the other, in the dtype that is computed in.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.parameters import are_near_one
from anynorm._kernels.cpu.kernels.values import TaskValues, word
from anynorm._kernels.cpu.language.arithmetic import where
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, LAYER
from anynorm._kernels.cpu.language.flow import cell, when


def with_turns(task: TaskValues, address: int) -> TaskValues:
    """The task of rows that take turns: nothing is widened, and the parameters are those of the dtype."""
    names = ("wide_weight", "wide_bias") if task.compute_dtype is FLOAT64 else ("weight", "bias")
    weight, bias = (word(address, name) for name in names)
    return task._replace(turns=True, direct=False, widened=task.widened & False, weight=weight, bias=bias)


class Turns:
    """Whose turn it is, from one row to the next: to divide for each row would show where rows are short."""

    def __init__(self, task: TaskValues, row: int) -> None:
        self._task, self._turns, self._repeat = task, word(task.address, "turns"), word(task.address, "repeat")
        self._turn, self._passed = cell(row // self._repeat % self._turns), cell(row % self._repeat)

    def parameters(self, start: int) -> tuple[int, int]:
        """Where weight and bias of the row lie, from a feature on; 0 where there is none."""
        task = self._task
        weight, bias = (
            where(one == 0, 0, one + (self._turn * word(task.address, step) + start) * task.compute_dtype.itemsize)
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
    """The same as `are_weights_safe`, of the weights of all turns."""
    safe = cell(True)
    if task.compute_dtype is FLOAT64:
        return safe
    turns = where(word(task.address, "weight_step") == 0, 1, word(task.address, "turns"))
    in_doubt = (task.rule != LAYER) | (task.weight_code == FLOAT64.code) | (task.weight_offset != 0.0)
    for _ in when((task.weight != 0) & in_doubt):
        safe[...] = are_near_one(FLOAT32, task.weight, turns * task.features, 2.0**60)
    return safe
