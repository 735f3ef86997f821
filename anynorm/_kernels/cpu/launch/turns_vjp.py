"""The derivative of calls whose rows take turns with some weights, see turns.py."""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels.cpu.compiler.entries import kernel
from anynorm._kernels.cpu.fast_path.derivative import run_portions
from anynorm._kernels.cpu.kernels.task import Task, Variant, are_few_rounds
from anynorm._kernels.cpu.language.dtypes import FLOAT64, FOR_ALL, NUMBERS, OF_ROW, RULES
from anynorm._kernels.cpu.launch.machine import give_back_scratch, take_scratch
from anynorm._kernels.cpu.launch.tasks import dtype_of, may_stream, task_of
from anynorm._kernels.cpu.launch.turns import Plan
from anynorm._kernels.cpu.launch.vjp import portions_of, scratch_length
from anynorm._libraries import dtype_name
from anynorm._libraries.numpy_arrays import NumPy

Array = Any


def differentiate(gradient: Gradient, dx: Array, plan: Plan) -> tuple[Array | None, Array | None]:
    """Write dx, and return dweight and dbias."""
    call, dy, dtotal, _ = gradient
    task, keepalive = task_of(call, dy, dx, dtotal, None, streaming=may_stream(call, dx, None))
    task.turns, task.repeat, task.weight_step, task.bias_step = plan[:4]
    if plan.parameters == NUMBERS:
        return _by_numbers(gradient, task, keepalive)
    is_own = _is_own(call, task)
    return (_by_rows if is_own else _by_turns)(gradient, task, keepalive)


def _is_own(call: Call, task: Task) -> bool:
    """Whether weight and bias lie in memory like x."""
    given: list[Any] = [call.weight, call.bias]
    if call.weight is None or call.weight_offset or task.turns != task.rows:
        return False
    steps = task.weight_step, task.bias_step
    return all(one is None or (step and one.dtype == call.x.dtype) for one, step in zip(given, steps, strict=True))


def _by_rows(gradient: Gradient, task: Task, keepalive: Any) -> tuple[Array | None, Array | None]:
    """Each row has a weight and a bias of its own, and of their gradients."""
    call, memory = gradient.call, gradient.call.library.memory
    dweight, dbias = (
        memory.empty_gradient(one, call.x) if gradient.parameters else None for one in (call.weight, call.bias)
    )
    task.dweight, task.dbias = (0 if one is None else memory.address(one) for one in (dweight, dbias))
    task.portion, portions = portions_of(task.rows)
    _run("derivative", gradient, task, portions, 0, (keepalive, dweight, dbias), OF_ROW)
    return dweight, dbias


def _by_turns(gradient: Gradient, task: Task, keepalive: Any) -> tuple[Array | None, Array | None]:
    """The kernel writes the gradient of a parameter for each turn, which are added up where it is one for all."""
    call, memory = gradient.call, gradient.call.library.memory
    given: list[Any] = [one if gradient.parameters else None for one in (call.weight, call.bias)]
    steps, found = (task.weight_step, task.bias_step), list[Any]()
    for name, one, step in zip(("weight", "bias"), given, steps, strict=True):
        if one is None:
            found.append(None)
            continue
        found.append(memory.empty_gradient(one, call.x) if step else numpy.empty((task.turns, task.features)))
        setattr(task, f"d{name}", memory.address(found[-1]) if step else NumPy.address(found[-1]))
        setattr(task, f"d{name}_code", dtype_of(one.dtype).code if step else FLOAT64.code)
    rounds = task.rows // (task.turns * task.repeat)
    few = are_few_rounds(rounds)
    if few:
        task.portion, portions = portions_of(task.turns, 1)
    else:
        task.portion = -(-portions_of(rounds * task.repeat)[0] // task.repeat)
        portions = -(-rounds // task.portion)
    of_weights = task.turns if task.weight_step else 1
    length = task.features * (portions * (2 * (1 if few else task.turns) + 1) + of_weights)
    _run("derivative_turns", gradient, task, portions, length, (keepalive, found))
    dweight, dbias = (
        one if step or parameter is None else rounded(call, one.sum(0), parameter)
        for one, parameter, step in zip(found, given, steps, strict=True)
    )
    return dweight, dbias


def _by_numbers(gradient: Gradient, task: Task, keepalive: Any) -> tuple[Array | None, Array | None]:
    """The kernel writes what each row has of the gradients, which is added up where rows share a number."""
    call = gradient.call
    free = tuple(call.x.shape[: call.axes[0]])
    numbers = numpy.empty((*free, 2))
    task.numbers = NumPy.address(numbers)
    task.portion, portions = portions_of(task.rows)
    length = scratch_length(task.turns, 1, has_sums=False)
    _run("derivative", gradient, task, portions, length, (keepalive, numbers), NUMBERS)
    given: list[Any] = [one if gradient.parameters else None for one in (call.weight, call.bias)]
    dweight, dbias = (
        None
        if one is None
        else rounded(call, of_rows.sum(tuple([i for i in range(len(free)) if one.shape[i] == 1])), one)
        for one, of_rows in zip(given, (numbers[..., 0], numbers[..., 1]), strict=True)
    )
    return dweight, dbias


def rounded(call: Call, sums: numpy.ndarray, parameter: Array) -> Array:
    """Sums as the gradient of a parameter, of its shape and dtype."""
    sums, library = sums.reshape(parameter.shape), call.library
    with numpy.errstate(all="ignore"):
        if library.name == "numpy":
            return sums.astype(parameter.dtype)
        if dtype_name(parameter.dtype) == "float16":  # torch would round to float32 before
            sums = sums.astype(numpy.float16)
        return library.namespace.astype(library.namespace.asarray(sums), parameter.dtype, copy=False)


def _run(
    name: str, gradient: Gradient, task: Task, portions: int, length: int, keepalive: Any, parameters: int = FOR_ALL
) -> None:
    call, dtype = gradient.call, dtype_of(gradient.call.x.dtype)
    variant = Variant(RULES[call.rule.name], dtype.code, True, gradient.dtotal is not None, parameters=parameters)
    scratch, task.work = take_scratch(length)
    run_portions(kernel(name, variant), task, portions, call.x.nbytes, (gradient, keepalive, scratch))
    give_back_scratch(scratch, task.work)
