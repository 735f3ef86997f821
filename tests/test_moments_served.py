"""Statistics of a training set, kept in a file and applied in another library: the example."""

import numpy as np
import pytest

import anynorm
from benchmarks.models import standardize


@pytest.mark.parametrize("way", standardize.WAYS)
def test_trained_kept_and_served(way, tmp_path):
    train = standardize.table(300, 0, missing=0.1 if "Dask" in way else 0.0)
    test = standardize.table(20, 1)
    y = np.asarray(standardize.WAYS[way](train, test, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    assert y.dtype == np.float32
    # Units of results of up to 8; the first feature has a mean of a hundred million deviations of float32's own.
    np.testing.assert_allclose(y[:, 1:], standardize.expected(train, test)[:, 1:], rtol=0, atol=4 * 2.0**-20)


def test_as_scikit_learn_standardizes():
    from sklearn.preprocessing import StandardScaler

    train, test = standardize.table(300, 0, missing=0.1)[:, 2:], standardize.table(20, 1)[:, 2:]
    train[:, 3] = 7.0  # constant: scikit-learn divides by 1 there
    scaler = StandardScaler().fit(train)
    variance = np.where(scaler.var_ == 0.0, 1.0, scaler.var_)
    trained = anynorm.Moments.from_mean_variance(scaler.mean_, variance, count=scaler.n_samples_seen_, axis=0)
    y = anynorm.layer_norm(test, axis=0, eps=0.0, moments=trained)
    np.testing.assert_allclose(y, scaler.transform(test.astype(np.float64)), rtol=2.0**-22)


def test_running_statistics_of_batch_norm():
    import torch

    layer = torch.nn.BatchNorm2d(3, affine=False)
    layer(torch.randn(8, 3, 5, 5) * 2 + 1)
    layer.eval()
    x = torch.randn(2, 3, 5, 5)
    trained = anynorm.Moments.from_mean_variance(layer.running_mean, layer.running_var, count=1, axis=(0, 2, 3))
    y = anynorm.layer_norm(x, axis=(0, 2, 3), eps=layer.eps, moments=trained)
    torch.testing.assert_close(y, layer(x), rtol=2.0**-20, atol=2.0**-20)
