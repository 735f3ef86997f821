"""Functions and modules that are one norm in several dresses take the same arguments, with the same defaults."""

import inspect
import typing

import pytest

import anynorm
import anynorm.nnx
import anynorm.torch

NORMS = ("layer_norm", "rms_norm", "scale_norm")
AVERAGED = NORMS[:2]
CLASSES = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "scale_norm": "ScaleNorm"}
OF_ADDS = {"residual", "out"}  # a sum has a residual, and a pair of results


def parameters_of(function):
    # Flax's classes have the signature of what makes their instances.
    return inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters


def assert_alike(one, other, but=(), typed=True):
    """The parameters that both have stand in one order, with the same kinds, defaults and, if typed, types."""
    found = []
    for function, beside in ((one, other), (other, one)):
        shared = [of for name, of in parameters_of(function).items() if name in parameters_of(beside)]
        found.append([of if typed else of.replace(annotation=of.empty) for of in shared if of.name not in but])
    assert found[0] == found[1] != []


def missing_from(one, other):
    return parameters_of(one).keys() - parameters_of(other).keys()


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_and_its_derivative(norm):
    function, derivative = getattr(anynorm, norm), getattr(anynorm, f"{norm}_vjp")
    assert_alike(function, derivative)
    assert missing_from(function, derivative) == {"out"}
    assert not missing_from(derivative, function)
    overloads = typing.get_overloads(derivative)
    assert len(overloads) == 2
    for overload in overloads:
        assert_alike(overload, derivative, but={"moments"})
        assert list(parameters_of(overload)) == list(parameters_of(derivative))


@pytest.mark.parametrize("norm", AVERAGED)
def test_a_norm_of_a_sum(norm):
    function, add, derivative = (getattr(anynorm, name) for name in (norm, f"add_{norm}", f"add_{norm}_vjp"))
    assert_alike(function, add, but=OF_ADDS)
    assert missing_from(function, add) == {"moments"}
    assert missing_from(add, function) == {"residual"}
    assert_alike(add, derivative)
    assert missing_from(add, derivative) == {"out"}


@pytest.mark.parametrize("name", [*NORMS, *(f"add_{norm}" for norm in AVERAGED)])
def test_a_norm_of_tensors(name):
    function, of_tensors = getattr(anynorm, name), getattr(anynorm.torch, name)
    assert_alike(function, of_tensors, typed=False)
    assert missing_from(function, of_tensors) <= {"moments", "out"}
    assert not missing_from(of_tensors, function)


def test_a_layer_norm_and_an_rms_norm_differ_in_eps_alone():
    for name in ("{}", "{}_vjp", "add_{}", "add_{}_vjp"):
        one, other = (getattr(anynorm, name.format(norm)) for norm in AVERAGED)
        assert_alike(one, other, but={"eps"})
        assert not missing_from(one, other) | missing_from(other, one)
    assert_alike(anynorm.LayerNorm, anynorm.RMSNorm, but={"eps", "bias"})
    assert_alike(anynorm.torch.LayerNorm, anynorm.torch.RMSNorm, but={"eps", "bias"})
    assert_alike(anynorm.nnx.LayerNorm, anynorm.nnx.RMSNorm)


@pytest.mark.parametrize("norm", NORMS)
def test_modules_have_the_defaults_of_the_function(norm):
    function = parameters_of(getattr(anynorm, norm))
    for module in (anynorm, anynorm.torch):
        found = parameters_of(getattr(module, CLASSES[norm]))
        for name in {"eps", "weight_offset"} & found.keys():
            if (module, norm, name) != (anynorm.torch, "rms_norm", "eps"):  # torch's own is None
                assert found[name].default == function[name].default
    if norm == "scale_norm":  # the other two have Flax's epsilon
        assert parameters_of(anynorm.nnx.ScaleNorm)["epsilon"].default == function["eps"].default
