"""`pytest --installed` skips for what a test imports, and never for what the package does."""

from pathlib import Path

import pytest

import anynorm
from tests.installed import missing

PACKAGE = Path(anynorm.__file__).parent
TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (TESTS / "test_some.py", "no_such_package"),
        (TESTS.parent / "benchmarks" / "some.py", "no_such_package"),
        (PACKAGE / "torch.py", "no_such_package"),
        (PACKAGE / "_norms.py", None),
        (PACKAGE / "_files" / "torch.py", None),
    ],
    ids=str,
)
def test_who_imports_it_tells(path, name):
    with pytest.raises(ModuleNotFoundError) as raised:
        exec(compile("import no_such_package", str(path), "exec"))
    assert missing(raised.value) == name


def test_other_errors_are_errors():
    with pytest.raises(ImportError) as raised:
        exec(compile("from anynorm import no_such_name", str(TESTS / "test_some.py"), "exec"))
    assert missing(raised.value) is None
    assert missing(None) is None
