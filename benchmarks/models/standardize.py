"""Features standardized by the statistics of a training set, which are kept, and applied in another library.

    python -m benchmarks.models.standardize

Each way trains in one library, writes a file, and serves in another: NumPy, JSON and torch; Dask, a pickle and NumPy,
with missing values; scikit-learn, two arrays and JAX. What is printed is how far each is from float64 arithmetic.
"""

import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import anynorm

EPS = 1e-5


def from_numpy_to_torch(train: np.ndarray, test: np.ndarray, folder: Path) -> Any:
    """Train block by block; a server reads JSON."""
    trained = sum(anynorm.moments(block, axis=0) for block in np.array_split(train, 10))
    (folder / "train.json").write_text(json.dumps(trained.to_dict()))

    import torch

    served = anynorm.Moments.from_dict(json.loads((folder / "train.json").read_text()), xp=torch)
    return anynorm.layer_norm(torch.from_numpy(test), axis=0, eps=EPS, moments=served)


def from_dask_to_numpy(train: np.ndarray, test: np.ndarray, folder: Path) -> Any:
    """Train on blocks of rows and features, leaving NaN out; a server reads a pickle."""
    import dask.array as da

    trained = anynorm.moments(da.from_array(train, chunks=(100, 3)), axis=0, skip_nan=True)
    (folder / "train.pickle").write_bytes(pickle.dumps(trained.compute(scheduler="synchronous")))

    served = pickle.loads((folder / "train.pickle").read_bytes())
    return anynorm.layer_norm(test, axis=0, eps=EPS, moments=served)


def from_sklearn_to_jax(train: np.ndarray, test: np.ndarray, folder: Path) -> Any:
    """Train a StandardScaler; a server reads its mean and variance."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    np.savez(folder / "train.npz", mean=scaler.mean_, variance=scaler.var_, count=scaler.n_samples_seen_)

    import jax.numpy as jnp

    served = anynorm.Moments.from_mean_variance(**np.load(folder / "train.npz"), axis=0)
    return anynorm.layer_norm(jnp.asarray(test), axis=0, eps=EPS, moments=served)


WAYS: dict[str, Callable[[np.ndarray, np.ndarray, Path], Any]] = {
    "NumPy, JSON, torch": from_numpy_to_torch,
    "Dask, pickle, NumPy": from_dask_to_numpy,
    "scikit-learn, npz, JAX": from_sklearn_to_jax,
}


def table(rows: int, seed: int, missing: float = 0.0) -> np.ndarray:
    """Rows of eight features of different sizes, as float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 8)) * 10.0 ** np.arange(-4, 4) + 10.0 ** np.arange(4, -4, -1)
    x[rng.random(x.shape) < missing] = np.nan
    return x.astype(np.float32)


def expected(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The same in float64, of what is there."""
    wide = train.astype(np.float64)
    return (test - np.nanmean(wide, 0)) / np.sqrt(np.nanvar(wide, 0) + EPS)


def main() -> None:
    for name, way in WAYS.items():
        train, test = table(1000, 0, missing=0.1 if "Dask" in name else 0.0), table(200, 1)
        with tempfile.TemporaryDirectory() as folder:
            y = np.asarray(way(train, test, Path(folder)))
        print(f"{name:24} {np.abs(y - expected(train, test)).max():.1e}")


if __name__ == "__main__":
    main()
