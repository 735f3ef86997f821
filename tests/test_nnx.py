"""anynorm.nnx in place of flax.nnx: same arguments, same states, results within the promised precision."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import anynorm.nnx
from benchmarks.models.jax_modules import InNNX
from tests import reference
from tests.backends import thorough_but
from tests.tolerances import assert_exact

NORMS = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm"}
X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
# As in test_training.py: each of some twenty steps rounds to 24 bits, with errors of either sign. The losses were 6
# such errors apart at most.
ROUNDING = 32 * 2.0**-24


def drawn(seed):
    """An initializer for which nothing is compiled, as JAX's own would be for each shape."""
    return lambda key, shape, dtype: jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def pair(name, *given, seed=0, **options):
    """Our module and Flax's, alike, with parameters away from 1 and 0."""
    options["scale_init"] = drawn(seed)
    if name == "LayerNorm":
        options["bias_init"] = drawn(seed + 10)
    return [getattr(module, name)(*given, rngs=nnx.Rngs(seed), **options) for module in (anynorm.nnx, nnx)]


def exact(name, rows, scale=None, bias=None, epsilon=1e-6):
    """Exact rows of a norm, each with parameters of its own."""
    rows = np.asarray(rows)
    scale, bias = (None if p is None else np.broadcast_to(p, rows.shape) for p in (scale, bias))
    norm = getattr(reference, NORMS[name])
    parameters = [[None if p is None else p[i] for p in (scale, bias)] for i in range(len(rows))]
    return [norm(row, *given, eps=epsilon) for row, given in zip(rows, parameters, strict=True)]


def held(norm):
    """The parameters as NumPy arrays."""
    return [None if one is None else np.asarray(one[...]) for one in (norm.scale, getattr(norm, "bias", None))]


@pytest.mark.parametrize("name", NORMS)
def test_arguments_are_those_of_flax(name):
    ours, theirs = (inspect.signature(getattr(module, name).__init__).parameters for module in (anynorm.nnx, nnx))
    assert list(ours) == [*theirs, "convention"]
    for argument, parameter in theirs.items():
        assert ours[argument].kind == parameter.kind
        if not callable(parameter.default):  # of functions None stands for theirs
            assert ours[argument].default == parameter.default, argument
    ours, theirs = (inspect.signature(getattr(module, name).__call__).parameters for module in (anynorm.nnx, nnx))
    assert {n: p.kind for n, p in ours.items()} == {n: p.kind for n, p in theirs.items()}
    norms = [getattr(module, name)(4, rngs=nnx.Rngs(0)) for module in (anynorm.nnx, nnx)]
    assert isinstance(norms[0], getattr(nnx, name))
    hidden = "_pytree__state", "_pytree__nodes", "scale", "bias", "convention", "weight_offset"
    ours, theirs = ({k: v for k, v in vars(norm).items() if k not in hidden} for norm in norms)
    assert ours == theirs


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(
    ("reduced", "features", "rows"),
    [
        (-1, -1, (0, 1)),
        (1, [-2], (0, 2)),  # channels first
        ((-1, -2), (1, 2), (0,)),
        ((1, 2, -1), -1, (0,)),  # a parameter for some of the normalized axes
        ([1], -1, (0, 2)),  # instance norm: for an axis that is not normalized
    ],
    ids=str,
)
def test_any_axes(name, reduced, features, rows):
    axes = [axis % 3 for axis in (features if isinstance(features, (tuple, list)) else (features,))]
    norm, theirs = pair(name, np.prod([X.shape[axis] for axis in axes]), reduction_axes=reduced, feature_axes=features)
    np.testing.assert_array_equal(norm.scale[...], theirs.scale[...])
    shape = [length if axis in axes else 1 for axis, length in enumerate(X.shape)]
    order = (*rows, *(axis for axis in range(3) if axis not in rows))

    def as_rows(values):
        values = np.broadcast_to(values, X.shape).transpose(order)
        return values.reshape(np.prod([X.shape[axis] for axis in rows]), -1)

    parameters = [None if p is None else as_rows(p.reshape(shape)) for p in held(norm)]
    assert_exact(
        as_rows(norm(X)), exact(name, as_rows(X), *parameters), backend="jax", dtype="float32",
        norm=NORMS[name],
    )  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_dtypes_are_those_of_flax(name):
    x, half, brain = jnp.asarray(X), jnp.float16, jnp.bfloat16
    for dtype in (None, half, jnp.float32):
        for of_parameters in (brain, jnp.float32):
            norm, theirs = pair(name, 5, dtype=dtype, param_dtype=of_parameters)
            assert norm.scale.dtype == theirs.scale.dtype == of_parameters
            for of_x in (half, brain, jnp.float32, jnp.int32):
                given = jax.ShapeDtypeStruct(x.shape, of_x)
                assert jax.eval_shape(norm, given) == jax.eval_shape(theirs, given)


@pytest.mark.parametrize("name", thorough_but("LayerNorm", of=NORMS))
def test_results_are_rounded_once_to_the_dtype(name):
    rows, kept = X.reshape(12, 5), {"promote_dtype": lambda arrays, dtype: arrays}  # which leaves each as it is
    narrow = jnp.asarray(rows, jnp.bfloat16)
    for dtype, options in (("bfloat16", {}), ("bfloat16", {"feature_axes": 0}), ("float32", kept), ("float16", kept)):
        norm, _ = pair(name, 12 if "feature_axes" in options else 5, dtype=dtype, **options)
        x, parameters = narrow, held(norm)
        if not options.get("promote_dtype"):
            parameters = [None if p is None else np.asarray(jnp.asarray(p, dtype)) for p in parameters]
        if "feature_axes" in options:
            parameters = [None if p is None else p[:, None] for p in parameters]
        y = norm(x)
        assert y.dtype == dtype
        if dtype != "float16":  # to which float32 is rounded once more
            expected = exact(name, np.asarray(x), *parameters)
            assert_exact(y, expected, backend="jax", dtype=dtype, norm=NORMS[name])


@pytest.mark.parametrize("name", NORMS)
def test_parameters_may_be_left_out(name):
    without = {"use_scale": False} | ({"use_bias": False} if name == "LayerNorm" else {})
    norm = getattr(anynorm.nnx, name)(7, epsilon=0.5, rngs=nnx.Rngs(0), **without)
    assert not jax.tree.leaves(nnx.state(norm))
    expected = exact(name, X.reshape(12, 5), epsilon=0.5)  # whatever the length, as in Flax
    assert_exact(norm(X.reshape(12, 5)), expected, backend="jax", dtype="float32", norm=NORMS[name])


def assert_near(got, expected):
    assert 0 < np.linalg.norm(expected) < np.inf
    assert np.linalg.norm(got - expected) <= ROUNDING * np.linalg.norm(expected)


@pytest.mark.parametrize("name", thorough_but("LayerNorm", of=NORMS))
def test_a_mask_says_which_elements_count(name):
    norm, theirs = pair(name, 5, use_fast_variance=False)
    x, mask = X.copy(), np.random.default_rng(1).random((4, 5)) < 0.7  # broadcast as it is in Flax
    mask[1], mask[2], mask[0, 0], mask[3, 2] = True, False, False, True
    x[0, 0, 0], x[0, 1, 1], x[0, 3, 2] = np.nan, np.nan, np.inf  # the first does not count

    def results_and_gradient(by):
        def loss(x):
            y = by(x, mask=mask)
            return (y**3).sum(), y

        gradient, y = jax.jit(jax.grad(loss, has_aux=True))(x)
        return np.asarray(y), np.asarray(gradient)

    (y, gradient), (of_theirs, gradient_of_theirs) = map(results_and_gradient, (norm, theirs))
    counted = [0, 1, 3]
    assert_near(y[1:, counted], of_theirs[1:, counted])  # also where the mask is false
    assert_near(gradient[1:, counted], gradient_of_theirs[1:, counted])
    assert np.isnan(y[0, [1, 3]]).all()
    assert np.isnan(y[:, 2]).all()
    for row, kept in enumerate(mask):
        if kept.any():
            parameters = [None if p is None else p[kept] for p in held(norm)]
            expected = exact(name, x[:, row, kept], *parameters)
            assert_exact(y[:, row, kept], expected, backend="jax", dtype="float32", norm=NORMS[name])


@pytest.mark.parametrize("name", NORMS)
def test_a_state_of_one_is_a_state_of_the_other(name):
    with jax.set_mesh(jax.make_mesh((1,), ("cut",), (jax.sharding.AxisType.Auto,))):
        (ours, theirs), (other, another) = (
            pair(name, 5, seed=seed, scale_metadata={"out_sharding": ("cut",)}) for seed in (0, 1)
        )
    for one, by in ((ours, another), (theirs, other)):
        nnx.update(one, nnx.state(by))
        np.testing.assert_array_equal(one.scale[...], by.scale[...])
    assert ours.scale.out_sharding == theirs.scale.out_sharding == ("cut",)
    graphs = [nnx.split(norm)[0] for norm in (other, another)]
    merged = [nnx.merge(graph, nnx.state(theirs)) for graph in graphs]
    assert [type(norm) for norm in merged] == [type(ours), type(theirs)]


@nnx.jit
def step(model, optimizer, x, y):
    loss, gradient = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
    optimizer.update(model, gradient)
    return loss


@pytest.mark.parametrize("name", thorough_but("LayerNorm", of=NORMS))
def test_training_beside_flax(name):
    rng = np.random.default_rng(1)
    x, first, last = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((32, 8), (8, 16), (16, 1)))
    losses, models = [], []
    for module in (anynorm.nnx, nnx):
        model = InNNX(first, last / 16)
        model.norm = getattr(module, name)(16, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        losses.append([float(step(model, optimizer, x, jnp.sin(x[:, :1]))) for _ in range(20)])
        models.append(model)
    assert losses[1][-1] < losses[1][0] / 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=ROUNDING)
    assert (models[0].norm.scale[...] != 1).all()
    paths = [sorted(path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))) for model in models]
    assert paths[0] == paths[1]


def test_many_norms_by_vmap_and_scan():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def several(rngs):
        return anynorm.nnx.LayerNorm(5, rngs=rngs)

    norms, x = several(nnx.Rngs(0)), jnp.asarray(X[:, 0])
    assert norms.scale.shape == (3, 5)
    norms.scale[...] = jnp.asarray(X[0, :3])
    y = nnx.jit(nnx.vmap(lambda norm, row: norm(row)))(norms, x)
    for row, scale, got in zip(X[:, 0], np.asarray(norms.scale[...]), y, strict=True):
        expected = [reference.layer_norm(row, scale, None, 1e-6)]
        assert_exact(got[None], expected, backend="jax", dtype="float32", norm="layer_norm")

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def one_after_the_other(norm, x):
        return norm(x)

    rows = X[:, 0]
    for scale in np.asarray(norms.scale[...]):
        rows = anynorm.layer_norm(rows, scale, eps=1e-6)
    np.testing.assert_allclose(one_after_the_other(norms, x), rows, rtol=2.0**-18, atol=2.0**-18)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of orbax-checkpoint's own
def test_a_checkpoint(tmp_path):
    import orbax.checkpoint

    saved, _ = pair("LayerNorm", 5)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "norm", nnx.state(saved))
        checkpointer.wait_until_finished()
        for loaded in pair("LayerNorm", 5, seed=1):
            nnx.update(loaded, checkpointer.restore(tmp_path / "norm", nnx.state(loaded)))
            for value, expected in zip(held(loaded), held(saved), strict=True):
                np.testing.assert_array_equal(value, expected)


def test_scale_norm():
    norm = anynorm.nnx.ScaleNorm(5, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert (norm.scale.shape, norm.scale.dtype) == ((), jnp.bfloat16)
    rows = np.concatenate([X.reshape(12, 5), np.zeros((1, 5), np.float32)])
    expected = [reference.scale_norm(row, np.float32(norm.scale[...])) for row in rows]
    assert_exact(norm(rows), expected, backend="jax", dtype="float32", norm="scale_norm")
    norm = anynorm.nnx.ScaleNorm(
        5, epsilon=1e9, dtype=jnp.bfloat16, scale_init=nnx.initializers.constant(2e9), rngs=nnx.Rngs(0),
        scale_metadata={"out_sharding": ()},
    )  # fmt: skip
    assert norm.scale.out_sharding == ()
    np.testing.assert_array_equal(norm(jnp.ones((1, 5))), jnp.full((1, 5), 2, jnp.bfloat16))
    gradient = nnx.eval_shape(nnx.grad(lambda norm: norm(jnp.ones((1, 5))).sum()), norm)
    assert list(gradient) == ["scale"]
    for of_x in (jnp.float16, jnp.float32, jnp.int32):
        assert jax.eval_shape(norm, jax.ShapeDtypeStruct((2, 5), of_x)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="x must have the 5 features of the norm along axis 1, got shape"):
        norm(jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda norm: norm(X[..., :4]), ValueError, "x must have the 5 features of the norm along axis 2, got shape"),
        (lambda norm: norm(X, mask=np.ones(4)), ValueError, "mask must be an array that broadcasts to the shape of x"),
        (lambda norm: norm(X, mask="all"), TypeError, "mask must be an array that broadcasts to the shape of x"),
        (lambda norm: norm(X * 1j), TypeError, "x must have one of the real floating dtypes"),
        (lambda norm: type(norm)(0, rngs=nnx.Rngs(0)), ValueError, "num_features must be 1 or more"),
        (lambda norm: type(norm)(5, epsilon=-1.0, rngs=nnx.Rngs(0)), ValueError, "epsilon must be finite and not nega"),
        (lambda norm: type(norm)(5, rngs=nnx.Rngs(0), reduction_axes=3)(X), ValueError, "reduction_axes must name ax"),
        (lambda norm: type(norm)(5, rngs=nnx.Rngs(0), feature_axes=-4)(X), ValueError, "feature_axes must name axes"),
        (lambda norm: type(norm)(5, rngs=nnx.Rngs(0), reduction_axes=())(X), ValueError, "reduction_axes must name"),
        (lambda norm: type(norm)(5, rngs=nnx.Rngs(0), feature_axes=0.5)(X), TypeError, "feature_axes must be an int"),
        (lambda norm: type(norm)(20, rngs=nnx.Rngs(0), feature_axes=(0, 2))(X), ValueError, "axes (0, 2) together"),
        (lambda norm: type(norm)(5, rngs=nnx.Rngs(0), axis_name="i")(X), NameError, "unbound axis name: i"),
        (lambda norm: type(norm)(5, rngs=nnx.Rngs(0), epsilom=1.0), TypeError, "epsilom"),
        (lambda norm: type(norm)(5, rngs=nnx.Rngs(0), convention="mistral"), ValueError, "pass 'llama', by which"),
        (
            lambda norm: jax.jit(lambda epsilon: type(norm)(5, epsilon=epsilon, rngs=nnx.Rngs(0)))(1.0),
            TypeError,
            "epsilon must be a number, got a traced JAX value; make it static",
        ),
    ],
)
def test_what_does_not_fit(call, error, words):
    for norm in (anynorm.nnx.LayerNorm(5, rngs=nnx.Rngs(0)), anynorm.nnx.RMSNorm(5, rngs=nnx.Rngs(0))):
        with pytest.raises(error) as caught:
            call(norm)
        assert words in str(caught.value)
