"""Calls as a type checker sees them: mypy and basedpyright read this file, and nothing runs it.

An error that is ignored here is one that a user is to get: where it is gone, both say that nothing is left to ignore.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, assert_type

import numpy as np

import anynorm

if TYPE_CHECKING:
    import array_api_strict
    import dask.array
    import jax
    import ndonnx
    import torch
    from flax import nnx
    from numpy.typing import NDArray

    import anynorm.nnx
    import anynorm.sklearn
    import anynorm.torch

    Floats = NDArray[np.float32]
    Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
    Strict = array_api_strict._array_object.Array  # pyright: ignore[reportPrivateUsage]  # it has no other name

T = TypeVar("T")
Pullback = Callable[[T], tuple[T, T | None, T | None]]


def of_numpy(x: Floats, matrix: Matrix, weight: Floats) -> None:
    assert_type(anynorm.layer_norm(x, weight, weight, axis=np.int64(-1), eps=0), Floats)
    assert_type(anynorm.layer_norm(matrix, axis=(0, 1), out=matrix), Matrix)
    assert_type(anynorm.rms_norm(matrix, weight), Matrix)
    assert_type(anynorm.scale_norm(x), Floats)
    assert_type(
        anynorm.load_norms("model.gguf", eps=0)["output_norm"],
        anynorm.LayerNorm | anynorm.RMSNorm | anynorm.ScaleNorm,
    )
    assert_type(anynorm.scale_norm(x, 2), Floats)
    assert_type(anynorm.scale_norm(x, np.float32(2)), Floats)
    assert_type(anynorm.scale_norm(matrix, np.asarray(2.0)), Matrix)
    assert_type(anynorm.add_layer_norm(x, x, out=(x, x)), tuple[Floats, Floats])
    assert_type(anynorm.add_rms_norm(matrix, x), tuple[Matrix, Matrix])
    assert_type(anynorm.layer_norm_vjp(x), tuple[Floats, Pullback[Floats]])
    assert_type(anynorm.rms_norm_vjp(matrix), tuple[Matrix, Pullback[Matrix]])
    _, pull_given = anynorm.rms_norm_vjp(matrix, moments=anynorm.moments_vjp(x)[0])
    assert_type(pull_given(matrix), tuple[Matrix, Matrix | None, Matrix | None, anynorm.MomentsGradient])
    y, pull = anynorm.scale_norm_vjp(x, 2.0)
    assert_type((y, pull(x)), tuple[Floats, tuple[Floats, Floats | None]])
    pair, pull_sum = anynorm.add_rms_norm_vjp(x, x)
    assert_type(pair, tuple[Floats, Floats])
    assert_type(pull_sum(x, dtotal=x), tuple[Floats, Floats, Floats | None, Floats | None])
    moments, vjp_moments = anynorm.moments_vjp(x)
    given = anynorm.layer_norm_vjp(x, weight, moments=moments)[1](x)
    assert_type(given, tuple[Floats, Floats | None, Floats | None, anynorm.MomentsGradient])
    assert_type(anynorm.rms_norm_vjp(x, moments=moments)[1](x)[3], anynorm.MomentsGradient)
    assert_type(anynorm.scale_norm_vjp(x, moments=moments)[1](x)[2], anynorm.MomentsGradient)
    assert_type(vjp_moments(given[3]), Floats)


def of_torch(x: torch.Tensor, weight: torch.nn.Parameter) -> None:
    assert_type(anynorm.layer_norm(x, weight), torch.Tensor)
    assert_type(anynorm.add_layer_norm(x, x), tuple[torch.Tensor, torch.Tensor])
    assert_type(anynorm.rms_norm_vjp(x, weight), tuple[torch.Tensor, Pullback[torch.Tensor]])
    assert_type(anynorm.add_layer_norm_vjp(x, x)[1](x)[1], torch.Tensor)
    assert_type(anynorm.torch.layer_norm(x, weight), torch.Tensor)
    assert_type(anynorm.torch.rms_norm(x, weight), torch.Tensor)
    assert_type(anynorm.torch.scale_norm(x, 2.0), torch.Tensor)
    assert_type(anynorm.torch.add_layer_norm(x, x), tuple[torch.Tensor, torch.Tensor])
    assert_type(anynorm.torch.add_rms_norm(x, x), tuple[torch.Tensor, torch.Tensor])
    assert_type(anynorm.torch.LayerNorm(3, device="cpu", dtype=torch.float32)(x), torch.Tensor)
    assert_type(anynorm.torch.RMSNorm((3, 4))(x), torch.Tensor)
    assert_type(anynorm.torch.ScaleNorm(3)(x), torch.Tensor)
    model = torch.nn.Linear(3, 3)
    assert_type([one.kind for one in anynorm.torch.convert(model).swapped], list[str])
    assert_type(anynorm.torch.revert(model).skipped[0].names, tuple[str, ...])


def of_other_libraries(x: jax.Array, lazy: dask.array.Array, strict: Strict, traced: ndonnx.Array, w: Floats) -> None:
    assert_type(anynorm.layer_norm(x, w), jax.Array)
    assert_type(anynorm.layer_norm_vjp(x, w), tuple[jax.Array, Pullback[jax.Array]])
    assert_type(anynorm.layer_norm(lazy, w), dask.array.Array)
    assert_type(anynorm.rms_norm(strict, strict), Strict)
    assert_type(anynorm.scale_norm(traced), ndonnx.Array)


def of_norms(x: Floats, tensor: torch.Tensor) -> None:
    norm = anynorm.LayerNorm(3)
    assert_type(norm(x, out=x), Floats)
    assert_type(anynorm.RMSNorm((2, 3), xp=torch)(tensor), torch.Tensor)
    assert_type(anynorm.ScaleNorm(np.int64(3))(x), Floats)
    assert_type(norm.shape, tuple[int, ...])
    assert_type(anynorm.sklearn.Normalizer("rms", eps=1).fit(x), anynorm.sklearn.Normalizer)
    norm.load_state_dict({"weight": x, "bias": tensor})


def of_flax(x: jax.Array, rngs: nnx.Rngs) -> None:
    assert_type(anynorm.nnx.LayerNorm(3, rngs=rngs)(x), jax.Array)
    assert_type(anynorm.nnx.RMSNorm(3, rngs=rngs)(x), jax.Array)
    assert_type(anynorm.nnx.ScaleNorm(3, rngs=rngs)(x), jax.Array)


def of_all_else(x: Floats) -> None:
    found = anynorm.moments(x, axis=[0, 1])
    assert_type(found, anynorm.Moments)
    assert_type(anynorm.layer_norm(x, moments=found.merge(found)), Floats)
    assert_type(found.count, Any)
    assert_type(anynorm.moments(x, skip_nan=True) + found, anynorm.Moments)
    assert_type(anynorm.Moments.from_mean_variance(x, x, count=3, axis=0)[..., 3:5], anynorm.Moments)
    assert_type(anynorm.Moments.concat([found, found]).to(torch).astype("float16"), anynorm.Moments)
    assert_type(found.compute().persist(), anynorm.Moments)
    assert_type(anynorm.Moments.from_dict(found.to_dict()), anynorm.Moments)
    convention: anynorm.Convention = anynorm.CONVENTIONS["llama"].replace(eps=1e-5)
    assert_type(anynorm.layer_norm(x, convention=convention), Floats)
    assert_type(anynorm.rms_norm(x, convention="gemma"), Floats)
    explanation: anynorm.Explanation = anynorm.explain(x, norm="scale_norm")
    assert_type(explanation.refused, dict[str, str])
    assert_type(anynorm.get_threads(), int)
    anynorm.set_threads(2)

    @anynorm.use_kernel("definition")
    def decorated(x: Floats) -> str:
        with anynorm.use_kernel(None):
            return str(x)

    assert_type(decorated(x), str)
    decorated(1)  # type: ignore[arg-type]


def refused(x: Floats, numbers: list[float], anything: object, optional: Floats | None) -> None:
    anynorm.layer_norm("text")  # type: ignore[type-var]
    anynorm.layer_norm(numbers)  # type: ignore[type-var]
    anynorm.rms_norm(1)  # type: ignore[type-var]
    anynorm.rms_norm(np.float32(1))  # type: ignore[type-var]
    anynorm.scale_norm(anything)  # type: ignore[type-var]
    anynorm.scale_norm(optional)  # type: ignore[type-var]
    anynorm.layer_norm_vjp(b"text")  # type: ignore[call-overload]
    anynorm.layer_norm_vjp(x)[1](1.0)  # type: ignore[arg-type]
    anynorm.add_layer_norm_vjp("text", x)  # type: ignore[type-var]
    anynorm.add_rms_norm(x, numbers)  # type: ignore[arg-type]
    anynorm.add_rms_norm(x, x, out=x)  # type: ignore[arg-type]
    anynorm.layer_norm(x, numbers)  # type: ignore[arg-type]
    anynorm.layer_norm(x, out=numbers)  # type: ignore[arg-type]
    anynorm.layer_norm(x, axis="channels")  # type: ignore[arg-type]
    anynorm.layer_norm(x, axis=1.0)  # type: ignore[arg-type]
    anynorm.layer_norm(x, eps=None)  # type: ignore[arg-type]
    anynorm.layer_norm(x, moments=x)  # type: ignore[arg-type]
    anynorm.scale_norm(x, "2")  # type: ignore[arg-type]
    anynorm.moments("text")  # type: ignore[arg-type]
    anynorm.explain("text")  # type: ignore[arg-type]
    anynorm.rms_norm(x, convention=1.0)  # type: ignore[arg-type]
    anynorm.Moments.from_mean_variance([1.0], x, count=1)  # type: ignore[arg-type]
    anynorm.LayerNorm(3)("text")  # type: ignore[type-var]
    anynorm.LayerNorm("3")  # type: ignore[arg-type]
    anynorm.ScaleNorm((3, 4))  # type: ignore[arg-type]
    anynorm.torch.layer_norm(x)  # type: ignore[arg-type]
    anynorm.torch.LayerNorm(3)(x)  # type: ignore[arg-type]
    anynorm.use_kernel(1)  # type: ignore[arg-type]
