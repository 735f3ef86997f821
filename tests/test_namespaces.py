"""What a namespace must have, and what is said of one that lacks some of it."""

import re
import types
from pathlib import Path

import array_api_strict
import numpy as np
import pytest

import anynorm
from anynorm._libraries import library
from anynorm._libraries.library import NEEDED, REVISION
from tests.ducks import Duck, namespace_of

# It is part of the standard that these are there, where __array_namespace_info__ says so.
DTYPES = ("float16", "float64")


class Info:
    """What a namespace says of itself, of which only the dtypes are asked."""

    def __init__(self, *dtypes):
        self._dtypes = dtypes

    def dtypes(self, *, device=None, kind=None):
        return {name: getattr(np, name) for name in self._dtypes}


def duck_of(namespace):
    return type("Little", (Duck,), {"__array_namespace__": lambda self, api_version=None: namespace})


class Watched(types.SimpleNamespace):
    """A namespace that keeps the names that it was asked for."""

    def __getattribute__(self, name):
        called = super().__getattribute__("called")
        value = super().__getattribute__(name)
        called.add(name)
        return value


def test_nothing_else_is_called_and_all_of_it_is(monkeypatch):
    monkeypatch.setattr(library, "NEEDED", ())  # or each would be asked for, only to know that it is there
    called = set()
    for dtypes in (("float32",), ("float32", "float64")):
        names = {name: getattr(np, name, None) for name in (*NEEDED, *DTYPES)}
        little = Watched(
            called=called, __name__="little", **names | {"__array_namespace_info__": lambda found=dtypes: Info(*found)}
        )
        duck = duck_of(little)
        little.asarray = lambda values, dtype, duck=duck: duck(np.asarray(values, dtype))
        little.full = lambda shape, value, dtype, device, duck=duck: duck(np.full(shape, value, dtype))
        for dtype in dtypes:
            use_all(little, duck, dtype)
    assert called - {*DTYPES, "__name__", "__class__"} == {*NEEDED}


def use_all(namespace, duck, dtype):
    """Every norm, derivative and way of taking moments, along the last axes and the first."""
    x = np.random.default_rng(0).standard_normal((3, 130, 2)).astype(dtype)
    rows, weight = duck(x), duck(np.ones((130, 2), dtype))
    for norm in ("layer_norm", "rms_norm", "scale_norm"):
        given = () if norm == "scale_norm" else (weight,)
        y, pull = getattr(anynorm, f"{norm}_vjp")(rows, *given, axis=(1, 2))
        assert type(y) is duck
        assert type(pull(rows)[0]) is duck
        whole = anynorm.moments(rows[:, :7], axis=(1, 2)).merge(anynorm.moments(rows[:, 7:], axis=(1, 2)))
        by_given = getattr(anynorm, norm)(rows, *given, axis=(1, 2), moments=whole)
        assert np.allclose(by_given.values, y.values, atol=1e-5)
    for eps in (0.0, 1e250 if "float64" in namespace.__array_namespace_info__().dtypes() else 1e30):
        assert type(anynorm.scale_norm_vjp(rows, 2.0, eps=eps)[1](rows)[0]) is duck
    assert type(anynorm.add_rms_norm(rows, rows, axis=0, eps=0.0)[0]) is duck
    assert type(anynorm.layer_norm(rows, duck(x[:, 0, 0]), axis=0, weight_offset=1.0)) is duck
    assert anynorm.moments(rows[:0]).mean.shape == (0, 130, 1)
    assert type(anynorm.LayerNorm((130, 2), xp=namespace, dtype=getattr(np, dtype))(rows)) is duck
    written = anynorm.moments(x, axis=(1, 2)).to_dict()
    assert type(anynorm.Moments.from_dict(written, xp=namespace).mean) is duck


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_missing_is_told(name):
    """Each name is called, by a norm or by what makes parameters; and that it is not there is said."""
    namespace = namespace_of(array_api_strict, "little", {*NEEDED, *DTYPES} - {name})
    words = f"must come from a namespace that has {name}, which little lacks, got "
    with pytest.raises(TypeError, match=f"x {words}a tests Little"):
        anynorm.layer_norm(duck_of(namespace)(np.ones((2, 3))))
    with pytest.raises(TypeError, match=f"xp {words}"):
        anynorm.LayerNorm(3, xp=namespace)


def test_the_definition_names_nothing_else():
    text = "".join(path.read_text() for path in (Path(anynorm.__file__).parent / "_definition").glob("*.py"))
    called = {*re.findall(r"\bxp\.([a-z]\w*)", text)}
    assert "where" in called
    assert called <= {*NEEDED, *DTYPES}


def test_the_documentation_names_them():
    text = (Path(__file__).parents[1] / "docs" / "how_to" / "add_library.md").read_text()
    assert [name for name in NEEDED if f"`{name}`" not in text] == ["float32"]
    assert f"revision {REVISION} or newer" in " ".join(text.split())


def test_what_is_no_namespace_is_called_none():
    with pytest.raises(TypeError, match="xp must be an array namespace"):
        anynorm.LayerNorm(3, xp=np.random)
    with pytest.raises(TypeError, match="x must be an array"):
        anynorm.layer_norm(duck_of(np.random)(np.ones((2, 3))))


@pytest.fixture
def revision():
    before = array_api_strict.get_array_api_strict_flags()["api_version"]
    yield lambda version: array_api_strict.set_array_api_strict_flags(api_version=version)
    array_api_strict.set_array_api_strict_flags(api_version=before)


@pytest.mark.filterwarnings("ignore:.*(2021.12|2025.12)")
def test_the_least_revision(revision):
    x = array_api_strict.asarray([[1.0, 7.0]])
    for version in ("2021.12", "2022.12", "2023.12"):
        revision(version)
        must = f"must come from a namespace of revision {REVISION} of the array API standard or newer, not {version}"
        do = rf'; call array_api_strict.set_array_api_strict_flags\(api_version="{REVISION}"\)'
        with pytest.raises(TypeError, match=f"x {must}, got an? .*array.*{do}"):
            anynorm.rms_norm(x)
        with pytest.raises(TypeError, match=f"xp {must}"):
            anynorm.RMSNorm(2, xp=array_api_strict)
        old = namespace_of(array_api_strict, "old", __array_api_version__=version)
        with pytest.raises(TypeError, match=f"x {must}, got a tests Little; use a newer release"):
            anynorm.rms_norm(duck_of(old)(np.ones((2, 3))))
    for version in (REVISION, "2025.12"):
        revision(version)
        assert np.allclose(np.asarray(anynorm.rms_norm(x, eps=0.0)), [[0.2, 1.4]])
        assert anynorm.scale_norm_vjp(x)[1](x)[0].shape == (1, 2)
        assert anynorm.layer_norm_vjp(x)[1](x)[0].shape == (1, 2)
