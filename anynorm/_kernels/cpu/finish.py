"""Step 2 of the definition, for one row or for LANES of them: moments about a shift -> factor and constant.

x_hat is (x - shift) * factor + constant, where constant is -factor times what lies between mean and shift. So a mean
far from 0 costs nothing.
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.jit import inlined
from anynorm._kernels.cpu.lanes import alike, root, where_less
from anynorm._kernels.cpu.tags import SCALE

# Below the first, a mean square is that of a row of zeros and of an eps too small to divide by; so is a norm below the
# second.
_EMPTY_SQUARE, _EMPTY_NORM = 2.0**-960, 1e-300
_LARGEST = 1.7976931348623157e308


@inlined
def finish(rule, sums, squares, count, eps, scale):
    """Factor and constant from the sums of deviations from the shift and of their squares, all float64."""
    zero, one = alike(0.0, sums), alike(1.0, sums)
    constant = zero
    if rule == SCALE:
        norm, least = root(squares), alike(eps, sums)
        norm = where_less(norm, least, least, norm)
        factor = where_less(norm, alike(_EMPTY_NORM, sums), zero, alike(scale, sums) / norm)
        # Infinity times a zero of the row would be NaN.
        factor = where_less(factor, alike(_LARGEST, sums), factor, alike(_LARGEST, sums))
        factor = where_less(alike(-_LARGEST, sums), factor, factor, alike(-_LARGEST, sums))
    else:
        between = sums / alike(count, sums)
        variance = (squares - sums * between) / alike(count, sums)
        mean_square = where_less(variance, zero, zero, variance) + alike(eps, sums)
        factor = where_less(mean_square, alike(_EMPTY_SQUARE, sums), zero, one / root(mean_square))
        constant = zero - between * factor
    # Squares of finite numbers are finite here, so a row that holds NaN or Inf is one whose squares are not.
    return where_less(squares, alike(math.inf, sums), factor, alike(math.nan, sums)), constant
