"""The public functions: check the arguments, choose a kernel, run it."""

from __future__ import annotations

from collections.abc import Callable

from anynorm._by_convention import leading, require_no_moments, resolved
from anynorm._check import Call, check
from anynorm._choose import Kernel, choose, try_fast_paths, try_moments
from anynorm._convention import LAYER_NORM_EPS, RMS_NORM_EPS, SCALE_NORM_EPS, Convention, DefaultEps
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._moments import Moments
from anynorm._types import Array, ArrayT, Axis, Number
from anynorm._wording import describe, sentence


def layer_norm(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
    out: Array | None = None,
) -> ArrayT:
    """Give each row mean 0 and variance 1, then scale and shift its features.

    ``y = (x - mean(x)) / sqrt(var(x) + eps) * (weight + weight_offset) + bias``, where mean and population variance run
    over the normalized axes.

    Parameters
    ----------
    x : array of any shape (..., features)
        float16, bfloat16, float32 or float64, of any array library.
    weight, bias : arrays of the shape of the normalized axes, or that broadcast to x, optional
        In the array's own axis order: for x of shape (N, C, H, W) and ``axis=1``, shape (C,). Or of as many axes as x,
        with length 1 where they do not vary: (1, 1, heads, dim) for a weight per head, (N, 1, dim) for one per sample,
        (1, C, 1, 1) with ``axis=(2, 3)``. Their dtype may differ from x's; left out they are 1 and 0. NumPy arrays are
        taken with an x of JAX, Dask or ndonnx too.
    axis : int or tuple of ints
        The normalized axes.
    eps : float
        Added to the variance, in x's units squared; 0 or more.
    weight_offset : float
        Added to ``weight`` before anything is rounded; 1.0 for weights stored around zero, as Gemma's are.
    convention : Convention or str, optional
        Where eps stands and what is rounded on the way, as a model or a library has it: one of `CONVENTIONS`, or the
        name of one. Its eps is used where none is passed.
    moments : Moments, optional
        Statistics to use instead of x's own, as `moments` returns them; a NaN or Inf in x then affects no other element
        of its row.
    out : array like x, optional
        Where to write the result; ``out=x`` works in place.

    Returns
    -------
    array
        Of x's library, shape, dtype and device: statistics are formed in a wider type, the result is rounded once. A
        constant row gives ``bias``, a row that holds NaN or Inf gives NaN throughout, an empty array an empty one.
        Gradients through autodiff are finite at constant rows: for eps = 0, where the formula has none, they are 0.

    Raises
    ------
    TypeError
        If an argument is not an array of x's library with a real floating dtype (for sparse arrays: always, since
        centring would fill them).
    ValueError
        If a shape, axis, eps or device does not fit, or ``out`` shares only a part of an input's memory.

    References
    ----------
    Ba, Kiros, Hinton 2016, "Layer Normalization", https://arxiv.org/abs/1607.06450

    Examples
    --------
    >>> import numpy, anynorm
    >>> anynorm.layer_norm(numpy.asarray([[1.0, 2.0, 3.0]]), eps=0.0).round(4)
    array([[-1.2247,  0.    ,  1.2247]])
    """
    return run(LAYER_NORM, x, weight, bias, axis, eps, weight_offset, convention, moments, out)


def rms_norm(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
    out: Array | None = None,
) -> ArrayT:
    """Give each row a root mean square of 1, then scale its features.

    ``y = x / sqrt(mean(x**2) + eps) * (weight + weight_offset) + bias``, where the mean runs over the normalized axes.

    Parameters
    ----------
    x : array of any shape (..., features)
        float16, bfloat16, float32 or float64, of any array library.
    weight, bias : arrays of the shape of the normalized axes, or that broadcast to x, optional
        As in `layer_norm`.
    axis : int or tuple of ints
        The normalized axes.
    eps : float
        Added to the mean square, in x's units squared; 0 or more. Always this number, whatever the dtype.
    weight_offset : float
        Added to ``weight`` before anything is rounded; 1.0 for weights stored around zero, as Gemma's are.
    convention : Convention or str, optional
        Where eps stands and what is rounded on the way, as a model or a library has it: one of `CONVENTIONS`, or the
        name of one. Its eps is used where none is passed.
    moments : Moments, optional
        Statistics to use instead of x's own, as `moments` returns them; a NaN or Inf in x then affects no other element
        of its row.
    out : array like x, optional
        Where to write the result; ``out=x`` works in place.

    Returns
    -------
    array
        Of x's library, shape, dtype and device, rounded once. A zero row gives ``bias``, a row that holds NaN or Inf
        gives NaN throughout, an empty array an empty one. Gradients through autodiff are finite at zero rows: for
        eps = 0, where the formula has none, they are 0.

    Raises
    ------
    TypeError
        If an argument is not an array of x's library with a real floating dtype.
    ValueError
        If a shape, axis, eps or device does not fit, or ``out`` shares only a part of an input's memory.

    References
    ----------
    Zhang, Sennrich 2019, "Root Mean Square Layer Normalization", https://arxiv.org/abs/1910.07467

    Examples
    --------
    >>> import numpy, anynorm
    >>> anynorm.rms_norm(numpy.asarray([[1.0, 7.0]]), eps=0.0)
    array([[0.2, 1.4]])
    """
    return run(RMS_NORM, x, weight, bias, axis, eps, weight_offset, convention, moments, out)


def scale_norm(
    x: ArrayT,
    scale: Array | Number | None = None,
    *,
    axis: Axis = -1,
    eps: float = SCALE_NORM_EPS,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
    out: Array | None = None,
) -> ArrayT:
    """Give each row the Euclidean length ``scale``; without a scale, make unit vectors.

    ``y = scale * x / max(norm2(x), eps)``, where the norm runs over the normalized axes.

    Parameters
    ----------
    x : array of any shape (..., features)
        float16, bfloat16, float32 or float64, of any array library.
    scale : number or 0-d array of x's library, optional
        The length to give; left out it is 1.
    axis : int or tuple of ints
        The normalized axes.
    eps : float
        The least length to divide by, in x's units; 0 or more. Rows shorter than it stay shorter than ``scale``.
    convention : Convention or str, optional
        Where eps stands and what is rounded on the way, as a model or a library has it: one of `CONVENTIONS`, or the
        name of one. Its eps is used where none is passed.
    moments : Moments, optional
        Statistics to use instead of x's own, as `moments` returns them; a NaN or Inf in x then affects no other element
        of its row.
    out : array like x, optional
        Where to write the result; ``out=x`` works in place.

    Returns
    -------
    array
        Of x's library, shape, dtype and device, rounded once. A zero row gives 0, a row that holds NaN or Inf gives
        NaN throughout, an empty array an empty one. Gradients through autodiff are finite at zero rows: scale / eps
        times the incoming one, and 0 for eps = 0.

    Raises
    ------
    TypeError
        If x is not an array with a real floating dtype, or scale neither a number nor an array of x's library.
    ValueError
        If a shape, axis, eps or device does not fit, or ``out`` shares only a part of an input's memory.

    References
    ----------
    Nguyen, Salazar 2019, "Transformers without Tears", https://arxiv.org/abs/1910.05895

    Examples
    --------
    >>> import numpy, anynorm
    >>> anynorm.scale_norm(numpy.asarray([[3.0, 4.0]]))
    array([[0.6, 0.8]])
    """
    return run(SCALE_NORM, x, scale, None, axis, eps, 0.0, convention, moments, out)


def run(
    rule: Rule,
    x: ArrayT,
    weight: Array | Number | None,
    bias: Array | None,
    axis: Axis,
    eps: float,
    weight_offset: float,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
    out: Array | None = None,
    choose: Callable[[Call], Kernel] = choose,
) -> ArrayT:
    """Check, choose, run; most small calls take a fast path."""
    if convention is not None:
        rule, eps, weight_offset, portion = resolved(rule, convention, eps, weight_offset, weight is not None)
        if portion != 1.0:
            require_no_moments(moments)
            moments = moments_of_leading(x, axis, portion)
    elif type(eps) is DefaultEps:
        eps = float(eps)
    y: ArrayT | None = try_fast_paths(rule, x, None, weight, bias, axis, eps, weight_offset, out, moments)
    if y is not None:
        return y
    call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset, moments=moments, out=out)
    result: ArrayT = choose(call).run(call)
    return result


def moments_of_leading(x: Array, axis: Axis, portion: float) -> Moments:
    """The moments of the leading portion of the features."""
    call = check(LAYER_NORM, x, None, None, axis, 0.0)
    return moments(leading(x, call.axes, portion), axis=call.axes)


def moments(x: Array, *, axis: Axis = -1, skip_nan: bool = False) -> Moments:
    """Return count, mean and sum of squared deviations of each row.

    Moments of pieces merge into those of the whole, for rows cut over devices or files, and for streams. Every norm
    takes moments as ``moments=``: those of a training set with ``axis=0``, say, to normalize the features of another.

    Parameters
    ----------
    x : array of any shape (..., features)
        float16, bfloat16, float32 or float64, of any array library.
    axis : int or tuple of ints
        The axes that make up a row.
    skip_nan : bool
        Take NaN for a missing element: leave it out of its row, and count the rest. Inf is never left out. A row of NaN
        alone has a count of 0, and a mean and variance of NaN; merging with it changes nothing, and what it is applied
        to becomes NaN.

    Returns
    -------
    Moments
        With ``count``, ``mean``, ``variance``, ``std``, ``mean_square`` and ``merge``; the arrays keep the normalized
        axes with length 1 and are in the wider type that statistics are formed in. `Moments` says what a
        norm makes of a row whose variance is 0, such as a feature that was constant in training.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`, and if ``skip_nan`` is not a bool.

    References
    ----------
    Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance"

    Examples
    --------
    >>> import numpy, anynorm
    >>> x = numpy.asarray([1.0, 2.0, 3.0, 6.0])
    >>> both = anynorm.moments(x[:1]).merge(anynorm.moments(x[1:]))
    >>> both.count, both.mean, both.variance
    (4, array([3.]), array([3.5]))
    >>> anynorm.layer_norm(x[:1], moments=both, eps=0.0).round(4)
    array([-1.069])
    """
    found: Moments | None = try_moments(x, axis) if skip_nan is False else None
    if found is not None:
        return found
    call = check(LAYER_NORM, x, None, None, axis, 0.0)
    if skip_nan is not False:
        if skip_nan is not True:
            raise TypeError(sentence("skip_nan", "be a bool", describe(skip_nan), "pass True or False"))
        call = call._replace(skip_nan=True)
    return choose(call).moments(call)
