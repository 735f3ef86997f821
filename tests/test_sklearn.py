"""Normalizer beside scikit-learn's own, through its checks, in pipelines, with every kind of table."""

import pickle
import tracemalloc

import joblib
import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer as Theirs
from sklearn.utils.estimator_checks import parametrize_with_checks

import anynorm
import anynorm.sklearn
from anynorm.sklearn import Normalizer
from tests import reference
from tests.tolerances import assert_exact

NORMS = {"scale": "scale_norm", "rms": "rms_norm", "layer": "layer_norm"}
X = np.random.default_rng(0).standard_normal((30, 7)).astype(np.float32)


@parametrize_with_checks([Normalizer(norm) for norm in NORMS])
def test_estimator_checks(estimator, check):
    check(estimator)


def rows_of(dtype):
    """Ordinary rows and those that are hard: zeros, tiny, huge, both in one, subnormal, beside an outlier."""
    rng, limits = np.random.default_rng(1), np.finfo(dtype)
    x = rng.standard_normal((12, 33))
    x[1] = 0
    x[2] *= 1e-30 if dtype == "float32" else 1e-200
    x[3] *= 1e30 if dtype == "float32" else 1e200
    x[4] = np.where(np.arange(33) % 2, 1, float(limits.tiny))
    x[5] *= float(limits.smallest_subnormal) * 9
    x[6] *= 1e-4
    x[6, 0] = 1
    x[7] = 0.1
    x[8, 1:] = 0
    return x.astype(dtype)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # theirs, of rows whose squares are out of range
@pytest.mark.parametrize("form", ["dense", "csr_array", "csc_matrix"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_to_theirs_or_nearer_to_the_exact_result(dtype, form):
    dense = rows_of(dtype)
    x = dense if form == "dense" else getattr(sparse, form)(dense)
    ours, theirs = Normalizer(eps=0).transform(x), Theirs().transform(x)
    if form != "dense":
        assert isinstance(ours, type(x))
        ours, theirs = ours.toarray(), theirs.toarray()
    exact = [reference.scale_norm(row, eps=0) if row.any() else [reference.Exact(0, 0)] * 33 for row in dense]
    assert_exact(ours, exact, backend=f"scikit-learn {form}", dtype=dtype, norm="scale_norm")
    worse = 0
    for place in np.ndindex(dense.shape):
        one = exact[place[0]][place[1]]
        of_ours, of_theirs = (reference.error_in_ulp(float(y[place]), one, dtype) for y in (ours, theirs))
        worse += of_ours > of_theirs and abs(float(ours[place]) - float(theirs[place])) > np.spacing(abs(ours[place]))
    # Without llvmlite a dense result is within the bounds of the definition, which are wider than this for float64.
    assert not worse or (form, dtype, anynorm.explain(dense).kernel) == ("dense", "float64", "definition")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_are_those_of_the_function(norm, dtype):
    x = X.astype(dtype)
    options = {"eps": 0.5, "scale": -2.0} if norm == "scale" else {"eps": 0.5}
    for given in ({}, options):
        y = Normalizer(norm, **given).fit_transform(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, getattr(anynorm, NORMS[norm])(x, **given))


@pytest.mark.parametrize("numbers", [[[3, 4], [0, 0]], np.asarray([[3, 4], [0, 0]], np.int8), [[3.0, 4], [0, 0]]])
def test_other_numbers_become_float64(numbers):
    for copy in (True, False):
        y = Normalizer(copy=copy).fit_transform(numbers)
        assert y.dtype == np.float64
        np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0]], rtol=2**-51)
    assert np.asarray(numbers)[0, 1] == 4
    assert Normalizer().fit_transform(np.asarray([[True, False]])).dtype == np.float64


def test_in_place_where_that_is_possible():
    given = X.copy()
    assert Normalizer(copy=False).fit_transform(given) is given
    np.testing.assert_array_equal(given, anynorm.scale_norm(X))
    again = X.copy()
    assert Normalizer().transform(again, copy=False) is again
    kept = X.copy()
    for estimator, copy in ((Normalizer(), None), (Normalizer(copy=False), True)):
        assert not np.shares_memory(estimator.transform(kept, copy=copy), kept)
    windows = np.lib.stride_tricks.sliding_window_view(X[0].copy(), 3, writeable=True)
    kept.flags.writeable = False
    for x, before in ((kept, X), (windows, windows.copy())):
        y = Normalizer(copy=False).transform(x)
        np.testing.assert_array_equal(y, anynorm.scale_norm(before))
        np.testing.assert_array_equal(x, before)


def test_one_new_array_and_no_pass_to_look_for_nan(monkeypatch):
    x = np.ones((10_000, 100))
    integers = x.astype(np.int8)  # normalized where they were converted to
    looked_at = []
    monkeypatch.setattr(anynorm.sklearn, "assert_all_finite", lambda x, **_: looked_at.append(x.shape))
    for run, given in (
        (Normalizer().transform, x), (Normalizer("rms").fit_transform, x), (Normalizer().transform, integers),
    ):  # fmt: skip
        run(given)
        tracemalloc.start()
        try:
            run(given)
            peak_nbytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert x.nbytes <= peak_nbytes < 1.2 * x.nbytes + 500_000
        assert not looked_at or given is integers
        looked_at.clear()
    Normalizer(copy=False).transform(x)
    assert looked_at == [x.shape]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("norm", NORMS)
def test_nan_and_inf_are_refused_as_theirs_refuses_them(norm, value):
    x = X.copy()
    x[3, 5] = value
    with pytest.raises(ValueError, match="Input X contains") as theirs:
        Theirs().transform(x)
    for copy in (True, False):
        before = x.copy()
        for run in (Normalizer(norm, copy=copy).transform, Normalizer(norm, copy=copy).fit_transform):
            with pytest.raises(ValueError, match="Input X contains") as ours:
                run(x)
            assert str(ours.value) == str(theirs.value)
        np.testing.assert_array_equal(x, before)
    with sklearn.config_context(assume_finite=True):
        y = Normalizer(norm).transform(x)
    assert np.isnan(y[3]).all()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdefg"), index=np.arange(30)[::-1])
    estimator = Normalizer("rms").fit(frame)
    np.testing.assert_array_equal(estimator.transform(frame), anynorm.rms_norm(X))
    assert estimator.get_feature_names_out().tolist() == list("abcdefg")
    for copy in (True, False):
        of_frame = frame.copy()
        y = clone(estimator).set_params(copy=copy).set_output(transform="pandas").fit_transform(of_frame)
        assert list(y.columns) == list("abcdefg")
        assert y.index.equals(frame.index)
        assert (y.dtypes == np.float32).all()
        np.testing.assert_array_equal(y.to_numpy(), anynorm.rms_norm(X))
        assert not copy or of_frame.equals(frame)
    with pytest.raises(ValueError, match="feature names"):
        estimator.transform(frame[["b", "a", *"cdefg"]])
    missing = frame.astype("Float32")
    missing.iloc[2, 2] = pandas.NA
    with pytest.raises(ValueError, match="Input X contains NaN"):
        Normalizer().fit_transform(missing)
    stored = pandas.DataFrame.sparse.from_spmatrix(sparse.csr_array(np.diag([3.0, 4.0])))
    assert Normalizer().fit_transform(stored).format == "csr"


def test_polars():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: X[:, i] for i, name in enumerate("abcdefg")})
    y = Normalizer("layer").set_output(transform="polars").fit_transform(frame)
    assert isinstance(y, polars.DataFrame)
    assert y.columns == list("abcdefg")
    assert set(y.dtypes) == {polars.Float32}
    np.testing.assert_array_equal(y.to_numpy(), anynorm.layer_norm(X))


def test_names_are_made_up_where_there_are_none():
    assert Normalizer().fit(X).get_feature_names_out()[0] == "x0"
    with pytest.raises(NotFittedError):
        Normalizer().get_feature_names_out()


def test_a_pipeline_is_searched_for_the_best_norm():
    rng = np.random.default_rng(2)
    labels = np.arange(120) % 2
    x = (rng.standard_normal((120, 8)) + np.where(np.arange(8) < 4, labels[:, None], 0)) * 10 ** rng.normal(
        size=(120, 1)
    )
    search = GridSearchCV(
        make_pipeline(Normalizer(), LogisticRegression()), {"normalizer__norm": list(NORMS)}, cv=3, n_jobs=2
    )
    with joblib.parallel_config("threading"):
        search.fit(x, labels)
    assert search.best_score_ > 0.7
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    restored = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(restored.predict(x), search.predict(x))


@pytest.mark.thorough
def test_processes_of_joblib():
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(Normalizer().fit_transform)(X) for _ in range(2))
    for y in found:
        np.testing.assert_array_equal(y, anynorm.scale_norm(X))


def test_shown():
    estimator = Normalizer("rms", eps=1e-3)
    assert repr(estimator) == "Normalizer(eps=0.001, norm='rms')"
    page = estimator._repr_html_()
    assert "Normalizer" in page
    assert "eps" in page
    assert clone(estimator).get_params() == {"norm": "rms", "eps": 1e-3, "scale": None, "copy": True}


@pytest.mark.parametrize(
    ("parameters", "error", "said"),
    [
        ({"norm": "l2"}, ValueError, "pass 'scale' for unit vectors"),
        ({"norm": None}, ValueError, "norm must be 'scale', 'rms' or 'layer', got None"),
        ({"norm": "rms", "scale": 1.0}, ValueError, "scale must be None with any norm but 'scale', got the float 1.0"),
        ({"eps": -1e-30}, ValueError, "eps must be finite and not negative"),
        ({"eps": "1"}, TypeError, "eps must be a number"),
        ({"scale": np.inf}, ValueError, "scale must be finite"),
        ({"scale": X}, TypeError, "scale must be a number"),
        ({"copy": "no"}, TypeError, "copy must be True or False, got the str 'no'"),
    ],
)
def test_wrong_parameters(parameters, error, said):
    estimator = Normalizer(**parameters)
    for run in (estimator.fit, estimator.transform, estimator.fit_transform):
        with pytest.raises(error, match=said):
            run(X)


def test_layer_norm_refuses_sparse():
    for run in (Normalizer("layer").fit, Normalizer("layer").transform):
        with pytest.raises(TypeError, match=r"centring would make every zero .* pass X.toarray\(\)"):
            run(sparse.csr_array(X))


def test_masked_arrays_are_refused():
    """Of which scikit-learn drops the mask."""
    for run in (Normalizer().fit, Normalizer().transform):
        with pytest.raises(TypeError, match=r"got a numpy MaskedArray; pass X.filled\(value\)"):
            run(np.ma.masked_array(X, X > 0))


def test_no_samples_and_no_features():
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="a minimum of 1 is required"):
            Normalizer().fit_transform(np.ones(shape))
