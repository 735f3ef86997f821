"""The pages in docs/: each block of Python or bash runs, and each public name has its page in the reference.

Blocks of a page run in order, in one namespace, in an empty folder. What is written as ``shell`` is shown alone: it
installs packages, or takes another machine.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

import pytest

from tests.backends import needs_cupy

sybil = pytest.importorskip("sybil", reason="needs sybil, which runs blocks of code in text")

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
ON_GPU = [page for page in PAGES if "no_gpu" in page.read_text()]


def run_bash(example):
    # Commands are those of the Python that runs the tests, be its environment activated or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", example.parsed]
    # Without the kernels, as each command would wait for the compiler.
    environment = {**os.environ, "PATH": path, "ANYNORM_KERNEL": "definition"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{example.path}, line {example.line}: {ran.stderr}"


def run_blocks(page, no_gpu):
    """Run the blocks of a page; how many there were, and how many that wait for a GPU."""
    from sybil.parsers import myst

    parsers = [myst.SkipParser(), myst.PythonCodeBlockParser(), myst.CodeBlockParser("bash", run_bash)]
    document = sybil.Sybil(parsers).parse(page)
    document.namespace["no_gpu"] = no_gpu
    ran = waiting = 0
    for example in document.examples():
        try:
            example.evaluate()
            ran += 1
        except SkipTest:
            waiting += 1
        except ModuleNotFoundError as missing:
            if missing.name.startswith("anynorm"):
                raise
            pytest.skip(f"needs {missing.name}")
    return ran, waiting


def named(page):
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran, waiting = run_blocks(page, no_gpu=True)
    blocks = len(re.findall(r"^```(?:python|bash)$", page.read_text(), re.MULTILINE))
    skipped = len(re.findall(r"^% skip: next", page.read_text(), re.MULTILINE))
    assert (ran, waiting) == (blocks, skipped)


@pytest.mark.gpu
@needs_cupy
@pytest.mark.parametrize("page", ON_GPU, ids=named)
def test_every_block_runs_on_a_gpu(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(page, no_gpu=False)[1] == 0


def test_a_block_that_fails_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```bash\ntrue\n```\n\n```python\nassert 1 + 1 == 3\n```\n")
    with pytest.raises(AssertionError):
        run_blocks(page, no_gpu=True)
    page.write_text("```bash\nfalse\ntrue\n```\n")
    with pytest.raises(AssertionError):
        run_blocks(page, no_gpu=True)


@pytest.mark.parametrize(
    ("module", "page"),
    [
        ("anynorm", "anynorm.md"),
        ("anynorm.torch", "torch.md"),
        ("anynorm.nnx", "nnx.md"),
        ("anynorm.sklearn", "sklearn.md"),
    ],
)
def test_every_public_name_is_in_the_reference(module, page):
    lines = (DOCS / "reference" / page).read_text().splitlines()
    assert f".. currentmodule:: {module}" in lines
    listed = [line.strip() for line in lines if re.fullmatch(r" {3}\w+", line)]
    public = importlib.import_module(module).__all__
    assert sorted(listed) == sorted(public)


def test_every_command_is_in_the_reference():
    command = [sys.executable, "-m", "anynorm", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^ {4}(\w+) {2,}", said, re.MULTILINE)
    shown = re.findall(r"^```\{help-text\} ?(\w*)$", (DOCS / "reference" / "command_line.md").read_text(), re.MULTILINE)
    assert len(commands) >= 4
    assert sorted(shown) == sorted(["", *commands])
