"""What importing anynorm costs, and what it leaves alone."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import anynorm

HEAVY = ["torch", "jax", "cupy", "dask", "numba", "sparse", "ndonnx", "array_api_strict", "ml_dtypes", "tqdm", "scipy"]
PACKAGE = Path(anynorm.__file__).parent


def fresh(code):
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    "then", ["pass", "anynorm.layer_norm(numpy.ones((2, 3), numpy.float32))", "anynorm.LayerNorm(3)"]
)
def test_no_heavy_import(then):
    loaded = fresh(f"import sys, numpy, anynorm\n{then}\nprint(*(m for m in {HEAVY} if m in sys.modules))")
    assert loaded == []


def test_every_public_name_is_listed_and_there():
    public = {name for name in vars(anynorm) if not name.startswith("_")} - {"cli", "modules", "torch"}
    assert public == set(anynorm.__all__)
    for name in anynorm.__all__:
        assert getattr(anynorm, name).__doc__


# Each module may import those after it; see "Layout" in the README.
ORDER = [
    "cli", "_files", "modules", "_norms", "_explain", "_choose", "_kernels", "_check", "_overlap", "_loading",
    "_libraries", "_definition", "_paired", "_moments", "_pairs", "_pytrees",
]  # fmt: skip


def test_imports_run_one_way():
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if inside == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if modules == ["anynorm"]:
                modules = [f"anynorm.{alias.name}" for alias in node.names]
            for module in modules:
                if module.startswith("anynorm."):
                    other = module.split(".")[1]
                    assert ORDER.index(inside) < ORDER.index(other), f"{path.name} imports {module}"


def test_one_version_number():
    from importlib import metadata

    assert metadata.version("anynorm") == anynorm.__version__


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


def test_numpy_is_new_enough():
    assert tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 1)
