"""The tests where some libraries are not installed (`pytest --installed`), as in CI for each extra by itself.

What a test imports may be missing, and the test is skipped. What the package imports may not: there it has to do
without, or to say what to install, and the test fails as ever.
"""

from pathlib import Path

import pytest

import anynorm

_TESTS = Path(__file__).parent
_OUTSIDE = (_TESTS, _TESTS.parent / "benchmarks")
_PACKAGE = Path(anynorm.__file__).parent
# Modules that are for one library, and import it first of all.
_OF_A_LIBRARY = [_PACKAGE / name for name in ("nnx.py", "sklearn.py", "torch.py")]


def missing(error: BaseException | None) -> str | None:
    """The package that a test imports and that is not installed, if that is what the error says."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    files = [Path(filename) for filename in _files_of(error) if not filename.startswith("<frozen importlib")]
    if files and (files[-1] in _OF_A_LIBRARY or any(folder in files[-1].parents for folder in _OUTSIDE)):
        return error.name
    return None


def _files_of(error: BaseException) -> list[str]:
    at, found = error.__traceback__, []
    while at is not None:
        found.append(at.tb_frame.f_code.co_filename)
        at = at.tb_next
    return found


class SkipMissing:
    """Skips each module, and each test, that imports what is not installed."""

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        report = yield
        error = report.call.excinfo.value if report.call.excinfo else None
        name = missing(error and error.__cause__)
        if name is not None:
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: needs {name}")
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self):
        try:
            return (yield)
        except ModuleNotFoundError as error:
            name = missing(error)
            if name is None:
                raise
            pytest.skip(f"needs {name}")
