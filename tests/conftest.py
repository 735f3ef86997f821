"""What runs (`--thorough`, `--backend-seed`), what workers share, and the table of the largest errors seen."""

import gc
import os
import random
import tempfile
from pathlib import Path

import array_api_strict
import pytest
from hypothesis import settings

import anynorm
from anynorm._files.formats import raw
from tests import backends, compiled, tolerances
from tests.backends import HAS_LLVMLITE
from tests.installed import SkipMissing

# Compiling libraries make single examples slow, and shared machines make any deadline flaky.
settings.register_profile("default", deadline=None, print_blob=True, max_examples=50)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=200)


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="run all: tests marked so, every backend, more examples")
    parser.addoption("--backend-seed", type=int, metavar="N", help="which backends' turn it is; random by default")
    parser.addoption("--installed", action="store_true", help="skip what needs libraries that are not installed")


def pytest_configure(config):
    if config.option.installed:
        config.option.doctest_ignore_import_errors = True
        config.pluginmanager.register(SkipMissing())
    if not HAS_LLVMLITE:  # without which the modules that import it cannot be searched for examples
        kernels = Path(anynorm.__file__).parent / "_kernels" / "cpu" / "*.py"
        config.option.ignore_glob = [*(config.option.ignore_glob or []), str(kernels)]
    if hasattr(config, "workerinput"):
        config.option.backend_seed = config.workerinput["backend_seed"]
    elif config.option.backend_seed is None:
        config.option.backend_seed = random.SystemRandom().randrange(1000)
    backends.turn = None if config.option.thorough else config.option.backend_seed
    settings.load_profile("thorough" if config.option.thorough else "default")
    # Millions of objects of torch and JAX live to the end: to look through them all a hundred times took 30 seconds.
    gc.set_threshold(20_000, 20, 100)
    if not hasattr(config, "workerinput"):
        share_a_folder(config)
    elif HAS_LLVMLITE:
        compiled.one_at_a_time()


def share_a_folder(config):
    """A new folder for this session, in which its workers, and the processes that tests start, find what is compiled.

    It ends with the session, so that no result hangs on an earlier one.
    """
    folder = tempfile.TemporaryDirectory(prefix="anynorm-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ[compiled.FOLDER] = folder.name
    os.environ.setdefault("ANYNORM_CACHE_DIR", str(Path(folder.name) / "anynorm"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder.name) / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["backend_seed"] = node.config.option.backend_seed


def pytest_report_header(config):
    if config.option.thorough:
        return "thorough: everything on every backend"
    return f"backends take turns: --backend-seed={config.option.backend_seed}; everything: --thorough"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.option.thorough:
        return
    kept, left = [], []
    for item in items:
        (kept if has_its_turn(item) and not item.get_closest_marker("thorough") else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def has_its_turn(item):
    """Whether a test for one backend is to run; where the rest of its parameters are others, it is another's turn."""
    parameters = getattr(item, "callspec", None)
    if parameters is None or "backend" not in parameters.params:
        return True
    place = sum(index for name, index in parameters.indices.items() if name != "backend")
    return backends.has_its_turn(parameters.params["backend"], f"{item.module.__name__}.{item.originalname}", place)


def pytest_collection_finish():
    # What has been imported by now lives to the end; collections of garbage need not look through it.
    gc.collect()
    gc.freeze()


@pytest.fixture
def cpu_kernels():
    """All calls go through the CPU kernels, and none takes the fast path."""
    with anynorm.use_kernel("cpu"):
        yield


@pytest.fixture
def no_helpers():
    """No thread helps before a test, and none that it has called after it."""
    from tests.crews import assert_helpers

    anynorm.set_threads(None)
    gc.collect()
    assert_helpers(0)
    yield
    anynorm.set_threads(None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_blocks(monkeypatch):
    """Files are read and written in blocks of 64 bytes."""
    monkeypatch.setattr(raw, "BLOCK_NBYTES", 64)


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
