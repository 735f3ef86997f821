"""The table of kernels: explained, missing, and refusing."""

import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm import _choose, _explain, _forced
from anynorm._kernels import cpu
from tests.backends import CPU_BACKENDS, HAS_LLVMLITE, needs_compiled, needs_llvmlite
from tests.processes import in_threads

X = np.ones((2, 4), np.float32)


def nothing(given):
    """Says nothing against a call or its derivative, and makes nothing of either."""


def refuse(given):
    return "it is a test"


def never():
    return _choose.Kernel("never", "refuses all", lambda: None, refuse, nothing, refuse, nothing)


def absent():
    return _choose.Kernel("absent", "not there", lambda: "pip install it", nothing, nothing, nothing, nothing)


def with_kernels(monkeypatch, *kernels):
    for module in (_choose, _explain):
        monkeypatch.setattr(module, "KERNELS", (*kernels, *_choose.KERNELS[-1:]))


@needs_llvmlite
def test_explain_names_the_kernel():
    explained = anynorm.explain(X, norm="rms_norm")
    assert explained.kernel == "cpu"
    assert list(explained.refused) == ["cuda", "blocks", "pieces", "xla"]
    assert str(explained).splitlines()[0] == "cpu runs this call"
    assert anynorm.explain(X, 2.0, norm="scale_norm").kernel == "cpu"
    assert anynorm.explain(X, residual=X, out=(X, X.copy())).kernel == "cpu"
    with anynorm.use_kernel("definition"):
        assert str(anynorm.explain(X)).splitlines()[0] == "definition runs this call"


def test_the_definition_refuses_nothing():
    for x in (X, X.astype(">f4"), X[:0], X.T):
        with anynorm.use_kernel("definition"):
            explained = anynorm.explain(x)
        assert explained.kernel == "definition"
        assert "definition" not in explained.refused


@pytest.mark.parametrize("backend", [b for b in CPU_BACKENDS if b.name.startswith(("numpy", "torch"))], ids=str)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm"])
def test_the_backends_of_these_tests_run_what_their_names_say(norm, backend):
    with backend.context():
        kernel = anynorm.explain(backend.make(X), norm=norm).kernel
    assert kernel == ("cpu" if HAS_LLVMLITE and "definition" not in backend.name else "definition")


def test_explain_checks_the_arguments():
    with pytest.raises(ValueError, match="weight must have the shape"):
        anynorm.explain(X, np.ones(3))


def test_a_kernel_that_refuses_or_is_missing_is_passed_over(monkeypatch):
    with_kernels(monkeypatch, never(), absent())
    explained = anynorm.explain(X)
    assert explained.kernel == "definition"
    assert explained.refused == {"never": "it is a test", "absent": "pip install it"}
    assert str(explained).splitlines() == [
        "definition runs this call",
        "never does not: it is a test",
        "absent does not: pip install it",
    ]
    y, pullback = anynorm.layer_norm_vjp(X)
    assert [one.shape for one in (anynorm.layer_norm(X), y, pullback(X)[0])] == [X.shape] * 3


@pytest.fixture
def asked_again():
    """Whether the compiler will do is asked once in a process; after this test it is asked anew."""
    yield
    cpu._lacking.cache_clear()


@needs_compiled
@pytest.mark.usefixtures("asked_again")
def test_a_compiler_that_cannot_be_imported_is_one_that_is_missing(monkeypatch):
    x = np.linspace(0, 1, 8).reshape(2, 4)
    _, pullback = anynorm.layer_norm_vjp(x)
    runs = [lambda: anynorm.layer_norm(x, axis=0), lambda: pullback(x)[0], lambda: anynorm.moments(x).mean]
    for run in runs:
        with anynorm.use_kernel("definition"):
            expected = run()
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_MISSING", None)  # to have it put back
            patch.setitem(sys.modules, "llvmlite", None)
            cpu._lacking.cache_clear()
            np.testing.assert_array_equal(run(), expected)
            assert "llvmlite cannot be imported (" in anynorm.explain(x).refused["cpu"]
            with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="llvmlite cannot be imported"):
                run()


@needs_compiled
@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize("source", ["raise RuntimeError('for another Python')", "1 +", "", "__version__ = '0.1'"])
def test_a_compiler_that_is_damaged_is_one_that_is_missing(source, monkeypatch, tmp_path):
    (tmp_path / "llvmlite").mkdir()
    (tmp_path / "llvmlite" / "__init__.py").write_text(source)
    (tmp_path / "llvmlite" / "binding.py").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "llvmlite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cpu, "_MISSING", None)
    cpu._lacking.cache_clear()
    assert not cpu.has_compiler()
    assert "llvmlite cannot be imported (" in cpu.missing()
    for name in [name for name in sys.modules if name.partition(".")[0] == "llvmlite"]:
        monkeypatch.delitem(sys.modules, name)


@needs_compiled
@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize(("version", "is_too_old"), [((15, 0, 7), True), ((19, 1, 7), True), ((20, 1, 8), False)])
def test_a_compiler_that_is_too_old_is_one_that_is_missing(version, is_too_old, monkeypatch):
    from llvmlite import binding

    monkeypatch.setattr(cpu, "_MISSING", None)
    monkeypatch.setattr(binding, "llvm_version_info", version)
    cpu._lacking.cache_clear()
    assert cpu.has_compiler() != is_too_old
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"]["cpu"]
    assert (cpu.missing() or "").endswith(f" is too old; pip install '{requirement}'") == is_too_old


@needs_compiled
@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize("lacks", [None, "f16c", "fma"])
def test_a_processor_that_lacks_instructions(lacks, monkeypatch):
    from llvmlite import binding

    features = dict.fromkeys(("avx2", "f16c", "fma"), True) | {lacks: False}
    monkeypatch.setattr(cpu, "_MISSING", None)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    cpu._lacking.cache_clear()
    assert cpu.has_compiler() == (lacks is None)
    assert (cpu.missing() or "").startswith("this processor has no instructions") == (lacks is not None)


def test_a_forced_kernel_that_refuses_raises(monkeypatch):
    with_kernels(monkeypatch, never(), absent())
    with anynorm.use_kernel("never"), pytest.raises(RuntimeError, match=r"never was asked for .* it is a test"):
        anynorm.layer_norm(X)
    with anynorm.use_kernel("absent"), pytest.raises(RuntimeError, match="pip install it"):
        anynorm.rms_norm(X)
    with anynorm.use_kernel("definition"):
        y, pullback = anynorm.layer_norm_vjp(X)
        assert y.shape == X.shape
    for name, reason in (("never", "it is a test"), ("absent", "pip install it")):
        with anynorm.use_kernel(name), pytest.raises(RuntimeError, match=reason):
            pullback(X)
    monkeypatch.setattr(_forced, "_forced_everywhere", "never")
    with pytest.raises(RuntimeError, match="it is a test"):
        anynorm.layer_norm(X)
    with anynorm.use_kernel("definition"):
        assert anynorm.layer_norm(X).shape == X.shape


def test_an_unknown_kernel_is_an_error(monkeypatch):
    names = "must be one of the kernels cpu, cuda, blocks, pieces, xla, definition, got the str 'fast'"
    with pytest.raises(ValueError, match=f"name {names}"):
        anynorm.use_kernel("fast")
    monkeypatch.setattr(_forced, "_forced_everywhere", "fast")
    with pytest.raises(ValueError, match=f"the environment variable ANYNORM_KERNEL {names}"):
        anynorm.layer_norm(X)


def test_forcing_stays_in_its_thread(monkeypatch):
    with_kernels(monkeypatch, never())
    results = []
    with anynorm.use_kernel("never"):
        thread = threading.Thread(target=lambda: results.append(anynorm.layer_norm(X)))
        thread.start()
        thread.join()
    assert results[0].shape == X.shape


def test_many_threads_at_once_go_through_the_definition():
    rows = np.random.default_rng(0).standard_normal((8, 200, 1000)).astype(np.float32)
    with anynorm.use_kernel("definition"):
        expected = [anynorm.layer_norm(x) for x in rows]
    wrong = []

    def work(index):
        with anynorm.use_kernel("definition"):
            for _ in range(5):
                if not np.array_equal(anynorm.layer_norm(rows[index]), expected[index]):
                    wrong.append(index)

    in_threads(work, range(8))
    assert wrong == []
