"""anynorm.torch.RMSNorm in place of torch.nn.RMSNorm: its arguments, and what no eps means in each way of a call."""

import inspect

import numpy as np
import pytest
import torch

import anynorm.torch as norms
from tests import reference
from tests.backends import ALL, TORCH, as_dtype
from tests.tolerances import assert_exact

KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def converted(x):
    norm = torch.nn.RMSNorm(8, elementwise_affine=False)
    assert len(norms.convert(norm).swapped) == 1
    return norm(x)


def ours():
    return norms.RMSNorm(8, elementwise_affine=False)


def under_autocast(x):
    with torch.autocast("cpu", torch.bfloat16):
        return ours()(x)


def compiled(x):
    torch.compiler.reset()
    return torch.compile(ours(), backend="aot_eager", fullgraph=True)(x)


def exported(x):
    return torch.export.export(ours(), (x,)).module()(x)


def jagged(x):
    nested = torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged)
    return torch.cat(ours()(nested).unbind())


def traced(x):
    return torch.fx.symbolic_trace(torch.nn.Sequential(ours()))(x)


WAYS = {
    "module": lambda x: ours()(x),
    "converted": converted,
    "autocast": under_autocast,
    "compiled": compiled,
    "exported": exported,
    "jagged": jagged,
    "traced": traced,
}


def small_rows(dtype):
    """Rows of about the root of eps, so that each eps gives another result."""
    return as_dtype(
        np.random.default_rng(0).standard_normal((3, 8)) * 2.0 ** (-25 if dtype == "float64" else -11), dtype
    )


def exact_by_torchs(dtype, x):
    """The exact result by the eps that torch has for None in that dtype; which one it is, torch shows."""
    theirs = torch.nn.RMSNorm(8, elementwise_affine=False)(TORCH.make(x)).double().numpy()
    exact = {
        eps: [reference.rms_norm(row, eps=eps) for row in x]
        for eps in (torch.finfo(torch.float32).eps, torch.finfo(TORCH.make(x).dtype).eps)
    }
    close = [
        rows
        for rows in exact.values()
        if np.allclose(theirs, [[float(e.value) for e in row] for row in rows], 0.02, 0.0)
    ]
    assert len(close) == 1
    return close[0]


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # torch.export's own
@pytest.mark.parametrize("dtype", ALL)
def test_no_eps_is_that_of_torch(dtype):
    x = small_rows(dtype)
    exact = exact_by_torchs(dtype, x)
    for way, norm in WAYS.items():
        assert_exact(TORCH.read(norm(TORCH.make(x))), exact, backend=f"torch, {way}", dtype=dtype, norm="rms_norm")


def test_one_module_for_dtypes_that_alternate():
    """Calls like one before, too, have the eps of their own dtype."""
    norm, given = ours(), {dtype: small_rows(dtype) for dtype in ALL}
    exact = {dtype: exact_by_torchs(dtype, x) for dtype, x in given.items()}
    for _ in range(6):
        for dtype, x in given.items():
            y = norm(TORCH.make(x))
            assert_exact(TORCH.read(y), exact[dtype], backend="torch, in turns", dtype=dtype, norm="rms_norm")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # of torch's own
@pytest.mark.parametrize("of_weight", KINDS)
@pytest.mark.parametrize("dtype", KINDS)
def test_no_eps_beside_a_weight_of_another_dtype(dtype, of_weight):
    """It is that of x's dtype, for TorchScript too, in which x is widened. A row of 2**-12 tells one from another."""
    theirs, mine = (kind(8, dtype=of_weight) for kind in (torch.nn.RMSNorm, norms.RMSNorm))
    x = torch.full((1, 8), 2.0**-26 if dtype == torch.float64 else 2.0**-12, dtype=dtype)
    expected = theirs(x)
    for norm in (mine, torch.jit.script(mine), torch.compile(mine, backend="eager")):
        y = norm(x)
        assert y.dtype == dtype
        # Each is within a few units of the exact result, which is below 1.
        torch.testing.assert_close(y, expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


def test_the_eps_of_none_where_tensors_have_no_numbers():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from anynorm._torch.forward import _eps_of_none

    with FakeTensorMode():
        assert _eps_of_none(torch.float16) == torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_arguments_are_those_of_torch_in_the_same_places(name):
    for method in ("__init__", "forward"):
        theirs, mine = (inspect.signature(getattr(getattr(module, name), method)) for module in (torch.nn, norms))
        held = [(one.name, one.kind, one.default) for one in theirs.parameters.values()]
        assert [(one.name, one.kind, one.default) for one in mine.parameters.values()][: len(held)] == held
        more = list(mine.parameters.values())[len(held) :]
        assert all(one.kind is one.KEYWORD_ONLY for one in more)
