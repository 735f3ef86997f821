"""out=: written where asked, in place where asked, and refused where memory overlaps otherwise."""

import numpy as np
import pytest

import anynorm
from tests.backends import ALL, BACKENDS, as_dtype

NORMS = {"layer_norm": anynorm.layer_norm, "rms_norm": anynorm.rms_norm, "scale_norm": anynorm.scale_norm}
WRITABLE = [param for param in BACKENDS if param.values[0].writable]
# Each with its dtypes; kernels that add are compiled for float32 alone, unless all is to be run.
WRITABLE_DTYPES = [
    pytest.param(backend, dtype, id=f"{backend}-{dtype}", marks=marks + [pytest.mark.thorough] * (dtype != "float32"))
    for (backend,), marks, dtype in ((param.values, [*param.marks], dtype) for param in WRITABLE for dtype in ALL)
    if dtype in backend.dtypes
]


def random(shape=(5, 7), dtype="float32", seed=0):
    return as_dtype(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("backend", WRITABLE)
@pytest.mark.parametrize("norm", NORMS)
def test_out_holds_the_bits_of_the_result(norm, backend):
    for dtype in backend.dtypes:
        x = backend.make(random(dtype=dtype))
        expected = backend.read(NORMS[norm](x))
        out = backend.make(np.zeros_like(random(dtype=dtype)))
        assert NORMS[norm](x, out=out) is out
        assert (backend.read(out) == expected).all()
        assert (backend.read(x) == random(dtype=dtype)).all()
        assert NORMS[norm](x, out=x) is x
        assert (backend.read(x) == expected).all()


@pytest.mark.parametrize(("backend", "dtype"), WRITABLE_DTYPES)
@pytest.mark.parametrize("add", ["add_layer_norm", "add_rms_norm"])
def test_residual_adds(add, backend, dtype):
    separate = NORMS[add[4:]]
    x, residual, weight = random(dtype=dtype), random(dtype=dtype, seed=1), random((7,), dtype, 2)
    total = as_dtype(x + residual, dtype)
    expected = backend.read(separate(backend.make(total), backend.make(weight)))
    held = [backend.make(a) for a in (x, residual, weight)]
    y, added = getattr(anynorm, add)(*held)
    assert (backend.read(added) == total).all()
    assert (backend.read(y) == expected).all()
    assert (backend.read(held[0]) == x).all()
    assert (backend.read(held[1]) == residual).all()
    result = getattr(anynorm, add)(*held, out=(held[0], held[1]))
    assert result[0] is held[0]
    assert result[1] is held[1]
    assert (backend.read(held[0]) == expected).all()
    assert (backend.read(held[1]) == total).all()


def test_large_arrays_in_place():
    x = random((600, 1000))
    expected, total = anynorm.add_rms_norm(x, x[::-1].copy())
    residual = x[::-1].copy()
    anynorm.add_rms_norm(x, residual, out=(residual, x))
    assert (residual == expected).all()
    assert (x == total).all()


def views():
    """Name, x, out: views of one buffer that overlap without being the same."""
    buffer = np.zeros(100, np.float32)
    yield "shifted", buffer[:20].reshape(4, 5), buffer[1:21].reshape(4, 5)
    yield "reversed", buffer[:20].reshape(4, 5), buffer[:20].reshape(4, 5)[::-1]
    yield "transposed", buffer[:25].reshape(5, 5), buffer[:25].reshape(5, 5).T
    yield "interleaved", buffer[:40:2].reshape(4, 5), buffer[2:42:2].reshape(4, 5)


@pytest.mark.parametrize(("x", "out"), [pytest.param(x, out, id=name) for name, x, out in views()])
def test_partial_overlap_is_refused(x, out):
    with pytest.raises(ValueError, match=r"out must be x itself or share no memory with x, .* pass out=x"):
        anynorm.rms_norm(x, out=out)


def test_partial_overlap_of_tensors_is_refused():
    import torch

    buffer = torch.zeros(100)
    for x, out in (
        (buffer[:20].view(4, 5), buffer[1:21].view(4, 5)),
        (buffer[:25].view(5, 5), buffer[:25].view(5, 5).T),
    ):
        with pytest.raises(ValueError, match=r"out must be x itself or share no memory with x, .* pass out=x"):
            anynorm.rms_norm(x, out=out)
    apart = buffer.view(10, 10)
    anynorm.rms_norm(apart[:, ::2], out=apart[:, 1::2])


def test_interleaved_views_that_share_nothing_are_taken():
    buffer = random((4, 10))
    expected = anynorm.rms_norm(buffer[:, ::2])
    anynorm.rms_norm(buffer[:, ::2], out=buffer[:, 1::2])
    assert (buffer[:, 1::2] == expected).all()


def test_parameters_are_never_written():
    x = random((7, 7))
    with pytest.raises(ValueError, match=r"out must share no memory with weight, .* pass an array of its own"):
        anynorm.rms_norm(random((7, 7)), x[0], out=x)
    with pytest.raises(ValueError, match="out must share no memory with bias"):
        anynorm.layer_norm(random((7, 7)), bias=x[:, 2], out=x)
    with pytest.raises(ValueError, match=r"out\[0\] must share no memory with out\[1\]"):
        anynorm.add_rms_norm(random((7, 7)), random((7, 7)), out=(x, x))


def test_outs_that_cannot_be_written():
    import torch

    x = random()
    frozen = x.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
        anynorm.rms_norm(x, out=frozen)
    with pytest.raises(ValueError, match="got elements that share memory"):
        anynorm.rms_norm(torch.from_numpy(x), out=torch.zeros(7).expand(5, 7))
    with pytest.raises(ValueError, match="got a leaf that requires a gradient"):
        anynorm.rms_norm(torch.from_numpy(x), out=torch.zeros((5, 7), requires_grad=True))
    with pytest.raises(ValueError, match=r"out must have x's shape and dtype, \(5, 7\) of float32, got \(7, 5\)"):
        anynorm.rms_norm(x, out=np.zeros((7, 5), np.float32))
    with pytest.raises(ValueError, match="of float64"):
        anynorm.rms_norm(x, out=np.zeros((5, 7)))
    with pytest.raises(TypeError, match="out must be a pair of arrays"):
        anynorm.add_rms_norm(x, x, out=x)


def test_elements_that_share_memory_are_refused():
    import torch

    windows = np.lib.stride_tricks.sliding_window_view
    flat = np.arange(40, dtype=np.float32)
    tensor = torch.arange(40.0)
    for x in (
        windows(flat, 3, writeable=True),
        windows(flat, 3, writeable=True)[::2],
        windows(flat.reshape(5, 8), (2, 3), writeable=True)[:, ::-1],
        np.lib.stride_tricks.as_strided(flat, (3, 4), (12, 8)),
        np.lib.stride_tricks.as_strided(flat, (40, 3), (4, 0)),
        torch.as_strided(tensor, (8, 3), (1, 1)),
        tensor.unfold(0, 3, 1),
    ):
        before = (flat.copy(), tensor.clone())
        with pytest.raises(ValueError, match="got elements that share memory"):
            anynorm.rms_norm(x, out=x)
        assert (flat == before[0]).all()
        assert (tensor == before[1]).all()


def test_views_whose_elements_are_apart_are_taken():
    base = random((4, 6, 5, 7))
    interlaced = np.lib.stride_tricks.as_strided(base, (2, 3), (12, 8))  # neither axis spans the other
    windows = np.lib.stride_tricks.sliding_window_view(base.ravel(), 7, writeable=True)[::7]
    views = [
        base.T, base[::-1, ::2, ::-3, 1::2], base.transpose(2, 0, 3, 1)[:, ::2], base[:, None, :, 2], base[1:1],
        base[:1, :, :1], base.ravel()[::-1], np.diagonal(base).copy().T, interlaced, windows,
    ]  # fmt: skip
    for view in views:
        x = base.copy()
        expected = anynorm.rms_norm(view)
        assert (anynorm.rms_norm(view, out=view) == expected).all()
        base[...] = x


def test_a_refused_call_writes_nothing():
    x, out = random(), np.full((5, 7), 3, np.float32)
    with pytest.raises(ValueError, match="weight must have"):
        anynorm.rms_norm(x, np.ones(3, np.float32), out=out)
    assert (out == 3).all()
