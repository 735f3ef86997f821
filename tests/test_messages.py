"""Every argument with every wrong kind of value: one sentence that names it, and says what must hold and what to do."""

import functools
import importlib
import itertools
import re

import numpy as np
import pytest

import anynorm
from tests import wrong_values as wrong

LIBRARIES = {"numpy": "NumPy array", "torch": "torch tensor", "jax.numpy": "JAX array", "dask.array": "Dask array"}
NOT_OF_USERS = ("builtins", "_check", "anynorm._", " at 0x", "inner error", "dtype(", "__main__")


def speaks(error, argument, call, *given, words="", **options):
    """A call raises what it should, in one sentence of the known form."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one, and its words, come next
        call(*given, **options)
    text = str(caught.value)
    assert caught.type is error, f"{argument}, {call}: {caught.type.__name__}: {text[:300]}"
    assert re.fullmatch(rf"{re.escape(argument)} must [^;]+, got [^;]+; [^;]+", text), text[:500]
    assert len(text) < 400, text
    assert text.isprintable(), repr(text)
    assert words in text, text
    for word in NOT_OF_USERS:
        assert word not in text, text


def ones(library, *shape):
    return importlib.import_module(library).asarray(np.ones(shape, np.float32))


@functools.cache
def calls_with_arrays(library):
    """Arguments that are arrays, each with a call that passes a value as it."""
    x, weight = ones(library, 2, 3), ones(library, 3)
    norm = anynorm.RMSNorm(3, xp=importlib.import_module(library))
    _, pull = anynorm.layer_norm_vjp(x)
    _, pull_sum = anynorm.add_rms_norm_vjp(x, x)
    calls = [
        ("x", anynorm.layer_norm),
        ("x", anynorm.moments),
        ("x", anynorm.explain),
        ("x", norm),
        ("x", anynorm.ScaleNorm(3)),
        ("x", lambda value: anynorm.add_rms_norm(value, x)),
        ("weight", lambda value: anynorm.layer_norm(x, value)),
        ("weight", lambda value: anynorm.explain(x, value, norm="rms_norm")),
        ("bias", lambda value: anynorm.rms_norm(x, weight, value)),
        ("bias", lambda value: anynorm.layer_norm_vjp(x, bias=value)),
        ("scale", lambda value: anynorm.scale_norm(x, value)),
        ("residual", lambda value: anynorm.add_layer_norm(x, value)),
        ("residual", lambda value: anynorm.explain(x, residual=value)),
        ("dy", pull),
        ("dtotal", lambda value: pull_sum(x, value)),
    ]
    if library in ("numpy", "torch"):  # the others write into none
        calls += [
            ("out", lambda value: anynorm.rms_norm(x, out=value)),
            ("out[0]", lambda value: anynorm.add_rms_norm(x, x, out=(value, x))),
            ("out[1]", lambda value: anynorm.add_layer_norm(x, x, out=(x, value))),
        ]
    return calls


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_no_array(library):
    values = wrong.not_arrays()
    another = {"another library": ones("torch" if library == "numpy" else "numpy", 3)}
    for argument, call in calls_with_arrays(library):
        wanted = values | (wrong.numbers() if argument != "scale" else {"bool": True, "complex": 1j})
        if argument in ("residual", "dy", "out") or (argument != "x" and library in ("numpy", "torch")):
            wanted |= another
        for value in wanted.values():
            speaks(TypeError, argument, call, value, words="" if argument == "x" else LIBRARIES[library])
    speaks(TypeError, "x", anynorm.rms_norm, None)
    speaks(TypeError, "dy", dict(calls_with_arrays(library))["dy"], None, words=LIBRARIES[library])


@pytest.mark.parametrize("library", LIBRARIES)
def test_dtypes_that_are_not_computed_with(library):
    for argument, call in calls_with_arrays(library):
        for value in wrong.wrong_dtypes(library).values():
            speaks(TypeError, argument, call, value, words="real floating dtypes")


def test_numpy_parameters_go_with_jax():
    import jax

    x, weight = ones("jax.numpy", 2, 3), np.asarray([1.0, 2.0, 3.0], np.float32)
    for norm in (anynorm.rms_norm, jax.jit(anynorm.rms_norm)):
        y = norm(x, weight, weight)
        assert type(y) is type(x)
        assert (y == norm(x, jax.numpy.asarray(weight), jax.numpy.asarray(weight))).all()
    assert (anynorm.scale_norm(x, np.asarray(2.0, np.float32)) == anynorm.scale_norm(x, 2.0)).all()
    speaks(TypeError, "residual", anynorm.add_rms_norm, x, np.ones((2, 3), np.float32), words="JAX array")


OTHERS = ("weight", "bias", "residual", "out", "dy", "dtotal", "scale")


@pytest.mark.parametrize("library", LIBRARIES)
def test_shapes_and_devices_that_do_not_fit(library):
    shapes = [ones(library, *shape) for shape in ((), (4,), (3, 2), (2, 3, 1), (1,) * 30)]
    for argument, call in calls_with_arrays(library):
        if argument != "x":
            for value in shapes[argument == "scale" :]:
                speaks(ValueError, argument, call, value)
            if library == "torch":
                import torch

                for value in (torch.ones(3, device="meta"), torch.ones((), device="meta")):
                    speaks(ValueError, argument, call, value, words="device")


@pytest.mark.parametrize("library", LIBRARIES)
def test_numbers(library):
    x, weight = ones(library, 2, 3), ones(library, 3)
    calls = [
        ("eps", lambda value: anynorm.layer_norm(x, eps=value)),
        ("eps", lambda value: anynorm.scale_norm_vjp(x, eps=value)),
        ("eps", lambda value: anynorm.explain(x, eps=value)),
        ("eps", lambda value: anynorm.LayerNorm(3, eps=value)),
        ("weight_offset", lambda value: anynorm.layer_norm(x, weight, weight_offset=value)),
        ("weight_offset", lambda value: anynorm.add_rms_norm(x, x, weight, weight_offset=value)),
        ("weight_offset", lambda value: anynorm.RMSNorm(3, weight_offset=value)),
        ("weight_offset", lambda value: anynorm.explain(x, weight, weight_offset=value)),
    ]
    for argument, call in calls:
        for value in wrong.not_real().values():
            speaks(TypeError, argument, call, value)
        for value in (*wrong.not_finite().values(), *([-1e-9, np.int64(-1)] if argument == "eps" else [])):
            speaks(ValueError, argument, call, value)
    for value in wrong.not_finite().values():
        speaks(ValueError, "scale", anynorm.scale_norm, x, value)
    speaks(ValueError, "weight_offset", anynorm.rms_norm, x, weight_offset=1.0)
    if library == "jax.numpy":  # which has no float64 here
        for argument, norm in (("eps", anynorm.rms_norm), ("eps", anynorm.scale_norm), ("scale", anynorm.scale_norm)):
            speaks(ValueError, argument, norm, x, **{argument: 1e77})
        speaks(ValueError, "weight_offset", anynorm.layer_norm, x, weight, weight_offset=-1e39)
    assert anynorm.rms_norm(x, weight_offset=0) is not None


@pytest.mark.parametrize("library", LIBRARIES)
def test_axes(library):
    x = ones(library, 2, 3)
    for call in (anynorm.layer_norm, anynorm.moments, anynorm.explain, anynorm.rms_norm_vjp):
        for value in wrong.not_integers().values():
            speaks(TypeError, "axis", call, x, axis=value)
        for value in (2, -3, 10**5000, np.int64(2), (0, 2), (), (1, 1), (1, -1), [0] * 1000):
            speaks(ValueError, "axis", call, x, axis=value)
    speaks(ValueError, "x", anynorm.rms_norm, ones(library))


def test_what_jax_traces_must_be_static():
    import jax

    x = ones("jax.numpy", 2, 3)
    for argument, function in itertools.product(("eps", "weight_offset", "axis"), (anynorm.rms_norm, anynorm.explain)):
        call = jax.jit(lambda value, argument=argument, function=function: function(x, x[0], **{argument: value}))
        do = f"make it static, with {argument} in static_argnames of jax.jit or set by functools.partial"
        speaks(TypeError, argument, call, 1, words=do)
    y = jax.jit(functools.partial(anynorm.rms_norm, eps=1.0, weight_offset=1.0), static_argnames=["axis"])(x, x[0])
    np.testing.assert_array_equal(y, anynorm.rms_norm(x, x[0], eps=1.0, weight_offset=1.0))
    speaks(TypeError, "eps", jax.jit(lambda eps: anynorm.LayerNorm(3, eps=eps)), 1.0, words="static_argnames")
    of_numpy = ones("numpy", 2, 3)  # goes with nothing that is traced
    for argument, function in (("weight", anynorm.rms_norm), ("scale", anynorm.scale_norm)):
        call = jax.jit(lambda value, function=function: function(of_numpy, value))
        speaks(TypeError, argument, call, x[0], words="got a traced JAX value; make x a JAX array")


@pytest.mark.parametrize("library", LIBRARIES)
def test_moments(library):
    x = ones(library, 2, 3)
    found, another = anynorm.moments(x), anynorm.moments(ones("jax.numpy" if library == "torch" else "torch", 2, 3))
    for value in (*wrong.not_arrays().values(), *wrong.numbers().values(), x):
        speaks(TypeError, "moments", anynorm.layer_norm, x, moments=value)
        speaks(TypeError, "other", found.merge, value)
    speaks(TypeError, "moments", anynorm.layer_norm, x, moments=another)
    if library != "numpy":  # whose moments go with those of any library
        speaks(TypeError, "other", found.merge, another)
    for wrong_shape in (anynorm.moments(x, axis=0), anynorm.moments(ones(library, 3, 3))):
        speaks(ValueError, "moments", anynorm.layer_norm, x, moments=wrong_shape)
        speaks(ValueError, "other", found.merge, wrong_shape)
    speaks(ValueError, "moments", anynorm.layer_norm, x, moments=anynorm.moments(x[:, :0]))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_to_pass_for_an_array_of_another_library_is_right(library):
    names = {name: importlib.import_module(name) for name in (*LIBRARIES, "sparse", "ml_dtypes")}
    torch, x = names["torch"], ones(library, 3, 4)
    values = [
        np.ones((3, 4), np.float32), np.ones((3, 4), names["ml_dtypes"].bfloat16),
        names["sparse"].asarray(np.ones((3, 4))),
        *(ones(other, 3, 4) for other in ("jax.numpy", "dask.array", "array_api_strict")),
        torch.ones(3, 4, requires_grad=True), torch.ones(3, 4, dtype=torch.bfloat16),
    ]  # fmt: skip
    for value in values:
        if type(value) is type(x):
            continue
        with pytest.raises(TypeError) as caught:
            anynorm.layer_norm(x, value, axis=(0, 1))
        do = str(caught.value).partition("; pass ")[2]
        weight = eval(do, names, {"weight": value})  # what a caller would write
        assert anynorm.layer_norm(x, weight, axis=(0, 1)).shape == x.shape, do


def test_dicts_of_moments():
    written = anynorm.moments(np.ones((2, 3))).to_dict()
    values = wrong.not_arrays() | wrong.numbers()
    del values["dict"]
    for value in values.values():
        speaks(TypeError, "values", anynorm.Moments.from_dict, value)
        if value is not np:
            speaks(TypeError, "xp", anynorm.Moments.from_dict, written, xp=value)
    for name in written:
        rest = {key: value for key, value in written.items() if key != name}
        speaks(ValueError, "values", anynorm.Moments.from_dict, rest)
    for entry, error, value in (
        ("count", TypeError, 2.5), ("count", TypeError, True), ("count", TypeError, "2"), ("count", ValueError, -1),
        ("count", ValueError, 2**63),
        ("shape", TypeError, 2), ("shape", TypeError, "ab"), ("shape", TypeError, [2.0, 1]),
        ("shape", ValueError, [-2, -1]),
        ("dtype", ValueError, "int64"), ("dtype", ValueError, None), ("dtype", ValueError, []),
        ("mean", ValueError, [1.0]), ("mean", ValueError, "ab"), ("mean", ValueError, ["a", "b"]),
        ("mean", ValueError, 1.0),
        ("mean", ValueError, None), ("squares", ValueError, None),
        ("squares", ValueError, [[1.0], [2.0]]), ("unit", ValueError, [None] * 100_000),
    ):  # fmt: skip
        speaks(error, entry, anynorm.Moments.from_dict, {**written, entry: value})
    speaks(TypeError, "shape", anynorm.Moments.from_dict, {**written, "shape": [1.0]}, words="pass a list of ints")
    for count in (np.int64(3), 2**63 - 1):
        assert anynorm.Moments.from_dict({**written, "count": count}).to_dict() == {**written, "count": int(count)}


def test_modules():
    import torch

    import anynorm.torch

    for argument, kind in (
        ("shape", anynorm.LayerNorm), ("shape", anynorm.RMSNorm), ("dim", anynorm.ScaleNorm),
        ("dim", anynorm.torch.ScaleNorm), ("normalized_shape", anynorm.torch.LayerNorm),
    ):  # fmt: skip
        for value in wrong.not_integers().values():
            speaks(TypeError, argument, kind, value)
        for value in (-1, np.int64(-5)):
            speaks(ValueError, argument, kind, value)
    for value in (0, (3, 0), 10**30, (2**40, 2**20), 10**5000):
        speaks(ValueError, "shape", anynorm.LayerNorm, value)
    speaks(TypeError, "shape", anynorm.LayerNorm, ())
    speaks(ValueError, "dim", anynorm.ScaleNorm, 10**400)
    for value in (*wrong.not_arrays().values(), *wrong.numbers().values()):
        speaks(TypeError, "bias", anynorm.LayerNorm, 3, bias=value) if type(value) not in (bool, np.bool) else None
        speaks(TypeError, "xp", anynorm.LayerNorm, 3, xp=value) if value is not np else None
        speaks(TypeError, "state", anynorm.LayerNorm(3).load_state_dict, value if not isinstance(value, dict) else None)
    for xp, values in ((np, (torch.float32, "float8", "|V2")), (torch, (np.float32, "float32", torch.int32))):
        for value in (*values, int, bool, 3, "text", "text\n" * 1000, object(), [], np.dtype("i4"), np.ones(3)):
            speaks(TypeError, "dtype", anynorm.RMSNorm, 3, xp=xp, dtype=value)
        for value in ("gpu", "cuda:99", 7.5, object(), "text\n" * 1000):
            speaks(ValueError, "device", anynorm.ScaleNorm, 3, xp=xp, device=value)
    norm = anynorm.LayerNorm(3)
    for value in ({}, {"weight": 1}, {"weight": 1, "bias": 1, 3: 1, "x\n" * 500: 2}):
        speaks(ValueError, "state", norm.load_state_dict, value)
    for value in (np.ones(4), np.float32(1), np.ones((3, 1))):
        speaks(ValueError, "bias", norm.load_state_dict, {"weight": np.ones(3), "bias": value})
    shaped = ("matrix", "recarray", "scipy sparse")  # which NumPy can read
    values = {name: value for name, value in wrong.not_arrays().items() if name not in shaped}
    for value in (
        *values.values(),
        *wrong.wrong_dtypes("torch").values(),
        *wrong.wrong_dtypes("numpy").values(),
        3,
        1.0,
    ):
        speaks(TypeError, "bias", norm.load_state_dict, {"weight": np.ones(3), "bias": value})


def test_names_and_threads():
    for value in (*wrong.not_integers().values(), *wrong.not_real().values()):
        if value is not None:
            speaks(TypeError, "threads", anynorm.set_threads, value)
    for value in (0, -1, np.int64(0), -(10**5000)):
        speaks(ValueError, "threads", anynorm.set_threads, value)
    x = np.ones((2, 3), np.float32)
    for value in (*wrong.not_arrays().values(), *wrong.numbers().values()):
        error = ValueError if isinstance(value, str) else TypeError
        speaks(error, "name", anynorm.use_kernel, value)
        speaks(error, "norm", anynorm.explain, x, norm=value)
    for argument, value in (("bias", x[0]), ("weight_offset", 1.0), ("residual", x)):
        speaks(TypeError, argument, anynorm.explain, x, norm="scale_norm", **{argument: value})
    speaks(TypeError, "moments", anynorm.explain, x, residual=x, moments=anynorm.moments(x))
