"""Gradients of float64 rows of any magnitude, side by side, those of the parameters included; and of NaN and Inf."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import anynorm
from tests import emulated, reference
from tests.backends import CPU_BACKENDS, KERNELS, NUMPY, as_dtype, needs_llvmlite, some
from tests.fast_path import shared_from
from tests.strategies import rows_of_any_magnitude
from tests.test_gradients_precision import BY_KERNEL, HAS_LLVMLITE, NORMS, vjp
from tests.tolerances import (
    KERNEL_GRADIENT_BOUNDS,
    assert_exact,
    assert_sums_exact,
    gradient_bounds_of,
    gradient_of_bias,
    gradient_of_rows,
)

BACKENDS = {backend.name: backend for backend in CPU_BACKENDS}
BOTH_WAYS = [
    BACKENDS[name] for name in ("numpy", "torch", "numpy, definition", "torch, definition") if name in BACKENDS
]
DEFINITIONS = ("numpy, definition", "torch, definition")
SEVERAL = [*BOTH_WAYS, *(BACKENDS[name] for name in ("dask", "jax-x64") if name in BACKENDS)]
LARGEST = float(reference.FORMATS["float64"][2])
# Of rows; those beside 2**-250 and 2**250, whose squares leave the range of the kernel, are on either side of it.
SIZES = [1.0, 1e-304, 1e-300, 1e-100, 2.0**-252, 2.0**-247, 3.0, 2.0**246, 2.0**252, 1e100, 1e300, 0.0, 0.5]


def pull(norm, backend, x, dy, weight, bias=None, eps=1e-5, offset=0.0):
    """dx, dweight and dbias as NumPy arrays; for scale_norm the weight is the scale."""
    with backend.context():
        if norm == "scale_norm":
            found = vjp(norm)(backend.make(x), weight, eps=eps)[1](backend.make(dy))
        else:
            held = [None if one is None else backend.make(one) for one in (weight, bias)]
            found = vjp(norm)(backend.make(x), *held, eps=eps, weight_offset=offset)[1](backend.make(dy))
        return [None if one is None else backend.read(one) for one in found]


def exact_gradients(norm, x, dy, weight, eps=1e-5, offset=0.0):
    """Exact dx and dweight, with the magnitudes for the definition and for a CPU kernel."""
    options = (
        {"scale": weight, "eps": eps} if norm == "scale_norm" else {"weight": weight, "eps": eps, "offset": offset}
    )
    return [gradient_of_rows(norm, x, dy, "float64", by_kernel=by_kernel, **options) for by_kernel in (False, True)]


def assert_gradients(norm, name, got, dy, exact):
    by_kernel = HAS_LLVMLITE and name in BY_KERNEL
    bounds = gradient_bounds_of(name, by_kernel)
    said = {"backend": name, "dtype": "float64", "bounds": bounds, "flushes": "jax" in name}
    dx, dweight = exact[by_kernel]
    assert_exact(got[0], dx, norm=f"{norm} dx", **said)
    if got[1] is not None:
        assert_sums_exact(got[1], dweight, norm=f"{norm} dw", **said)
    if norm != "scale_norm" and got[2] is not None:
        assert_sums_exact(got[2], gradient_of_bias(dy), norm=f"{norm} db", **said)


def mixed(features=5, seed=0):
    """x and dy: rows of each size, and one for each size with a single element of that."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * len(SIZES), features))
    x[: len(SIZES)] *= np.asarray(SIZES)[:, None]
    x[len(SIZES) :, 1] *= SIZES
    return x, rng.standard_normal(x.shape)


@pytest.mark.parametrize(
    ("norm", "parameters"),
    [("scale_norm", "weight alone")]
    + [(norm, what) for norm in NORMS[:2] for what in ("weight and bias", "offset", "bias alone", "weight alone")],
)
def test_ordinary_and_extreme_rows_in_one_call(norm, parameters):
    x, dy = mixed()
    weight = None if parameters == "bias alone" else np.random.default_rng(1).standard_normal(5)
    bias = None if parameters == "weight alone" else np.ones(5)
    offset = 1.0 if parameters == "offset" else 0.0
    weight = 2.5 if norm == "scale_norm" else weight
    for eps in (0.0, 1e-5):
        exact = exact_gradients(norm, x, dy, weight, eps, offset)
        for backend in SEVERAL if parameters == "weight and bias" else BOTH_WAYS[::2]:
            got = pull(norm, backend, x, dy, weight, bias, eps, offset)
            assert_gradients(norm, backend.name, got, dy, exact)


@emulated.needs_compiler
@pytest.mark.parametrize("norm", NORMS)
def test_ordinary_and_extreme_rows_by_the_cuda_kernels(norm):
    x, dy = mixed()
    parameters = (2.5,) if norm == "scale_norm" else (np.random.default_rng(1).standard_normal(5), np.ones(5))
    for eps in (0.0, 1e-5):
        got = emulated.differentiate(norm, x, dy, *parameters, eps=eps)
        exact = exact_gradients(norm, x, dy, parameters[0], eps)
        assert_gradients(norm, "cuda", got, dy, exact)


@needs_llvmlite
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_extreme_rows_in_several_blocks_and_threads_and_scattered(norm):
    x, dy = (np.tile(one, (6, 1)) for one in mixed())
    weight, bias = np.random.default_rng(1).standard_normal((2, 5))
    exact = exact_gradients(norm, x, dy, weight)
    found = []
    try:
        for threads in (1, 2):
            anynorm.set_threads(threads)
            with shared_from(1):
                found.append(pull(norm, NUMPY, x, dy, weight, bias))
    finally:
        anynorm.set_threads(None)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))
    assert_gradients(norm, "numpy", found[0], dy, exact)
    apart = [np.asfortranarray(one) for one in (x, dy)]
    assert_gradients(norm, "numpy", pull(norm, NUMPY, *apart, weight, bias), dy, exact)


@needs_llvmlite
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_errors_do_not_grow_with_the_length_of_an_extreme_row(norm):
    # Of x_hat of 1 and -1, whose sums are exact in Python.
    size, x_hat = 2.0**900, np.tile([1.0, -1.0], 500_000)
    dy = np.random.default_rng(0).random(x_hat.size) * (1 + x_hat)
    dx = vjp(norm)(x_hat * size, eps=0.0)[1](dy)[0] * size
    mean = math.fsum(dy) / dy.size
    exact = dy - x_hat * (math.fsum(dy * x_hat) / dy.size) - (mean if norm == "layer_norm" else 0.0)
    assert np.abs(dx - exact).max() < KERNEL_GRADIENT_BOUNDS["float64"] * np.spacing(mean)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_by_y_of_any_magnitude(norm):
    """Up to many of the largest numbers, whose sums leave the range, and down to such whose squares are 0."""
    x, _ = mixed()
    x = x[[0, 6, 12, 13, 19]]
    rng = np.random.default_rng(2)
    weight = 0.75 if norm == "scale_norm" else rng.uniform(0.5, 1, 5)
    bias = None if norm == "scale_norm" else weight
    for size in (LARGEST, 2.0**252, 2.0**247, 2.0**-247, 2.0**-252, 1e-290, 0.0):
        dy = rng.choice([-0.5, 0.25, 1.0], x.shape) * size
        for eps in (0.0, 1.0):
            exact = exact_gradients(norm, x, dy, weight, eps)
            for backend in BOTH_WAYS[::2]:
                got = pull(norm, backend, x, dy, weight, bias, eps)
                assert np.isfinite(got[0]).any()
                assert not np.isnan(got[0]).any()
                if size < LARGEST:
                    assert_gradients(norm, backend.name, got, dy, exact)


@pytest.mark.parametrize("size", [1e300, 1e-300, 0.0])
@pytest.mark.parametrize("norm", NORMS)
def test_weights_of_any_magnitude(norm, size):
    x, dy = mixed()
    x, dy = x[[0, 6, 12, 13, 19]], dy[[0, 6, 12, 13, 19]]
    weight = size if norm == "scale_norm" else np.random.default_rng(1).standard_normal(5) * size
    exact = exact_gradients(norm, x, dy, weight)
    for backend in BOTH_WAYS[::2]:
        assert_gradients(norm, backend.name, pull(norm, backend, x, dy, weight), dy, exact)


@pytest.mark.parametrize(
    "name", ["numpy", *DEFINITIONS, "jax-x64", pytest.param("cuda", marks=emulated.needs_compiler)]
)
def test_constant_rows_of_any_magnitude_are_divided_by_eps(name):
    x = np.full((7, 3), 1.0) * np.asarray([1.0, 1e20, 1e100, 1e200, 1e300, -1e308, 1e-300])[:, None]
    dy = np.random.default_rng(0).standard_normal(x.shape)
    weight = np.asarray([1e290, 2e290, -1e290])  # which the CPU kernel leaves to the definition
    for eps in (1e-12, 1.0) if name == "jax-x64" else (0.0, 1e-280, 5e-200, 1e-12, 1.0, 7e100):  # each compiles
        if name == "cuda":
            got = emulated.differentiate("layer_norm", x, dy, weight, eps=eps)
        else:
            got = pull("layer_norm", BACKENDS[name], x, dy, weight, None, eps)
        assert_gradients("layer_norm", name, got, dy, exact_gradients("layer_norm", x, dy, weight, eps))


@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
def test_random_rows_of_any_magnitude(norm, data):
    x, dy = data.draw(rows_of_any_magnitude())
    rng = np.random.default_rng(0)
    weight = 1.5 if norm == "scale_norm" else rng.standard_normal(x.shape[1])
    bias = None if norm == "scale_norm" else weight
    eps = data.draw(st.sampled_from([0.0, 1e-5, 1e-12, 1.0]))
    exact = exact_gradients(norm, x, dy, weight, eps)
    # Whether terms that are too large cancel is not asked.
    assume(not any(one.magnitude > LARGEST for row in (*exact[0][0], *exact[0][1]) for one in row))
    for backend in BOTH_WAYS:
        got = pull(norm, backend, x, dy, weight, bias, eps)
        assert_gradients(norm, backend.name, got, dy, exact)


def every_way(norm, x, dy, eps):
    """Gradients by each way there is for a dtype, or those whose turn it is."""
    for name in [backend.name for backend in some(f"every way, {norm}", 0, x.dtype.name)]:
        weight = 2.0 if norm == "scale_norm" else as_dtype(np.ones(x.shape[1]), x.dtype.name)
        yield name, pull(norm, BACKENDS[name], x, dy, weight, None, eps)
    if emulated.COMPILER is not None:
        yield "cuda", emulated.differentiate(norm, x, dy, eps=eps)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_nan_and_inf_make_nan_of_their_row_alone(norm, dtype):
    rng = np.random.default_rng(3)
    x, dy = (as_dtype(rng.standard_normal((11, 9)), dtype) for _ in range(2))
    x[1, 4], x[2, 0], dy[3, 4], dy[4, 4], dy[5, 0] = np.nan, np.inf, np.nan, np.inf, -np.inf
    x[[6, 7, 8]] = 0
    dy[6, 4], dy[7, 4] = np.nan, np.inf
    dy[9] = as_dtype(float(reference.FORMATS[dtype][2]), dtype)  # whose sum is out of range, and is no NaN
    x[9] *= as_dtype(256.0, dtype)
    for eps in (0.0, 1e-5):
        for name, (dx, *_) in every_way(norm, x, dy, eps):
            is_nan = np.isnan(dx.astype(np.float64))
            assert is_nan[1:8].all(), name
            assert not is_nan[[0, 8, 9, 10]].any(), name
            if name == "cuda" or norm == "scale_norm":
                continue
            # Sums have it where dy has it.
            dweight = pull(norm, BACKENDS[name], x[3:9], dy[3:9], as_dtype(np.ones(9), dtype), None, eps)[1]
            assert np.isfinite(dweight.astype(np.float64)).tolist() == [i not in (0, 4) for i in range(9)], name


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("norm", NORMS)
def test_torch_autograd_makes_nan_of_such_rows_alone(norm, kernel):
    import torch

    import anynorm.torch

    layer = {"layer_norm": anynorm.torch.LayerNorm, "rms_norm": anynorm.torch.RMSNorm}.get(
        norm, anynorm.torch.ScaleNorm
    )(6)
    for dtype in (torch.float16, torch.float32, torch.float64):
        x, dy = torch.randn(4, 6, dtype=dtype), torch.randn(4, 6, dtype=dtype)
        x[1], dy[1, 2], dy[2, 0] = 0, np.nan, np.inf
        for call in (getattr(anynorm, norm), layer):
            held = x.clone().requires_grad_()
            y = call(held)  # forward by what is chosen, for through the definition torch follows each operation
            with anynorm.use_kernel(kernel):
                y.backward(dy)
            assert held.grad[1:3].isnan().all()
            assert held.grad[[0, 3]].isfinite().all()


@pytest.mark.parametrize("backend", ["strict-no-float64", "jax", "jax-x64"])
def test_constant_rows_where_float32_is_computed_as_it_is(backend):
    x = as_dtype(np.asarray([[1.0], [2.0**20], [2.0**40], [1e18], [1e30], [-3e38]]) * np.ones(4), "float32")
    dy = as_dtype(np.random.default_rng(0).standard_normal(x.shape), "float32")
    for eps in (1e-5, 1.0):
        exact, _ = gradient_of_rows("layer_norm", x, dy, "float32", narrow=True, eps=eps)
        dx, *_ = pull("layer_norm", BACKENDS[backend], x, dy, None, None, eps)
        bounds = gradient_bounds_of(backend)
        assert_exact(dx, exact, backend=backend, dtype="float32", norm="layer_norm dx", bounds=bounds)
