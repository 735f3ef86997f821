"""How many processors a container grants, whatever its tree of control groups looks like."""

import math

import pytest

import anynorm
from anynorm import _processors
from anynorm._processors import granted

V2, V1 = "0::", "4:cpu,cpuacct:"
INF = math.inf


def tree(root, groups, files):
    """A file system below a folder: the control groups of this process, and what stands in them."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_bytes(groups.encode("latin-1"))
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def of_v1(quota, period="100000\n", group="cpu"):
    return {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": period}


TREES = {
    "v2 whole": (f"{V2}/\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2 a fraction": (f"{V2}/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "v2 another period": (f"{V2}/\n", {"cpu.max": "30000 20000\n"}, 1.5),
    "v2 max": (f"{V2}/\n", {"cpu.max": "max 100000\n"}, INF),
    "v2 own group": (f"{V2}/a/b\n", {"a/b/cpu.max": "100000 100000\n"}, 1),
    "v2 group around it": (f"{V2}/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
    "v2 the least": (f"{V2}/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
    "v2 the least within": (f"{V2}/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "300000 100000\n"}, 2),
    "v2 another's group": (f"{V2}/a\n", {"b/cpu.max": "100000 100000\n"}, INF),
    "v2 path from above": (f"{V2}/docker/0123\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2 path outside": (f"{V2}/../other\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2 colon in a name": (f"{V2}/a:b\n", {"a:b/cpu.max": "200000 100000\n"}, 2),
    "v1 whole": (f"{V1}/\n", of_v1("200000\n"), 2),
    "v1 a fraction": (f"{V1}/\n", of_v1("25000\n", "50000\n"), 0.5),
    "v1 none": (f"{V1}/\n", of_v1("-1\n"), INF),
    "v1 own group": (f"{V1}/a/b\n", of_v1("100000\n", group="cpu/a/b"), 1),
    "v1 group around it": (f"{V1}/a/b\n", of_v1("-1\n", group="cpu/a/b") | of_v1("300000\n", group="cpu/a"), 3),
    "v1 path from above": (f"{V1}/docker/0123\n", of_v1("200000\n"), 2),
    "v1 alone": ("3:cpu:/a\n", of_v1("200000\n", group="cpu/a"), 2),
    "v1 other order": ("3:cpuacct,cpu:/a\n", of_v1("200000\n", group="cpu/a"), 2),
    "v1 other controllers": ("3:cpuset:/a\n2:cpuacct:/\n", of_v1("200000\n", group="cpu/a"), INF),
    "v1 no period": (f"{V1}/\n", {"cpu/cpu.cfs_quota_us": "200000\n"}, INF),
    "both": (f"{V1}/a\n{V2}/\n", of_v1("200000\n", group="cpu/a"), 2),
    "no groups": ("", {"cpu.max": "100000 100000\n"}, INF),
    "no files": (f"{V2}/a\n{V1}/a\n", {}, INF),
    "no lines": ("\n\n:\n0\nwhat\n\xff\xfe:\0:\n", {"cpu.max": "100000 100000\n"}, INF),
    "a path that is none": (f"{V2}/a\0b\n", {"cpu.max": "200000 100000\n"}, 2),
    "no period": (f"{V2}/\n", {"cpu.max": "100000 0\n"}, INF),
    "no time": (f"{V2}/\n", {"cpu.max": "0 100000\n"}, INF),
    "nothing": (f"{V2}/\n", {"cpu.max": ""}, INF),
    "one word": (f"{V2}/\n", {"cpu.max": "100000\n"}, INF),
    "no numbers": (f"{V2}/\n", {"cpu.max": "1e5 ²\n"}, INF),
    "three words": (f"{V2}/\n", {"cpu.max": "100000 100000 100000\n"}, INF),
    "huge": (f"{V2}/\n", {"cpu.max": f"{'9' * 400} 1\n"}, INF),
}


@pytest.mark.parametrize("name", TREES)
def test_what_control_groups_grant(name, tmp_path):
    groups, files, expected = TREES[name]
    assert granted(str(tree(tmp_path, groups, files))) == expected


def test_a_system_without_control_groups(tmp_path):
    assert granted(str(tmp_path)) == INF


def test_a_file_that_is_a_folder(tmp_path):
    (tree(tmp_path, f"{V2}/\n", {}) / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert granted(str(tmp_path)) == INF


@pytest.mark.parametrize(
    ("quota", "seen", "threads"),
    [
        (INF, 4, 4), (5.0, 4, 4), (4.0, 4, 4), (3.01, 4, 4), (3.0, 4, 3), (2.99, 4, 3), (1.01, 4, 2), (1.0, 4, 1),
        (0.5, 4, 1), (0.01, 4, 1), (8.0, 1, 1),
    ],
)  # fmt: skip
def test_the_default_is_as_many_threads_as_processors(quota, seen, threads, monkeypatch):
    monkeypatch.delenv("ANYNORM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_processors, "granted", lambda: quota)
    monkeypatch.setattr(_processors.os, "sched_getaffinity", lambda process: set(range(seen)), raising=False)
    assert anynorm.get_threads() == threads


@pytest.mark.parametrize("variable", ["ANYNORM_THREADS", "OMP_NUM_THREADS"])
def test_who_asks_for_more_threads_than_are_granted_gets_them(variable, monkeypatch):
    monkeypatch.delenv("ANYNORM_THREADS", raising=False)
    monkeypatch.setattr(_processors, "granted", lambda: 1.0)
    monkeypatch.setenv(variable, "7")
    assert anynorm.get_threads() == 7
