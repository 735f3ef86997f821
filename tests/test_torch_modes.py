"""Gradients from one call to the next: modes that alternate, weights that are trained, threads, processes."""

import torch

import anynorm
from tests.processes import in_threads, script
from tests.test_torch_autograd import NORMS, every_norm, given_to, gradients, run, wide


@every_norm
def test_modes_that_alternate(norm):
    """The fast path, too, follows what is to be followed, and nothing else; and sees what has become of the weights."""
    given = [one.detach().float() for one in given_to(norm, 2, 33)]
    parameters = [torch.nn.Parameter(one) for one in given[1:]]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    modes = (torch.enable_grad, torch.no_grad, torch.inference_mode)
    for step in range(24):
        with modes[step % 3]():
            x = given[0] + step
            x.requires_grad_(bool(step % 2) and not x.is_inference())
            for frozen in (False, True):
                for parameter in parameters:
                    parameter.requires_grad_(not frozen)
                y = run(norm, x, *parameters)
                assert (y.grad_fn is not None) == (step % 3 == 0 and (x.requires_grad or not frozen))
                assert y.is_inference() == (step % 3 == 2)
                with anynorm.use_kernel("definition"):
                    expected = run(norm, x, *parameters)
                # Each is within 2 units of what is exact, taken at 2**5 or less.
                torch.testing.assert_close(y.detach(), expected.detach(), rtol=0, atol=4 * 2.0**-19)
        if step % 3 == 0:
            for parameter in parameters:
                parameter.requires_grad_()
            optimizer.zero_grad()
            run(norm, x, *parameters).square().sum().backward()
            before = [parameter.detach().clone() for parameter in parameters]
            optimizer.step()
            assert not any(map(torch.equal, before, parameters))


@every_norm
def test_gradients_of_no_rows_are_zeros(norm):
    """After calls with rows, too, which take the fast path."""
    held = [one.detach().float().requires_grad_() for one in given_to(norm, 2, 33)]
    for rows in (2, 2, 0, 2, 0):
        x, dy = held[0].detach()[:rows].requires_grad_(), wide(rows, 33, seed=9).float()
        found = gradients(norm, [x, *held[1:]], dy)
        for gradient in found[1:]:
            assert gradient.any() == (rows > 0)


def test_many_threads():
    cases = [(norm, given_to(norm, *shape), wide(*shape, seed=9)) for norm in NORMS for shape in ((2, 33), (900, 130))]
    expected = [gradients(*case) for case in cases]
    wrong = []

    def work(first):
        for i in range(first, first + 24):
            norm, given, dy = cases[i % len(cases)]
            held = [one.detach().clone().requires_grad_() for one in given]
            if not all(map(torch.equal, gradients(norm, held, dy), expected[i % len(cases)])):
                wrong.append(i)

    in_threads(work, range(8))
    assert wrong == []


def test_a_forked_child_goes_backward():
    code = """
import os, torch, anynorm.torch
x = torch.randn(3000, 300, requires_grad=True)
dy = torch.randn(3000, 300)
def pull():
    return torch.autograd.grad(anynorm.torch.layer_norm(x), x, dy)[0]
expected = pull()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(pull(), expected) else 1)
print(os.waitpid(child, 0)[1], int(torch.equal(pull(), expected)))
"""
    assert script(code, OMP_NUM_THREADS="2") == ["0", "1"]


def test_gradients_are_first_wanted_after_calls_without_any():
    """In a process whose fast path has not been told of autograd yet."""
    code = """
import torch, anynorm
x, weight = torch.randn(2, 33), torch.nn.Parameter(torch.randn(33))
with torch.no_grad():
    for _ in range(6):
        expected = anynorm.rms_norm(x, weight)
for _ in range(6):
    y = anynorm.rms_norm(x, weight)
    print(int(torch.equal(y, expected)), type(y.grad_fn).__name__)
"""
    assert script(code) == ["1", "_NormBackward"] * 6
