"""Calls of the CPU kernels whose weights differ from row to row; see kernel_calls.py."""

import numpy as np

import anynorm
from tests.kernel_calls_derivative import VJPS
from tests.kernel_calls_forward import NORMS
from tests.kernel_rows import LARGEST, extreme_rows, numbers


def broadcast(dtype):
    """Weights that differ from row to row: in turns, and by groups."""
    for name, shape, of_weight, of_bias in (
        ("heads", (17, 2, 33), (1, 2, 33), (1, 2, 33)),
        ("one bias", (34, 2, 33), (1, 2, 33), (33,)),
        ("samples and heads", (2, 3, 2, 33), (2, 1, 2, 33), (2, 1, 1, 33)),
        ("short", (2, 3, 3), (2, 1, 3), None),
    ):
        x, dy, weight, bias = (
            None if one is None else numbers(one, dtype, i) for i, one in enumerate((shape, shape, of_weight, of_bias))
        )
        for rule, norm in NORMS.items():
            yield f"{rule} {name}", norm(x, weight, bias)
            yield f"{rule} {name}, offset", norm(x, weight, bias, weight_offset=1.0)
            gradients = VJPS[rule](x, weight, bias)[1](dy)
            yield f"{rule} {name}, gradients", tuple(one for one in gradients if one is not None)
    weight = numbers((1, 2, 33), dtype, 1)
    x = np.repeat(extreme_rows(33, dtype)[:, None], 2, axis=1)
    yield "extreme", anynorm.layer_norm(np.concatenate([x] * 3), weight)
    weight[0, 1, 7] = LARGEST[dtype]
    yield "extreme weight", anynorm.rms_norm(numbers((17, 2, 33), dtype, 2), weight)
