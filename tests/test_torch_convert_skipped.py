"""What convert and revert leave as it is, and why."""

import pytest
import torch
from torch.nn.utils import parametrize

import anynorm.torch as norms


def skipped(model):
    """Convert a model that holds a norm which has to be skipped, and return why."""
    report = norms.convert(model)
    assert report.swapped == ()
    return report.skipped[0].note


class Subclass(torch.nn.LayerNorm):
    def forward(self, input):
        return -super().forward(input)


class OfOthersRMSNorm(torch.nn.Module):
    pass


class PreLayerNormBlock(torch.nn.Sequential):
    """No norm, for it has modules in it."""


class MyOwn(norms.LayerNorm):
    pass


def parametrized(norm):
    return parametrize.register_parametrization(norm, "weight", torch.nn.Tanh())


def with_attribute(name, value, norm=None):
    norm = torch.nn.RMSNorm(8) if norm is None else norm
    setattr(norm, name, value)
    return norm


LEFT = {
    "subclass of torch.nn.LayerNorm": lambda: Subclass(8),
    "subclass of torch.nn.RMSNorm": lambda: type("RMSNorm", (torch.nn.RMSNorm,), {})(8),
    "not one of torch.nn or transformers that is known": OfOthersRMSNorm,
    "parametrized": lambda: parametrized(torch.nn.LayerNorm(8)),
    "forward has been replaced": lambda: with_attribute("forward", lambda x: x),
    "given a bias": lambda: with_attribute("bias", torch.nn.Parameter(torch.ones(8))),
    "given a weight_offset": lambda: with_attribute("weight_offset", 1.0),
    "eps must be finite and not negative, got -1.0": lambda: torch.nn.RMSNorm(8, eps=-1.0),
    "eps must be a number, got None": lambda: torch.nn.LayerNorm(8, eps=None),
    "weight is a FakeTensor; convert before": lambda: of_fake_tensors(),
    "bias is of float8_e4m3fn": lambda: with_attribute(
        "bias", torch.nn.Parameter(torch.ones(8).to(torch.float8_e4m3fn), requires_grad=False), torch.nn.LayerNorm(8)
    ),
}


def of_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.nn.RMSNorm(8)


@pytest.mark.parametrize("why", LEFT)
def test_what_is_skipped_and_why(why):
    model = torch.nn.Sequential(LEFT[why]())
    kind = type(model[0])
    assert why in skipped(model)
    assert type(model[0]) is kind


def test_norms_of_other_kinds_are_not_listed():
    model = torch.nn.Sequential(
        torch.nn.GroupNorm(2, 8), torch.nn.BatchNorm1d(8), torch.nn.InstanceNorm1d(8), torch.nn.LocalResponseNorm(2),
        PreLayerNormBlock(norms.ScaleNorm(8), norms.LayerNorm(8), MyOwn(8)),
    )  # fmt: skip
    assert norms.convert(model) == ((), ())


def test_what_is_not_given_back_and_why():
    model = torch.nn.Sequential(
        norms.LayerNorm(8, weight_offset=1.0), norms.RMSNorm(8, bias=True), norms.ScaleNorm(8), MyOwn(8),
        with_attribute("forward", lambda x: x, norms.RMSNorm(8)), norms.RMSNorm(8), torch.nn.GroupNorm(2, 8),
        parametrized(norms.RMSNorm(8)), norms.LayerNorm(8, weight_shape=(2, 8)),
    )  # fmt: skip
    report = norms.revert(model)
    assert repr(report).splitlines() == [
        "swapped 1, skipped 7",
        "  swapped  5  RMSNorm",
        "  skipped  0  LayerNorm            torch.nn.LayerNorm has no weight_offset, and its own is 1.0",
        "  skipped  1  RMSNorm              torch.nn.RMSNorm has no bias",
        "  skipped  2  ScaleNorm            torch.nn has no ScaleNorm",
        "  skipped  3  MyOwn                it is of a subclass of anynorm's class",
        "  skipped  4  RMSNorm              its forward has been replaced, as some libraries do",
        "  skipped  7  ParametrizedRMSNorm  it is parametrized (torch.nn.utils.parametrize)",
        "  skipped  8  LayerNorm            torch.nn.LayerNorm has no weight of shape (2, 8)",
    ]
    assert type(model[5]) is torch.nn.RMSNorm


@pytest.mark.parametrize("change", [norms.convert, norms.revert])
def test_what_is_no_model(change):
    for given, got in (
        (torch.nn.LayerNorm, "the class LayerNorm"),
        (None, "None"),
        ([torch.nn.LayerNorm(8)], "a list"),
    ):
        with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, got {got}; pass the model"):
            change(given)
