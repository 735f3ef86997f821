"""Hypothesis settings, the strictest flags of array-api-strict, and the table of the largest errors seen."""

from pathlib import Path

import array_api_strict
import pytest
from hypothesis import settings

import anynorm
from anynorm._files import in_place, raw
from tests import tolerances
from tests.backends import HAS_NUMBA

# Compiling libraries make single examples slow, and shared machines make any deadline flaky.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


def pytest_configure(config):
    if not HAS_NUMBA:  # without which the modules that it compiles cannot be searched for examples
        kernels = Path(anynorm.__file__).parent / "_kernels" / "cpu" / "*.py"
        config.option.ignore_glob = [*(config.option.ignore_glob or []), str(kernels)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_blocks(monkeypatch):
    """Files are read and written in blocks of 64 bytes."""
    for module in (raw, in_place):
        monkeypatch.setattr(module, "BLOCK_NBYTES", 64)


@pytest.fixture(autouse=True, scope="session")
def strictest_flags():
    array_api_strict.set_array_api_strict_flags(
        boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
    )


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["seen"] = [(list(key), value) for key, value in tolerances.seen.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for key, value in getattr(node, "workeroutput", {}).get("seen", []):
        tolerances.seen[tuple(key)] = max(tolerances.seen.get(tuple(key), 0.0), value)


def pytest_terminal_summary(terminalreporter):
    if tolerances.seen:
        terminalreporter.section("largest error seen, in units of the last place")
        for line in tolerances.seen_table():
            terminalreporter.write_line(line)
