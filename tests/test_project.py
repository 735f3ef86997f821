"""What CI runs: workflows, sessions and requirements agree with one another. No network is needed."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
NOXFILE = ROOT / ".github" / "noxfile.py"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Neither of the sdist nor of a wheel.
pytestmark = pytest.mark.skipif(not NOXFILE.exists(), reason="the sdist has no .github")


def sessions():
    """The noxfile's names, without nox."""
    nodes = ast.parse(NOXFILE.read_text()).body
    found = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            (decorator, *_) = node.decorator_list
            named = {one.arg: one.value.value for one in getattr(decorator, "keywords", ())}
            found[named.get("name", node.name)] = ast.unparse(node)
    return found


def of_noxfile(*names):
    """Functions and values of the noxfile, without nox."""
    source = NOXFILE.read_text()
    before = source[: source.index("nox.options.envdir")].replace("import nox\n", "")
    functions = source[source.index("def requirements") : source.index("def install")]
    scope = {"__file__": str(NOXFILE)}
    exec(before + functions, scope)
    return [scope[name] for name in names]


def requirement_name(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def test_workflows_start_sessions_that_there_are():
    import yaml

    (tests,) = of_noxfile("TESTS")
    there = {name for name in sessions() if name not in ("extra", "lowest")}
    there |= {f"{session}({name})" for session in ("extra", "lowest") for name in tests}
    started = set()
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            for step in job.get("steps", ()):
                assert re.search(r"@v\d[\d.]*$", step.get("uses", "@v1")), step
            matrix = job.get("strategy", {}).get("matrix", {})
            for choice in choices(matrix):
                line = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found, of=choice: of[found[1]], session_of(job))
                started.update(line.split())
    assert started == there


def choices(matrix):
    """Each choice of the values of a matrix, by name."""
    found = [{}]
    for name, values in matrix.items():
        if name != "include":
            found = [{**one, name: value} for one in found for value in values]
    return found


def session_of(job):
    return job.get("with", {}).get("session", "")


def test_each_extra_has_tests_or_a_reason_to_have_none():
    tests, without, files_of = of_noxfile("TESTS", "NO_TESTS", "files_of")
    assert sorted([*tests, *without]) == sorted(["none", *EXTRAS, *({"docs"} - set(EXTRAS))])
    for name, patterns in tests.items():
        for pattern in patterns.split():
            assert list((ROOT / "tests").glob(f"test_{pattern}.py")), (name, pattern)
        assert all((ROOT / file).exists() for file in files_of(name))


def test_each_requirement_has_a_lowest_version():
    tests, lowest, requirements = of_noxfile("TESTS", "lowest", "requirements")
    for name in tests:
        for pinned, requirement in zip(lowest(name), requirements(name), strict=True):
            assert pinned == requirement.split(",")[0].replace(">=", "==")
    with pytest.raises(ValueError, match="no lowest version in 'anynorm"):
        lowest("all")


def test_groups_are_what_the_extra_test_has():
    groups = PROJECT["dependency-groups"]
    for name in ("harness", "lint", "types"):
        assert set(groups[name]) <= set(EXTRAS["test"])


def test_ci_runs_the_commands_of_the_sessions():
    found = sessions()
    run = (ROOT / ".ci" / "run").read_text()
    quoted = re.findall(r"session\.run\((.*)\)", found["lint"] + found["types"])
    commands = [" ".join(re.findall(r"'([^']*)'", arguments)) for arguments in quoted]
    assert len(commands) == 5
    assert [line for line in run.splitlines() if line.startswith(("ruff", "mypy", "basedpyright"))] == commands


def test_what_is_released_links_to_one_repository():
    urls = PROJECT["project"]["urls"]
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= set(urls)
    repository = urls["Source"]
    assert urls["Documentation"] == f"{repository}#documentation"
    assert "\n## Documentation\n" in (ROOT / "README.md").read_text()
    for name in ("CHANGELOG.md", "CITATION.cff", ".github/SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml"):
        path = ROOT / name if (ROOT / name).exists() else ROOT / ".github" / name
        assert repository in path.read_text(), name
