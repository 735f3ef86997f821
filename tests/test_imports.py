"""Which module of the package imports which, and what the package is called by."""

import ast
import re

import numpy
import pytest

import anynorm
from tests.processes import PACKAGE


def test_every_public_name_is_listed_and_there():
    public = {name for name in vars(anynorm) if not name.startswith("_")} - {
        "cli",
        "modules",
        "nnx",
        "sklearn",
        "torch",
    }
    assert public == set(anynorm.__all__)
    for name in set(anynorm.__all__) - {"CONVENTIONS"}:  # a mapping has none of its own; see Convention
        assert getattr(anynorm, name).__doc__


# Each module may import those after it; see docs/source_map.md.
ORDER = [
    "__main__", "cli", "_cli.bench", "_cli.tables",
    "_bench.choice", "_bench.plot", "_bench.compare", "_bench.report", "_bench.plan", "_bench.runner",
    "_bench.worker", "_bench.rivals",
    "_bench.streaming", "_bench.inputs", "_bench.exact", "_bench.memory", "_bench.machine", "_bench.cases", "_bench",
    "_cli.completion", "_cli.warm", "_cli.info", "_cli.normalize", "_cli.show", "_cli.results", "_cli.moments",
    "_cli.places", "_cli.options", "_cli.parser", "_cli.words", "_cli.terminal", "_cli",
    "_load_norms", "_checkpoints.made", "_checkpoints.places", "_checkpoints.onnx", "_checkpoints.gguf",
    "_checkpoints.keras", "_checkpoints.families", "_checkpoints.names", "_checkpoints.facts", "_checkpoints.stored",
    "_checkpoints", "_files", "_files.outcome", "_files.shown",
    "_files.formats", "_files.formats.npy", "_files.formats.targets", "_files.formats.safetensors",
    "_files.formats.raw", "_files.formats.parquet", "_files.formats.columns", "_files.formats.lists",
    "_files.formats.zarr", "_files.passes", "_files.rows", "_files.pipeline", "_files.contents", "_files.sources",
    "_files.job", "_files.boxes", "_files.original", "_files.target", "_files.locks",
    "torch", "_torch.holding",
    "nnx", "_modules.nnx_forward", "modules", "_modules.state", "_modules.loading", "_modules", "sklearn",
    "_torch.convert", "_torch.hugging_face", "_torch.forward", "_torch.functions", "_torch.operators",
    "_torch.native",
    "_gradients", "_residual", "_portion_vjp", "_moments_vjp", "_norms",
    "_explain", "_use_kernel", "_choose", "_kernels", "_kernels.pieces_vjp", "_kernels.blocks_given",
    "_kernels.blocks_vjp", "_kernels.blocks",
    "_kernels.cuda.autograd", "_kernels.cuda.vjp", "_kernels.cuda.run", "_kernels.cuda.repeat", "_kernels.cuda",
    "_kernels.cuda.device", "_kernels.cuda.compile", "_kernels.cuda.task",
    "_kernels.cuda.launch_derivative", "_kernels.cuda.launch",
    "_kernels.cpu.launch.autograd", "_kernels.cpu.launch.autograd_given",
    "_kernels.autograd",
    "_kernels.cpu.launch.given_vjp", "_kernels.cpu.launch.groups_vjp",
    "_kernels.cpu.launch.turns_vjp", "_kernels.cpu.launch.vjp",
    "_kernels.cpu.launch.given",
    "_kernels.cpu.launch.mixed", "_kernels.cpu.launch.groups", "_kernels.cpu.launch.turns",
    "_kernels.cpu.launch.norm", "_kernels.cpu.launch.tasks",
    "_kernels.cpu.beforehand", "_kernels.cpu",
    "_kernels.cpu.fast_path.offers",
    "_kernels.cpu.fast_path.arrays", "_kernels.cpu.fast_path.tensors",
    "_kernels.cpu.fast_path.derivative", "_kernels.cpu.fast_path.moments", "_kernels.cpu.fast_path.functions",
    "_kernels.cpu.fast_path.program", "_kernels.cpu.fast_path.results", "_kernels.cpu.fast_path.own_rows",
    "_kernels.cpu.fast_path.arguments", "_kernels.cpu.fast_path.views",
    "_kernels.cpu.fast_path.record",
    "_kernels.cpu.fast_path.plans", "_kernels.cpu.fast_path.kept",
    "_kernels.cpu.threads.crew", "_kernels.cpu.threads.functions",
    "_kernels.cpu.threads.program", "_kernels.cpu.threads.memory",
    "_kernels.cpu.launch.layout", "_kernels.cpu.launch.machine", "_kernels.cpu.compiler.entries",
    "_kernels.cpu.compiler.machine_code", "_kernels.cpu.compiler.waiting",
    "_kernels.cpu.kernels.groups", "_kernels.cpu.kernels.group_task",
    "_kernels.cpu.kernels.given", "_kernels.cpu.kernels.derivative.turns", "_kernels.cpu.kernels.derivative.rows",
    "_kernels.cpu.kernels.derivative.row_steps", "_kernels.cpu.kernels.derivative.columns",
    "_kernels.cpu.kernels.derivative.column_steps", "_kernels.cpu.kernels.derivative.extreme_columns",
    "_kernels.cpu.kernels.derivative.block",
    "_kernels.cpu.kernels.derivative.portions", "_kernels.cpu.kernels.derivative.extreme",
    "_kernels.cpu.kernels.derivative.steps", "_kernels.cpu.kernels.side_by_side.columns",
    "_kernels.cpu.kernels.side_by_side.float64", "_kernels.cpu.kernels.side_by_side.given",
    "_kernels.cpu.kernels.finish", "_kernels.cpu.kernels.side_by_side.sums",
    "_kernels.cpu.kernels.side_by_side.block", "_kernels.cpu.kernels.moments",
    "_kernels.cpu.kernels.float64", "_kernels.cpu.kernels.pairs",
    "_kernels.cpu.kernels.units",
    "_kernels.cpu.kernels.rows", "_kernels.cpu.kernels.held", "_kernels.cpu.kernels.turns",
    "_kernels.cpu.kernels.reduce",
    "_kernels.cpu.kernels.parameters", "_kernels.cpu.kernels.factors", "_kernels.cpu.kernels.chunks",
    "_kernels.cpu.kernels.scatter", "_kernels.cpu.kernels.streaming", "_kernels.cpu.kernels.values",
    "_kernels.cpu.kernels.task",
    "_kernels.cpu.language.calls",
    "_kernels.cpu.language.flow", "_kernels.cpu.language.arithmetic", "_kernels.cpu.language.memory",
    "_kernels.cpu.language", "_kernels.cpu.language.interpreted_memory",
    "_kernels.cpu.language.interpreted", "_kernels.cpu.language.compiled_memory",
    "_kernels.cpu.language.compiled", "_kernels.cpu.language.tracing", "_kernels.cpu.language.dtypes",
    "_kernels.cpu.kernels.derivative", "_kernels.cpu.kernels.side_by_side",
    "_kernels.cpu.kernels", "_kernels.cpu.launch", "_kernels.cpu.compiler", "_kernels.cpu.fast_path",
    "_kernels.cpu.threads", "_kernels.axes", "_kernels.xla",
    "_kernels.by_moments", "_kernels.definition_vjp", "_kernels.definition", "_kernels.sparse", "_kernels.stored",
    "_kernels.object_files", "_kernels.fast_paths",
    "_threads", "_forks", "_forced", "_profiled", "_by_convention", "_convention", "_models", "_check", "_parameters",
    "_totals", "_moments_gradient",
    "_moments", "_moments.inside", "_moments.value", "_moments.lazy", "_moments.equal", "_moments.joined",
    "_moments.made", "_moments.written", "_moments.moved", "_moments.properties", "_moments.blocks", "_moments.parts",
    "_arrays", "_overlap", "_libraries", "_libraries.library", "_libraries.cupy_arrays", "_libraries.numpy_arrays",
    "_libraries.torch_tensors", "_libraries.memory", "_definition", "_definition.derivative", "_definition.merging",
    "_definition.missing",
    "_definition.norms", "_definition.rounding", "_definition.corrected",
    "_definition.scaling", "_definition.counting", "_definition.pairs", "_definition.sums",
    "_torch.state", "_torch.pytrees", "_torch",
    "_tasks", "_lengths", "_pytrees", "_numbers", "_processors", "_wording", "_described", "_types",
]  # fmt: skip
# The compiler, and what it compiles; imported only when a kernel is not on disk.
COMPILED = [
    f"_kernels.cpu.{name}"
    for name in (
        "fast_path.program", "fast_path.arguments", "fast_path.views", "threads.program", "language.calls",
        "kernels.groups", "kernels.moments", "kernels.given", "kernels.finish", "kernels.derivative.rows",
        "kernels.derivative.turns",
        "kernels.derivative.row_steps", "kernels.derivative.columns", "kernels.derivative.column_steps",
        "kernels.derivative.block", "kernels.derivative.extreme_columns",
        "kernels.derivative.portions", "kernels.derivative.extreme", "kernels.derivative.steps",
        "kernels.side_by_side.columns", "kernels.side_by_side.float64", "kernels.side_by_side.sums",
        "kernels.side_by_side.given", "kernels.side_by_side.block", "kernels.float64", "kernels.pairs", "kernels.units",
        "kernels.rows", "kernels.held", "kernels.turns",
        "kernels.reduce", "kernels.parameters", "kernels.factors", "kernels.chunks", "kernels.scatter",
        "kernels.streaming", "kernels.values", "language.flow", "language.arithmetic", "language.memory",
        "language.interpreted", "language.interpreted_memory", "language.compiled", "language.compiled_memory",
        "language.tracing", "compiler.machine_code",
    )
]  # fmt: skip


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported_by_string(node):
    """The modules of the package that a call of import_module or __import__ may import, without the package's name."""
    called = node.func
    if getattr(called, "attr", getattr(called, "id", None)) not in ("import_module", "__import__") or not node.args:
        return
    parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else node.args[:1]
    # Of an f-string only what it begins with is known.
    written = parts[0].value if isinstance(parts[0], ast.Constant) else ""
    if not written.startswith("anynorm"):
        return
    inside = written.removeprefix("anynorm").removeprefix(".")
    if len(parts) == 1:
        yield inside
    else:
        yield from (name for name in ORDER if name.startswith(inside))


def statements(tree):
    """What runs when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef):
            yield node
            yield from statements(node)


def imported_modules(path, nodes=ast.walk, by_string=False):
    """The modules of the package that a file imports, without the package's name; those ``by_string`` too."""
    for node in nodes(ast.parse(path.read_text())):
        if by_string and isinstance(node, ast.Call):
            yield from imported_by_string(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "anynorm":
            inside = node.module.removeprefix("anynorm").removeprefix(".")
            for alias in node.names:
                deeper = f"{inside}.{alias.name}".removeprefix(".")
                yield deeper if deeper in ORDER else inside


def test_the_map_of_the_source_has_each_file():
    text = (PACKAGE.parent / "docs" / "source_map.md").read_text()
    files = [path for kind in ("py", "cu", "cuh") for path in PACKAGE.rglob(f"*.{kind}")]
    assert len(files) > 100
    assert sorted({path.name for path in files if not re.search(rf"[`/]{path.name}`", text)}) == []


def test_imports_run_one_way():
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        for other in imported_modules(path, by_string=True) if name else ():
            assert ORDER.index(name) < ORDER.index(other), f"{name} imports {other}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import_module('anynorm._choose').choose", ["_choose"]),
        ("importlib.import_module('anynorm._kernels.cpu')", ["_kernels.cpu"]),
        ("__import__('anynorm._norms')", ["_norms"]),
        ("import_module(f'anynorm._cli.t{letter}bles')", ["_cli.tables", "_cli.terminal"]),
        ("import_module(f'{package}._choose')", []),
        ("import_module('torch')", []),
        ("import_module(name)", []),
        ("find('anynorm._choose')", []),
    ],
)
def test_imports_by_a_string_are_found(line, expected, tmp_path):
    (tmp_path / "some.py").write_text(line)
    assert list(imported_modules(tmp_path / "some.py", by_string=True)) == expected
    assert list(imported_modules(tmp_path / "some.py")) == []


def test_the_compiler_is_only_behind_the_kernels():
    for path in PACKAGE.rglob("*.py"):
        if module_name(path) not in COMPILED:
            assert not set(imported_modules(path, statements)) & set(COMPILED), f"{path.name} imports the compiler"


def test_one_version_number():
    from importlib import metadata

    assert metadata.version("anynorm") == anynorm.__version__


def test_numpy_is_new_enough():
    assert tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 1)


def test_what_is_missing_is_named_as_an_index_has_it():
    told = [path.name for path in PACKAGE.rglob("*.py") if "anynorm[" in path.read_text()]
    assert told == []  # no index has anynorm, nor its extras
