"""The README: its commands, its code, what it says that a command prints, its figures and its links."""

import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import anynorm
from anynorm import cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
REPOSITORY = "/anynorm/anynorm"


def command_after(marker):
    """The command that .ci/run takes from the README."""
    (block,) = re.findall(rf"^<!-- {marker} command -->\n```bash\n(.*)\n```$", TEXT, re.MULTILINE)
    return block


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_each_block_of_python_runs():
    sybil = pytest.importorskip("sybil", reason="needs sybil, which runs blocks of code in text")
    for library in ("jax", "torch"):
        pytest.importorskip(library, reason=f"needs {library}")
    from sybil.parsers import myst

    document = sybil.Sybil([myst.PythonCodeBlockParser()]).parse(ROOT / "README.md")
    examples = list(document.examples())
    assert len(examples) == TEXT.count("```python") > 0
    for example in examples:
        example.evaluate()


def test_the_commands_install_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for marker, wanted in (("main", "cpu"), ("test", "test")):
        (named,) = re.findall(r'"\.\[(\w+)\]"', command_after(marker))
        assert named == wanted in extras


def test_what_the_first_command_prints(monkeypatch, capsys, tmp_path):
    if anynorm.explain(np.ones((1, 384), np.float32)).kernel != "cpu":
        pytest.skip("the README shows what the kernel cpu prints")
    arguments = shlex.split(command_after("main").rpartition(" && ")[2])
    assert arguments[:2] == ["anynorm", "normalize"]
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments[1:]) == 0
    printed = capsys.readouterr().err
    (shown,) = re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert without_times(printed) == without_times(shown)


def without_times(text):
    return re.sub(r" in [\d.]+ s$|; [\d.]+ s of the time to compile or load it$", "", text, flags=re.MULTILINE)


def test_the_figures_are_those_of_the_page_on_speed():
    there = (ROOT / "docs" / "speed.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ([\d., ]+) \| ([\d., ]+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 5
    for row in rows:
        assert f"| {' | '.join(row)} |" in there


def test_links_lead_somewhere_on_pypi_too():
    links = re.findall(r"\]\(([^)]+)\)", TEXT) + re.findall(r'(?:src|srcset)="([^"]+)"', TEXT)
    assert len(links) > 20
    for link in links:
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        found = re.fullmatch(rf"{REPOSITORY}/(?:blob/)?main/(.+)", parts.path)
        assert (found is not None) == (REPOSITORY in parts.path), link
        if found is None or (found[1].startswith(".github") and not (ROOT / ".github").exists()):
            continue  # of others; or the sdist, which has no .github
        assert (ROOT / found[1]).is_file(), link
