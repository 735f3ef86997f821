"""Forcing a kernel: for a block, a function, or until the next call; in one thread and one task alone."""

import asyncio
import contextvars
import gc

import numpy as np
import pytest

import anynorm
from anynorm import _forced
from tests.backends import needs_llvmlite

X = np.ones((2, 4), np.float32)


def kernel():
    return anynorm.explain(X).kernel


@pytest.fixture(autouse=True)
def contexts_end():
    """Contexts of tasks and threads that have ended hold what was forced in them until they are collected."""
    yield
    gc.collect()


def test_a_use_kernel_that_is_kept_forces_nothing():
    before = count_forced()
    bare = anynorm.use_kernel("definition")
    assert count_forced() == before + 1
    none = anynorm.use_kernel(None)
    assert count_forced() == before
    with anynorm.use_kernel("definition") as _, bare:
        assert _forced.forced() == "definition"
    assert count_forced() == before
    assert (bare, none) != (None, None)  # both are kept until here


def count_forced():
    """How many names of kernels are held by some context or block; while any is, no call is repeated the fast path."""
    gc.collect()
    return len(_forced._alive)


@needs_llvmlite
def test_a_call_alone_forces_until_the_next():
    before = count_forced()

    def use():
        anynorm.use_kernel("definition")
        assert kernel() == "definition"
        with anynorm.use_kernel("cpu"):
            assert kernel() == "cpu"
            with anynorm.use_kernel(None):
                assert kernel() == "cpu"  # by itself
                anynorm.use_kernel("definition")  # until the block around it ends
                assert kernel() == "definition"
            assert kernel() == "cpu"
        assert kernel() == "definition"
        anynorm.use_kernel(None)
        assert kernel() == "cpu"
        anynorm.use_kernel("definition")

    contextvars.copy_context().run(use)
    assert kernel() == "cpu"
    assert count_forced() == before


@needs_llvmlite
def test_a_block_ends_what_it_began():
    before = count_forced()
    with pytest.raises(ZeroDivisionError), anynorm.use_kernel("definition"):
        raise ZeroDivisionError
    assert kernel() == "cpu"
    held = anynorm.use_kernel("definition")
    for _ in range(2):
        with held:
            assert kernel() == "definition"
        assert kernel() == "cpu"
    for _ in range(3):
        anynorm.use_kernel("definition")
    anynorm.use_kernel(None)
    del held
    assert count_forced() == before


@needs_llvmlite
def test_use_kernel_decorates_functions():
    @anynorm.use_kernel("definition")
    def decorated(x, *, again=0):
        """It says something."""
        return [kernel(), *(decorated(x, again=again - 1) if again else [])]

    assert kernel() == "cpu"
    assert decorated(X, again=1) == ["definition", "definition"]
    assert decorated.__doc__ == "It says something."
    assert kernel() == "cpu"

    def generator():
        yield kernel()

    async def coroutine():
        return kernel()

    for stops, got in (
        (generator, "a coroutine or a generator"),
        (coroutine, "a coroutine or a generator"),
        (3, "the int 3"),
    ):
        with pytest.raises(TypeError, match=f"function must be a plain function, got {got}"):
            anynorm.use_kernel("definition")(stops)
    assert kernel() == "cpu"


@needs_llvmlite
def test_a_generator_that_stops_within_a_block():
    def generator():
        with anynorm.use_kernel("definition"):
            yield kernel()
            yield kernel()

    assert list(generator()) == ["definition", "definition"]
    assert kernel() == "cpu"


@needs_llvmlite
def test_tasks_keep_to_themselves():
    async def task(name):
        anynorm.use_kernel(name)
        await asyncio.sleep(0)
        return kernel()

    async def both():
        return await asyncio.gather(task("definition"), task(None), task("definition"))

    assert asyncio.run(both()) == ["definition", "cpu", "definition"]
    assert kernel() == "cpu"
