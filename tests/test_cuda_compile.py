"""The CUDA source compiles for every card in question, and next to no register is spilled; NVRTC needs no GPU."""

import importlib.util
import re

import pytest

from anynorm._kernels.cuda import compile as compiling
from anynorm._kernels.cuda import run
from anynorm._kernels.cuda.device import Device
from anynorm._kernels.cuda.launch import settings_abreast
from anynorm._kernels.cuda.task import NOTHING, NUMBER, RULES, Choice, as_rows, fill

LAYER, RMS, SCALE = RULES.values()


def has_nvrtc() -> bool:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return False
    from cuda.bindings import nvrtc

    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_nvrtc(), reason="needs cuda-bindings and NVRTC, which compile the kernels")
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
# Each way through the source on some architecture: dtypes, rules, parameters, pairs, every number of held slots.
CHOICES = {
    "layer float32 1024": (1024, Choice("float32", LAYER, 2, 2, False, True, False)),
    "layer float32 4096": (4096, Choice("float32", LAYER, 2, 2, False, True, False)),
    "layer float32 16384": (16384, Choice("float32", LAYER, 2, 2, False, True, False)),
    "layer bfloat16 131072": (131072, Choice("bfloat16", LAYER, 1, 1, False, True, False)),
    "rms bfloat16 4096, sum": (4096, Choice("bfloat16", RMS, 1, NOTHING, True, True, True)),
    "rms float16 65536": (65536, Choice("float16", RMS, 0, NOTHING, False, True, False)),
    "layer float64 1000, sum": (1000, Choice("float64", LAYER, 3, 3, True, False, True)),
    "scale float32 300": (300, Choice("float32", SCALE, NUMBER, NOTHING, False, False, False)),
    "layer float32 4096, pairs": (4096, Choice("float32", LAYER, 2, 2, False, True, False, True)),
}  # fmt: skip
# Two architectures each, and all of them in turn.
CASES = [
    pytest.param(name, ARCHITECTURES[(i + j) % 4], id=f"{name}, {ARCHITECTURES[(i + j) % 4]}")
    for i, name in enumerate(CHOICES)
    for j in (0, 2)
]


def assert_nothing_much_is_spilled(choice, block, architecture):
    code, said = compiling.build((*compiling.options(choice, block, architecture), "--ptxas-options=-v"))
    assert code[:4] == b"\x7fELF"
    # But for two numbers of float64 at most, which only slots need that float32 will not do for.
    assert all(int(n) <= 16 for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", said))
    (registers,) = re.findall(r"Used (\d+) registers", said)
    assert int(registers) * block <= 65536


def started(features, choice, architecture):
    """What a kernel for contiguous rows is compiled for, and the threads of a block."""
    itemsize = {"float32": 4, "float64": 8}.get(choice.dtype, 2)
    rows = as_rows((64, features), [(features * itemsize, itemsize)] * 4, (1,), itemsize)
    has_clusters = architecture in ("sm_90", "sm_100")
    on = Device(architecture, choice.paired, has_clusters, (227 if has_clusters else 64) << 10)
    return run.started(rows, choice, fill(rows, [0] * 4), on)[:2]


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_it_compiles_and_spills_nothing_much(name, architecture):
    features, choice = CHOICES[name]
    assert_nothing_much_is_spilled(*started(features, choice, architecture), architecture)


@pytest.mark.parametrize("name", ["layer float32 4096", "layer float32 16384", "rms bfloat16 4096, sum"])
def test_slots_are_read_and_written_whole(name):
    features, choice = CHOICES[name]
    choice, block = started(features, choice, "sm_90")
    ptx, _ = compiling.build(compiling.options(choice, block, "compute_90"))
    stores = re.findall(rb"st\.global\S*", ptx)
    # One of each array is in a loop, for what cannot be applied in float32.
    assert [b"v4.b32" in one for one in stores] == [True] * ((choice.held + 1) * (1 + choice.added))
    loads = re.findall(rb"ld\.global\S*no_allocate\S*", ptx)
    assert all(b"v4.b32" in one for one in loads)
    assert len(loads) >= choice.held * (1 + choice.added)


# In registers, in registers to the last, and in shared memory.
@pytest.mark.parametrize(("features", "dtype", "architecture"), [
    (256, "bfloat16", "90"), (512, "float32", "80"), (512, "bfloat16", "90"),
])  # fmt: skip
def test_slots_across_rows_are_read_and_written_whole(features, dtype, architecture):
    itemsize, code = {"bfloat16": (2, 1), "float32": (4, 2)}[dtype]
    how = settings_abreast(features, itemsize, 227 << 10)
    row = as_rows((8, features, 64), [(64 * features * itemsize, 64 * itemsize, itemsize)] * 4, (1,), itemsize)
    choice = Choice(dtype, LAYER, code, code, False, False, False).started(how, row)
    assert_nothing_much_is_spilled(choice, how.block, f"sm_{architecture}")
    ptx, _ = compiling.build(compiling.options(choice, how.block, f"compute_{architecture}"))
    stores = re.findall(rb"st\.global\S*", ptx)
    slots = how.held * how.abreast
    # One more is in a loop, for what cannot be applied in float32.
    assert [b"v4" in one for one in stores] == [True] * (slots + 1)
    loads = re.findall(rb"cp\.async\.cg\S*" if how.in_shared else rb"ld\.global\S*v4\S*", ptx)
    assert len(loads) >= slots


def test_code_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path / "cache"))
    choice = Choice("float32", SCALE, NOTHING, NOTHING, False, True, False)
    first = compiling.compiled(choice, 128, "sm_90")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(compiling, "build", lambda given: pytest.fail("compiled once more"))
    assert compiling.compiled(choice, 128, "sm_90") == first
    with pytest.raises(pytest.fail.Exception):
        compiling.compiled(choice, 128, "sm_80")


def test_a_card_that_the_compiler_does_not_know_gets_ptx(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path))
    known = compiling._architectures()
    assert [compiling.target(f"sm_{one}") for one in known] == [f"sm_{one}" for one in known]
    newest = f"compute_{max(known)}"
    assert [compiling.target(one) for one in (f"sm_{max(known) + 1}", "sm_999")] == [newest] * 2
    code = compiling.compiled(Choice("float32", SCALE, NOTHING, NOTHING, False, True, False), 128, "sm_999")
    assert f".target sm_{max(known)}".encode() in code
    assert code.endswith(b"\0")  # as the driver wants it


def test_what_the_compiler_says_is_passed_on():
    with pytest.raises(RuntimeError, match=r"NVRTC could not compile the CUDA kernels.*error"):
        compiling.build(("--gpu-architecture=sm_90",))
