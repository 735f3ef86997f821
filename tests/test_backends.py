"""Which backends a run of the tests takes: none is left out for good, and with --thorough none at all."""

import pytest

from tests import backends
from tests.backends import ALL, CPU_BACKENDS, TAKING_TURNS, TURNS

ALWAYS = [backend for backend in CPU_BACKENDS if backend.name not in TAKING_TURNS]


def turns(monkeypatch, seed):
    monkeypatch.setattr(backends, "turn", seed)


def test_names_are_those_of_backends():
    assert {backend.name for backend in CPU_BACKENDS} > TAKING_TURNS
    assert {backend.name.partition(",")[0].partition("-")[0] for backend in ALWAYS} == {"numpy", "torch"}


def turns_of(backend):
    """How many of 24 turns a backend is to have."""
    return 24 if backend in ALWAYS else {"jax": 1, "jax-x64": 1, "dask": 10}.get(backend.name, 4)


@pytest.mark.parametrize("seed", range(24))
def test_of_24_tests_in_a_row_each_backend_has_some(seed, monkeypatch):
    turns(monkeypatch, seed)
    for backend in CPU_BACKENDS:
        ran = [backends.has_its_turn(backend, "a test", place) for place in range(24)]
        assert sum(ran) == turns_of(backend)


def test_of_24_seeds_in_a_row_each_backend_has_some(monkeypatch):
    for backend in CPU_BACKENDS:
        ran = [turns(monkeypatch, seed) or backends.has_its_turn(backend, "a test", 0) for seed in range(988, 1012)]
        assert sum(ran) == turns_of(backend)


@pytest.mark.parametrize("dtype", ALL)
def test_a_test_over_several_has_one_that_takes_turns(dtype, monkeypatch):
    known = {backend.name for backend in CPU_BACKENDS if dtype in backend.dtypes} & TAKING_TURNS
    seen = set()
    for seed in range(len(TURNS)):
        turns(monkeypatch, seed)
        chosen = backends.some("a test", 0, dtype)
        assert [backend for backend in chosen if backend in ALWAYS] == ALWAYS
        (other,) = {backend.name for backend in chosen} & TAKING_TURNS
        seen.add(other)
    assert seen == known


def test_thorough_runs_all(monkeypatch):
    turns(monkeypatch, None)
    assert all(backends.has_its_turn(backend, "a test", 0) for backend in CPU_BACKENDS)
    assert backends.some("a test", 0, "float32") == [*CPU_BACKENDS]


def test_gpus_take_no_turns(monkeypatch):
    turns(monkeypatch, 0)
    assert all(backends.has_its_turn(one.values[0], "a test", 0) for one in backends.GPU_BACKENDS)
