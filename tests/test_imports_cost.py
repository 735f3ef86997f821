"""What importing anynorm costs, and what it leaves alone."""

import re

import pytest

from anynorm._kernels.cpu import is_installed
from tests.backends import needs_compiled
from tests.processes import fresh
from tests.test_imports import COMPILED

HEAVY = [
    "torch", "jax", "cupy", "dask", "llvmlite", "sparse", "ndonnx", "array_api_strict", "ml_dtypes", "rich", "scipy",
    "sklearn", "pandas", "polars", "cuda",
]  # fmt: skip
# Of Python's own modules and required packages, what takes milliseconds and no norm needs.
SLOW = [
    "argparse", "array_api_compat", "asyncio", "concurrent.futures", "ctypes.util", "dataclasses", "difflib", "email",
    "importlib.metadata", "inspect", "json", "multiprocessing", "numpy.ma", "numpy.testing", "pathlib", "secrets",
    "socket", "subprocess", "tempfile", "unittest", "zipfile",
]  # fmt: skip


@pytest.mark.parametrize(
    "then",
    ["pass", "anynorm.LayerNorm(3)", "anynorm.explain(numpy.ones((2, 3), numpy.float32))", "anynorm.get_threads()"],
)
def test_no_heavy_import(then):
    loaded = fresh(f"import sys, numpy, anynorm\n{then}\nprint(*(m for m in {HEAVY} if m in sys.modules))")
    assert loaded == []


def loaded_by(code, before="import numpy", **environment):
    """The modules that code imports beyond those that are there before."""
    shown = "print(*sorted(set(sys.modules) - there))"
    return fresh(f"import sys\n{before}\nthere = set(sys.modules)\n{code}\n{shown}", **environment)


def test_import_is_quick():
    loaded = loaded_by("import anynorm", "import numpy, logging")  # which forks have to wait for, see _forks.py
    assert "anynorm._norms" in loaded
    rooms = [f"anynorm.{name}" for name in ("_bench", "_checkpoints", "_cli", "_files", *COMPILED)]
    assert set(loaded) & {*SLOW, *rooms} == set()


@needs_compiled
def test_a_kernel_on_disk_is_read_without_what_compiles_it(tmp_path):
    calls = """
import anynorm
for dtype in ("float32", "float64"):
    anynorm.layer_norm(numpy.ones((2, 30), dtype))
"""
    there = "import numpy, logging, llvmlite.binding"
    environment = {"ANYNORM_CACHE_DIR": str(tmp_path), "ANYNORM_KERNEL": "cpu", "ANYNORM_INTERPRET": ""}
    tracing = "anynorm._kernels.cpu.language.tracing", "anynorm._kernels.cpu.kernels.rows"
    assert set(tracing) <= set(loaded_by(calls, there, **environment))
    loaded = loaded_by(calls, there, **environment)
    assert "anynorm._kernels.cpu.compiler.machine_code" in loaded
    assert set(loaded) & {*HEAVY, *SLOW} == set()
    rooms = re.compile(r"anynorm\._kernels\.cpu\.(language|kernels)\.(\w+)")
    assert {found[2] for one in loaded if (found := rooms.match(one))} == {"dtypes", "task"}


@pytest.mark.parametrize("names", [["cuda.py"], ["cuda/__init__.py", "cuda/bindings.py"]])
def test_a_script_that_is_named_as_a_package_of_nvidia_runs_once(names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("import anynorm, numpy\nprint(anynorm.__name__, anynorm.rms_norm(numpy.zeros(1)))")
    printed = fresh(
        f"import sys, runpy\nsys.path.insert(0, {str(tmp_path)!r})\nrunpy.run_path({str(tmp_path / names[0])!r})"
    )
    assert printed == ["anynorm", "[0.]"]


@pytest.mark.parametrize(
    ("module", "is_there"),
    [
        ("json.decoder", True),
        ("json.none", False),
        ("math.none", False),
        ("nosuch.none", False),
        ("json", True),
        ("nosuch", False),
    ],
)
def test_a_module_is_found_where_it_is(module, is_there):
    assert is_installed(module) == is_there


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm"])
def test_the_definition_needs_no_heavy_import(norm):
    # The first call of a compiled kernel brings the compiler, so it is kept away from this one.
    then = f"anynorm.{norm}(numpy.ones((2, 3), numpy.float32))\nprint(*(m for m in {HEAVY} if m in sys.modules))"
    assert fresh(f"import sys, numpy, anynorm\n{then}", ANYNORM_KERNEL="definition") == []


@needs_compiled
def test_the_first_calls_of_kernels_import_the_compiler_and_no_more():
    calls = "x = numpy.ones((2, 3), numpy.float32); anynorm.layer_norm_vjp(x)[1](x); anynorm.moments(x)"
    then = f"{calls}\nprint(*(m for m in {[*HEAVY, 'numba']} if m in sys.modules))"
    assert fresh(f"import sys, numpy, anynorm\n{then}", ANYNORM_KERNEL="cpu") == ["llvmlite"]


def test_works_without_the_optional_packages():
    blocked = "\n".join(
        [
            "import sys, importlib.abc",
            "class Block(importlib.abc.MetaPathFinder):",
            "    def find_spec(self, name, path=None, target=None):",
            f"        if name.split('.')[0] in {HEAVY}: raise ModuleNotFoundError(name)",
            "sys.meta_path.insert(0, Block())",
            "import numpy, anynorm",
            "x = numpy.arange(6.0).reshape(2, 3)",
            "for norm in (anynorm.layer_norm, anynorm.rms_norm, anynorm.scale_norm): norm(x)",
            "print(anynorm.layer_norm(x.astype(numpy.float16)).dtype)",
        ]
    )
    assert fresh(blocked) == ["float16"]
