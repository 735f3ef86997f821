"""Lengths, axes and counts may be integers of any kind, and are kept as Python's own."""

import numpy as np
import pytest
import torch

import anynorm
import anynorm.torch

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
INTEGERS = (np.prod((2, 2)), np.uint8(4), np.asarray(4), torch.tensor(4))


class Indexed:
    def __index__(self):
        return 4


@pytest.mark.parametrize("length", [*INTEGERS, Indexed()], ids=lambda length: type(length).__name__)
def test_lengths(length):
    for norm in (anynorm.LayerNorm, anynorm.RMSNorm):
        for shape, expected in ((length, (4,)), ((3, length), (3, 4)), ([length], (4,))):
            made = norm(shape)
            assert made.shape == expected
            assert {type(one) for one in made.shape} == {int}
            assert repr(made) == repr(norm(expected))
    for norm in (anynorm.torch.LayerNorm, anynorm.torch.RMSNorm):
        assert {type(one) for one in norm((3, length)).normalized_shape} == {int}
        assert norm(length).normalized_shape == (4,)
    for norm in (anynorm.ScaleNorm, anynorm.torch.ScaleNorm):
        assert type(norm(length).dim) is int
        assert repr(norm(length)) == repr(norm(4))


@pytest.mark.parametrize("axis", [np.int64(1), np.int8(-2), np.asarray(1)], ids=repr)
def test_axes(axis):
    x = X.copy()
    expected = anynorm.layer_norm(x, axis=1)
    assert (anynorm.layer_norm(x, axis=axis) == expected).all()
    assert (anynorm.layer_norm(x, axis=(axis, np.int32(2))) == anynorm.layer_norm(x, axis=(1, 2))).all()
    assert (anynorm.moments(x, axis=axis).mean == anynorm.moments(x, axis=1).mean).all()
    y, pullback = anynorm.rms_norm_vjp(x, axis=axis)
    assert (pullback(y)[0] == anynorm.rms_norm_vjp(x, axis=1)[1](y)[0]).all()
    assert (anynorm.torch.layer_norm(torch.from_numpy(x), axis=axis).numpy() == expected).all()


def test_numbers_of_threads():
    anynorm.set_threads(np.int64(2))
    try:
        assert anynorm.get_threads() == 2
        assert type(anynorm.get_threads()) is int
    finally:
        anynorm.set_threads(None)
