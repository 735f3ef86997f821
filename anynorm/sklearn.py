"""The norms as a transformer of scikit-learn: for pipelines, data frames, sparse matrices."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy
import scipy.sparse
from sklearn import get_config
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import Tags, assert_all_finite
from sklearn.utils.validation import validate_data

from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._kernels import stored
from anynorm._libraries import dtype_name, library_of
from anynorm._norms import layer_norm, rms_norm, scale_norm
from anynorm._numbers import check_number
from anynorm._overlap import require_writable
from anynorm._wording import describe, not_an_array, sentence

__all__ = ["Normalizer"]

_FUNCTIONS = {"layer": layer_norm, "rms": rms_norm, "scale": scale_norm}
_RULES = {"layer": LAYER_NORM, "rms": RMS_NORM, "scale": SCALE_NORM}
_DTYPES = ("float16", "float32", "float64")  # those that scikit-learn's checks know; bfloat16 is kept too


class _Parameters(NamedTuple):
    """The checked parameters of a Normalizer."""

    function: Any
    rule: Rule
    eps: float
    scale: float | None


class Normalizer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Normalize each sample by itself: `anynorm.scale_norm`, `rms_norm` or `layer_norm` of each row.

    With ``norm="scale"`` it stands in for ``sklearn.preprocessing.Normalizer(norm="l2")``: rows become unit vectors.
    Nothing is learned; `fit` checks parameters and data, and remembers the names of the features.

    Parameters
    ----------
    norm : {"scale", "rms", "layer"}
        ``scale * x / max(norm2(x), eps)``, ``x / sqrt(mean(x**2) + eps)``, or
        ``(x - mean(x)) / sqrt(var(x) + eps)``, where each row of shape (features,) is an x.
    eps : float, optional
        As in the function of that norm; None is the function's default. With ``norm="scale"`` rows shorter than eps
        (1e-12) stay shorter than ``scale``; with ``eps=0`` each row that is not all zeros gets that length.
    scale : float, optional
        The length that rows get with ``norm="scale"``, 1 if left out. The other norms have no such parameter.
    copy : bool
        If False, arrays of floats and sparse matrices are normalized in place, where they can be written.

    Attributes
    ----------
    n_features_in_ : int
        The number of features of the X that `fit` was given.
    feature_names_in_ : array of shape (features,)
        If X is a data frame that has names.

    Notes
    -----
    X of shape (samples, features) is taken as by any transformer of scikit-learn: arrays, lists, data frames of pandas
    and polars, and with ``array_api_dispatch`` arrays of other libraries, and then the result is of the same library.
    float16, bfloat16, float32 and float64 stay what they are, other numbers become float64. The result is within the
    bounds that the functions promise.

    NaN and Inf are refused, unless scikit-learn's ``assume_finite`` is set: rows that hold them become NaN throughout.

    There is no ``convention``, which says how the norm of a model rounds and where it has ``eps``. To have one, wrap
    the function: ``FunctionTransformer(anynorm.rms_norm, kw_args={"convention": "llama"})``.

    SciPy's sparse matrices and arrays are taken with "rms" and "scale" and come out as CSC if they are that, else as
    CSR. Elements are those of the same dense row: duplicates are added up first, zeros that are stored stay stored, and
    no others become stored, except in a row that is NaN. "layer" refuses them, as the mean would have to be taken from
    each zero.

    Raises
    ------
    TypeError
        If a parameter is of the wrong type, or X is a masked array, or sparse with ``norm="layer"``.
    ValueError
        If a parameter is out of its range, or X is not a table of finite numbers.

    Examples
    --------
    >>> import numpy
    >>> from anynorm.sklearn import Normalizer
    >>> Normalizer().fit_transform(numpy.asarray([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """

    def __init__(
        self, norm: str = "scale", *, eps: float | None = None, scale: float | None = None, copy: bool = True
    ) -> None:
        self.norm = norm
        self.eps = eps
        self.scale = scale
        self.copy = copy

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and X; nothing is learned.

        Parameters
        ----------
        X : array, data frame or sparse matrix of shape (samples, features)
        y : ignored

        Returns
        -------
        Normalizer
            This one.
        """
        self._check_parameters()
        self._validate(X, reset=True, ensure_all_finite=True)
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Normalize each row.

        Parameters
        ----------
        X : array, data frame or sparse matrix of shape (samples, features)
        copy : bool, optional
            In place of the parameter of that name.

        Returns
        -------
        array or sparse matrix of the shape of X
            Or what `set_output` asks for.
        """
        return self._normalize(X, self.copy if copy is None else copy, reset=False)

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Fit and transform, looking at X once.

        Parameters
        ----------
        X : array, data frame or sparse matrix of shape (samples, features)
        y : ignored

        Returns
        -------
        array or sparse matrix of the shape of X
            As from `transform`.
        """
        return self._normalize(X, self.copy, reset=True)

    def _normalize(self, X: Any, copy: bool, reset: bool) -> Any:
        parameters = self._check_parameters()
        is_sparse = scipy.sparse.issparse(X)
        copy_first = is_sparse and copy and X.dtype.name in _DTYPES  # others are copied as they become float64
        x = self._validate(X, reset=reset, ensure_all_finite=False, force_writeable=not copy, copy=copy_first)
        if scipy.sparse.issparse(x):
            self._require_finite(x.data)
            x = x if x.dtype.name in _DTYPES else x.astype(numpy.float64)
            return stored.normalize(x, parameters.rule, parameters.eps, parameters.scale)
        library = library_of(x)
        is_own = isinstance(X, numpy.ndarray) and isinstance(x, numpy.ndarray) and not numpy.may_share_memory(x, X)
        if dtype_name(x.dtype) not in (*_DTYPES, "bfloat16"):
            x, is_own = library.namespace.astype(x, library.namespace.float64), True
        out = x if (is_own or not copy) and _can_be_written(x) else None
        if out is not None:  # while it is what was given
            self._require_finite(x)
        scale = {} if parameters.scale is None else {"scale": parameters.scale}
        y = parameters.function(x, eps=parameters.eps, out=out, **scale)
        # A row with NaN or Inf is NaN throughout, so one column tells, and the pass over all of X is saved.
        if out is None and library.namespace.any(library.namespace.isnan(y[:, 0])):
            self._require_finite(x)
        return y

    def _validate(self, X: Any, reset: bool, **options: Any) -> Any:
        """X as scikit-learn makes an array or a sparse matrix of it."""
        if isinstance(X, numpy.ma.MaskedArray):  # of which scikit-learn would drop the mask
            raise TypeError(not_an_array("X", X))
        if self.norm == "layer" and scipy.sparse.issparse(X):
            must = 'be dense with norm="layer", for centring would make every zero of a sparse matrix nonzero'
            raise TypeError(sentence("X", must, describe(X), "pass X.toarray(), or take another norm"))
        x = validate_data(self, X, reset=reset, accept_sparse=self.norm != "layer" and ["csr", "csc"], **options)
        self._require_same_place(x, reset)
        return x

    def _require_same_place(self, x: Any, reset: bool) -> None:
        """Under array_api_dispatch, that x is of the library that `fit` was given, as scikit-learn wants it."""
        place = None
        if get_config()["array_api_dispatch"]:
            place = ("numpy", "cpu") if scipy.sparse.issparse(x) else (library_of(x).name, str(x.device))
        if reset:
            self._place = place
            return
        fitted = getattr(self, "_place", None)
        if place and fitted and place != fitted:
            must = f"use the same namespace and the same device as X of fit(), {' on '.join(fitted)}"
            do = f"move it there, or fit the {type(self).__name__} again"
            raise ValueError(sentence(f"X of {type(self).__name__}.transform()", must, " on ".join(place), do))

    def _require_finite(self, x: Any) -> None:
        assert_all_finite(x, estimator_name=type(self).__name__, input_name="X")

    def _check_parameters(self) -> _Parameters:
        """The parameters, of which scikit-learn wants nothing checked before `fit`."""
        if not isinstance(self.norm, str) or self.norm not in _RULES:
            do = "pass 'scale' for unit vectors" if self.norm == "l2" else "pass one of these"
            raise ValueError(sentence("norm", "be 'scale', 'rms' or 'layer'", describe(self.norm), do))
        if self.scale is not None and self.norm != "scale":
            do = f"leave it out, or pass norm='scale' in place of '{self.norm}'"
            raise ValueError(sentence("scale", "be None with any norm but 'scale'", describe(self.scale), do))
        if not isinstance(self.copy, (bool, numpy.bool)):
            do = "pass False to have arrays normalized in place"
            raise TypeError(sentence("copy", "be True or False", describe(self.copy), do))
        function: Any = _FUNCTIONS[self.norm]
        eps = function.__kwdefaults__["eps"] if self.eps is None else check_number("eps", self.eps, least=0.0)
        scale = None if self.scale is None else check_number("scale", self.scale)
        return _Parameters(function, _RULES[self.norm], eps, scale)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.norm != "layer"
        tags.transformer_tags.preserves_dtype = list(reversed(_DTYPES))
        tags.requires_fit = False
        tags.array_api_support = True
        return tags


def _can_be_written(x: Any) -> bool:
    """Whether an array can hold the result in place of what it holds."""
    library = library_of(x)
    if not library.writable:
        return False
    try:
        require_writable("X", x, library.memory)
    except ValueError:
        return False
    return True
