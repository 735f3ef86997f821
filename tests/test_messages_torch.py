"""The messages of test_messages.py for what only torch has: layouts, devices and torch.compile."""

import warnings

import pytest
import torch

import anynorm.torch
from tests import wrong_values as wrong
from tests.test_messages import calls_with_arrays, speaks


def test_tensors_that_are_not_dense():
    with warnings.catch_warnings(action="ignore"):  # of CSR being a beta, which torch says once a process
        others = [torch.eye(3).to_sparse_csr(), torch.eye(3).to_sparse(), torch.eye(3).to_mkldnn()]
        masked = torch.masked.masked_tensor(torch.ones(3), torch.ones(3) > 0)
    for argument, call in calls_with_arrays("torch"):
        for value in others:
            speaks(TypeError, argument, call, value, words="dense")
        words = "empty_like(x)" if argument.startswith("out") else f"{argument}.to_tensor(value)"
        speaks(TypeError, argument, call, masked, words=words)


def test_functions_for_torch():
    norms = anynorm.torch
    for x in (torch.ones(2, 3), torch.ones(2, 3, device="meta")):
        for add in (norms.add_layer_norm, norms.add_rms_norm):
            for value in wrong.not_arrays().values():
                speaks(TypeError, "residual", add, x, value, words="torch tensor")
            speaks(ValueError, "residual", add, x, x[0])
            speaks(ValueError, "residual", torch.compile(add, backend="eager"), x, x[0])
        for value in wrong.not_arrays().values():
            speaks(TypeError, "x", norms.rms_norm, value) if "Proxy" not in type(value).__name__ else None
            speaks(TypeError, "weight", norms.layer_norm, x, value, words="torch tensor")
            speaks(TypeError, "scale", norms.scale_norm, x, value, words="torch tensor")


def test_messages_come_through_torch_compile():
    x = torch.ones(2, 3)
    for norms in (anynorm, anynorm.torch):
        for words, given in (
            (r"eps must be a number, got .*; pass float\(eps\), from outside", {"eps": torch.tensor(0.1)}),
            (r"weight must be a torch tensor like x, got the list \[1.0\]|for argument 'weight'", {"weight": [1.0]}),
        ):
            torch.compiler.reset()
            call = torch.compile(norms.rms_norm, fullgraph=True, backend="eager")
            with pytest.raises(Exception, match=words):
                call(x, **given)
        torch.compiler.reset()
        call = torch.compile(norms.layer_norm, fullgraph=True, backend="eager")
        for eps in (1, 2, 3):  # which torch.compile no longer takes for constants from the second on
            assert torch.allclose(call(x, eps=eps), norms.layer_norm(x, eps=eps))
    torch.compiler.reset()
