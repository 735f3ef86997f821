"""Traced, compiled and lazy arrays: the definition runs on them as it is."""

import numpy as np
import pytest

import anynorm
from tests import backends, reference
from tests.backends import as_dtype, named, thorough_but
from tests.processes import fresh
from tests.strategies import KINDS
from tests.tolerances import assert_exact, smallest_normal

NORMS = ("layer_norm", "rms_norm", "scale_norm")
X = np.random.default_rng(0).standard_normal((4, 33)).astype(np.float32) + 2
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 33)).astype(np.float32)


def call(norm, x, weight, bias):
    if norm == "scale_norm":
        return anynorm.scale_norm(x, 1.5)
    return getattr(anynorm, norm)(x, weight, bias, eps=1e-5)


def call_definition(*arguments):
    with anynorm.use_kernel("definition"):
        return call(*arguments)


def expected(norm, x=X):
    if norm == "scale_norm":
        return [reference.scale_norm(row, 1.5) for row in x]
    return [getattr(reference, norm)(row, WEIGHT, BIAS, 1e-5) for row in x]


def slope(norm, x):
    """Exact enough gradient of sum(norm(x)**3) in x: central differences of the formula in float64, extrapolated."""
    x = x.astype(np.float64)

    def value(x):
        if norm == "scale_norm":
            y = 1.5 * x / np.linalg.norm(x)
        else:
            centred = x - x.mean() if norm == "layer_norm" else x
            y = centred / np.sqrt((centred**2).mean() + 1e-5) * WEIGHT + BIAS
        return (y**3).sum()

    def differences(step):
        return np.asarray([(value(x + step * e) - value(x - step * e)) / (2 * step) for e in np.eye(len(x))])

    return (4 * differences(1e-3) - differences(2e-3)) / 3


@pytest.mark.parametrize("norm", thorough_but("layer_norm", of=NORMS))
def test_jax_jit_and_vmap(norm):
    import jax
    import jax.numpy as jnp

    x, weight, bias = map(jnp.asarray, (X, WEIGHT, BIAS))
    compiled = jax.jit(lambda *arguments: call(norm, *arguments))(x, weight, bias)
    mapped = jax.vmap(lambda row: call(norm, row, weight, bias))(x)
    for y in (compiled, mapped, jax.jit(jax.vmap(lambda row: call(norm, row, weight, bias)))(x)):
        assert_exact(y, expected(norm), backend="jax, traced", dtype="float32", norm=norm)


@pytest.mark.thorough  # test_jax_gradients.py has the same under jit
@pytest.mark.parametrize("norm", NORMS)
def test_jax_gradients(norm):
    import jax
    import jax.numpy as jnp

    def loss(x):
        return (call(norm, x, jnp.asarray(WEIGHT), jnp.asarray(BIAS)) ** 3).sum()

    exact = np.asarray([slope(norm, row) for row in X])
    scale = np.abs(exact).max()
    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
        np.testing.assert_allclose(gradient(jnp.asarray(X)), exact, atol=2e-6 * scale, rtol=0)
    # Second order: the derivative of the gradient along a direction, against a difference of first ones.
    direction = jnp.asarray(np.random.default_rng(2).standard_normal(X.shape).astype(np.float32))
    _, second = jax.jvp(jax.grad(loss), (jnp.asarray(X),), (direction,))
    with jax.enable_x64(True):
        wide, along = jnp.asarray(X, dtype=jnp.float64), jnp.asarray(direction, dtype=jnp.float64)
        difference = (jax.grad(loss)(wide + 1e-5 * along) - jax.grad(loss)(wide - 1e-5 * along)) / 2e-5
    np.testing.assert_allclose(second, difference, atol=1e-4 * np.abs(difference).max(), rtol=0)


def test_jit_keeps_the_precision_over_all_kinds_of_rows():
    # XLA rearranges products of literals and fuses multiplications with additions, which pairs have to survive.
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(5)
    x = np.concatenate([make(rng, (6, 33), "float32") for make in KINDS.values()])
    x = as_dtype(np.clip(x, -3e38, 3e38), "float32")
    x = np.where(np.abs(x) < smallest_normal("float32"), 0, x)
    for eps in (0.0, 1e-5):
        for norm in NORMS:
            weights = () if norm == "scale_norm" else (jnp.asarray(WEIGHT), jnp.asarray(BIAS))
            compiled = jax.jit(lambda x, *weights, norm=norm, eps=eps: getattr(anynorm, norm)(x, *weights, eps=eps))
            if norm == "scale_norm":
                exact = [reference.scale_norm(row, 1.0, eps) for row in x]
            else:
                exact = [getattr(reference, norm)(row, WEIGHT, BIAS, eps) for row in x]
            y = compiled(jnp.asarray(x), *weights)
            assert_exact(y, exact, backend="jax, traced", dtype="float32", norm=norm, flushes=True)


def weights_far_from_one():
    """Norm, row, weight, eps: the weight brings elements to the edge of float32, or back from beyond it."""
    for power in range(-126, 128, 6):
        yield "layer_norm", [3.0, -1.0, 0.0], np.asarray([1.0, 1.3, 1.7]) * 2.0**power, 1e-5
        yield "rms_norm", [1.0, 1.3e-26, 2.7e-27], np.full(3, 1.1 * 2.0**power), 0.0
        yield "scale_norm", [1.3e-26, 1e-5, 1.0], np.full(3, 1.1 * 2.0**power), 1e-5
    yield "rms_norm", [-6.6e-27, 0.0, 0.0], np.full(3, -1.7e38), 1.0
    yield "rms_norm", [1e-38, -3e-38, 2e-38], np.full(3, 1e-30), 1e-20


@pytest.mark.parametrize("name", ["jax", "jax, traced", "strict-no-float64"])
@pytest.mark.parametrize("offset", thorough_but(1.5e-33, of=[0.0, 1.5e-33]))
def test_weights_of_every_magnitude_where_float32_is_all_there_is(name, offset):
    import jax

    traced = name == "jax, traced"
    backend = named(name.partition(",")[0])
    compiled = {norm: jax.jit(getattr(anynorm, norm), static_argnames=["eps", "weight_offset"]) for norm in NORMS[:2]}
    compiled["scale_norm"] = jax.jit(anynorm.scale_norm, static_argnames=["eps"])
    for norm, row, weight, eps in weights_far_from_one():
        x, weight = as_dtype([row], "float32"), as_dtype(weight, "float32")
        options = {"eps": eps}
        if norm == "scale_norm":
            weight, exact = weight[0], [reference.scale_norm(x[0], weight[0], eps)]
        else:
            options["weight_offset"] = offset
            exact = [getattr(reference, norm)(x[0], weight, None, eps, offset)]
        function = compiled[norm] if traced else getattr(anynorm, norm)
        got = backend.read(function(backend.make(x), backend.make(np.asarray(weight)), **options))
        assert_exact(got, exact, backend=name, dtype="float32", norm=norm, flushes="float32" in backend.flushes)


@pytest.mark.parametrize("eps", thorough_but(None, of=[0.0, None]))
@pytest.mark.parametrize("norm", NORMS)
def test_jit_gradients_at_every_magnitude(norm, eps):
    import jax
    import jax.numpy as jnp

    upstream = np.arange(1, 9, dtype=np.float32)
    options = {} if eps is None else {"eps": eps}
    compiled = jax.jit(jax.grad(lambda x: (getattr(anynorm, norm)(x, **options) * upstream).sum()))
    if eps is None:
        eps = {"layer_norm": 1e-5, "rms_norm": 1e-6, "scale_norm": 1e-12}[norm]
    base = np.random.default_rng(6).standard_normal(8)
    for power in range(-100, 101, 4):
        x = (base * 2.0**power).astype(np.float32)
        wide = x.astype(np.float64)
        if norm == "scale_norm":
            size = max(np.linalg.norm(wide), eps)
            unit = wide / size
            exact = (upstream - (unit * (unit @ upstream) if size > eps else 0)) / size
        else:
            centred = wide - wide.mean() if norm == "layer_norm" else wide
            size = np.sqrt((centred**2).mean() + eps)
            unit = centred / size
            exact = (
                upstream - unit * (unit * upstream).mean() - (upstream.mean() if norm == "layer_norm" else 0)
            ) / size
        got = np.asarray(compiled(jnp.asarray(x)), dtype=np.float64)
        np.testing.assert_allclose(got, exact, atol=1e-6 * np.abs(exact).max(), rtol=0, err_msg=f"2**{power}")


def test_jax_stays_traced():
    import jax
    import jax.numpy as jnp

    jaxpr = jax.make_jaxpr(anynorm.layer_norm)(jnp.asarray(X))
    assert len(jaxpr.eqns) >= 1
    assert jaxpr.out_avals[0].shape == X.shape


@pytest.mark.parametrize("dtype", thorough_but("float32", of=["float32", "float64", "bfloat16"]))
@pytest.mark.parametrize("norm", NORMS)
def test_torch_compile_without_a_break(norm, dtype):
    import torch

    arguments = [torch.from_numpy(a).to(getattr(torch, dtype)) for a in (X, WEIGHT, BIAS)]
    torch.compiler.reset()
    compiled = torch.compile(lambda *arguments: call(norm, *arguments), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), call_definition(norm, *arguments), rtol=0, atol=0)


@pytest.mark.parametrize("imported", thorough_but("torch", of=["torch", "torch, jax"]))
def test_torch_compile_follows_the_first_call_of_a_process(imported):
    compiled = "torch.compile(anynorm.rms_norm, fullgraph=True, backend='eager')"
    code = f"import anynorm, {imported}; print(*{compiled}(torch.asarray([3.0, -3.0]), eps=0.0).tolist())"
    assert fresh(code) == ["1.0", "-1.0"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_compile_follows_moments(dtype):
    import torch

    def by_halves(x):
        both = anynorm.moments(x[:, :20]).merge(anynorm.moments(x[:, 20:]))
        return anynorm.layer_norm(x, moments=both), both.variance

    x = torch.from_numpy(X).to(getattr(torch, dtype))
    torch.compiler.reset()
    compiled = torch.compile(by_halves, fullgraph=True, backend="aot_eager")
    with anynorm.use_kernel("definition"):  # which is what is traced
        expected = by_halves(x)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("dtype", thorough_but("float32", of=("float32", "float64")))
def test_torch_inductor_keeps_the_precision(dtype):
    import torch

    torch.compiler.reset()
    compiled = torch.compile(lambda *arguments: call("layer_norm", *arguments), fullgraph=True)
    y = compiled(*(torch.from_numpy(a).to(getattr(torch, dtype)) for a in (X, WEIGHT, BIAS)))
    assert_exact(y.numpy(), expected("layer_norm"), backend="torch, compiled", dtype=dtype, norm="layer_norm")


@pytest.mark.parametrize("norm", NORMS)
def test_torch_gradients_of_first_and_second_order(norm):
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((2, 5), (5,), (5,))
    ]
    if norm == "scale_norm":
        inputs = [inputs[0], torch.tensor(1.5, dtype=torch.float64, requires_grad=True)]
    function = getattr(anynorm, norm)
    how = {"fast_mode": backends.turn is not None}  # by one random direction, unless all is to be run
    assert torch.autograd.gradcheck(function, inputs, **how)
    assert torch.autograd.gradgradcheck(function, inputs, **how)


@pytest.mark.parametrize("norm", NORMS)
def test_dask_stays_lazy(norm):
    import dask
    import dask.array as da

    computed = []
    x = da.from_array(X, chunks=(2, 11)).map_blocks(lambda block: computed.append(1) or block, meta=X[:0, :0])
    y = call(norm, x, da.from_array(WEIGHT), da.from_array(BIAS))
    assert isinstance(y, da.Array)
    assert not computed
    assert y.dtype == np.float32
    assert y.shape == X.shape
    assert y.chunks == x.chunks
    with dask.config.set(scheduler="synchronous"):
        assert_exact(y.compute(), expected(norm), backend="dask, lazy", dtype="float32", norm=norm)
    assert computed


@pytest.mark.parametrize("chunks", [((0, 3, 1), (33,)), ((4, 0), (0, 20, 0, 13)), ((4,), (33, 0))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_dask_chunks_may_be_empty(norm, dtype, chunks):
    import dask.array as da

    x = X.astype(dtype)
    lazy = da.from_array(x, chunks=chunks)
    parameters = da.from_array(WEIGHT), da.from_array(BIAS)
    y = call(norm, lazy, *parameters)
    assert y.chunks == lazy.chunks
    assert_exact(y.compute(), expected(norm, x), backend="dask, lazy", dtype=dtype, norm=norm)
    kept = call(norm, lazy[lazy[:, 0] > lazy[1, 0]], *parameters).compute()
    assert_exact(kept, expected(norm, x[x[:, 0] > x[1, 0]]), backend="dask, lazy", dtype=dtype, norm=norm)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_number_of_rows_may_be_unknown(dtype):
    import dask.array as da

    whole = X.astype(dtype)
    lazy = da.from_array(whole, chunks=(2, 11))
    some, kept = lazy[lazy[:, 0] > lazy[1, 0]], whole[whole[:, 0] > whole[1, 0]]
    y, total = anynorm.add_rms_norm(some, some * 2, eps=1e-5)
    sums = total.compute()
    np.testing.assert_allclose(sums, kept * 3, rtol=1e-6)
    exact = [reference.rms_norm(row, eps=1e-5) for row in sums]
    assert_exact(y.compute(), exact, backend="dask, lazy", dtype=dtype, norm="rms_norm")
    halves = [anynorm.moments(part) for part in (some[:, :11], some[:, 11:])]
    y = anynorm.layer_norm(some, moments=halves[0].merge(halves[1]))
    exact = [reference.layer_norm(row) for row in kept]
    assert_exact(y.compute(), exact, backend="dask, lazy", dtype=dtype, norm="layer_norm")
    with pytest.raises(ValueError, match=r"residual must have x's shape, \(nan, 33\), got \(nan, 22\)"):
        anynorm.add_rms_norm(some, some[:, :22])
    with pytest.raises(ValueError, match="moments must have shape"):
        anynorm.layer_norm(some, moments=anynorm.moments(lazy[0]))
