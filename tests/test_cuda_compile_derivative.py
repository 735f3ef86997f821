"""The derivative's CUDA source compiles for every card in question, spills nothing, and moves whole slots."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from anynorm._kernels.cuda import compile as compiling
from anynorm._kernels.cuda.launch import SLOT_NBYTES
from anynorm._kernels.cuda.launch_derivative import SLOTS, derivative_settings
from anynorm._kernels.cuda.task import (
    ADD_BLOCKS,
    ADD_ROWS,
    DERIVE,
    NOTHING,
    NUMBER,
    RULES,
    STREAM,
    STREAM_AND_ADD,
    Choice,
)
from tests.test_cuda_compile import has_nvrtc

pytestmark = pytest.mark.skipif(not has_nvrtc(), reason="needs cuda-bindings and NVRTC, which compile the kernels")
LAYER, RMS, SCALE = RULES.values()
REGISTERS = 65536  # of a multiprocessor
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# Each way through the source on some architecture, those that need most registers on all.
CHOICES = {
    "stream layer float32 4096": (4096, STREAM_AND_ADD, Choice("float32", LAYER, 2, 2, False, True, False)),
    "stream layer bfloat16 4096": (4096, STREAM_AND_ADD, Choice("bfloat16", LAYER, 1, 1, False, True, False)),
    "stream rms float16 4096, dtotal": (4096, STREAM_AND_ADD, Choice("float16", RMS, 0, NOTHING, True, True, True)),
    "stream layer float32 1024": (1024, STREAM_AND_ADD, Choice("float32", LAYER, 2, 2, False, True, False)),
    "stream layer bfloat16 33": (33, STREAM_AND_ADD, Choice("bfloat16", LAYER, 2, 2, False, False, False)),
    "stream layer float32 2048, no sums": (2048, STREAM, Choice("float32", LAYER, 2, 2, False, True, False)),
    "stream scale float32 300": (300, STREAM_AND_ADD, Choice("float32", SCALE, NUMBER, NOTHING, False, False, False)),
    "again rms bfloat16 65536": (65536, DERIVE, Choice("bfloat16", RMS, 1, NOTHING, True, True, True)),
    "layer float64 4096": (4096, DERIVE, Choice("float64", LAYER, 3, 3, False, True, False)),
    "sums of rows": (1024, ADD_ROWS, Choice("float32", LAYER, 2, 2, False, True, False)),
    "sums of blocks": (1024, ADD_BLOCKS, Choice("float32", LAYER, 2, 2, False, True, False)),
}  # fmt: skip
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
CASES = [
    pytest.param(name, architecture, id=f"{name}, {architecture}")
    for i, name in enumerate(CHOICES)
    for j, architecture in enumerate(ARCHITECTURES)
    if i < 2 or i % 4 == j
]
CASES += [
    pytest.param("stream layer float32 65536", "sm_90", id="stream layer float32 65536, sm_90"),
    pytest.param("stream layer bfloat16 65536", "sm_90", id="stream layer bfloat16 65536, sm_90"),
]
CHOICES |= {
    "stream layer float32 65536": (65536, STREAM_AND_ADD, Choice("float32", LAYER, 2, 2, False, True, False)),
    "stream layer bfloat16 65536": (65536, STREAM_AND_ADD, Choice("bfloat16", LAYER, 1, 1, False, True, False)),
}


def build(name, architecture):
    """Machine code, what the compiler says, and the threads of a block."""
    features, step, choice = CHOICES[name]
    how = derivative_settings(features, ITEMSIZE[choice.dtype], most_cluster=16)
    block = {DERIVE: how.single_block, ADD_ROWS: 128, ADD_BLOCKS: 1024}.get(step, how.block)
    cluster = how.parts if step in (STREAM, STREAM_AND_ADD) else 1
    choice = choice._replace(step=step, threads=how.threads, held=how.held, cluster=cluster)
    code, said = compiling.build((*compiling.options(choice, block, architecture), "--ptxas-options=-v"))
    return code, said, block


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_it_compiles_and_spills_nothing(name, architecture):
    code, said, block = build(name, architecture)
    assert code[:4] == b"\x7fELF"
    assert [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", said)] == [0, 0, 0]
    (registers,) = re.findall(r"Used (\d+) registers", said)
    assert int(registers) * block <= REGISTERS
    if name.startswith("stream") and CHOICES[name][2].aligned:
        assert int(registers) <= 128


def disassembler():
    if found := shutil.which("nvdisasm"):
        return found
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else []
    return next((str(one) for folder in folders for one in Path(folder).glob("*/bin/nvdisasm")), None)


@pytest.mark.skipif(disassembler() is None, reason="needs nvdisasm, which shows the machine code")
@pytest.mark.parametrize("name", ["stream layer float32 4096", "stream layer bfloat16 4096"])
def test_slots_are_read_and_written_at_once_and_conversions_are_few(name, tmp_path):
    code, _, _ = build(name, "sm_90")
    path = tmp_path / "kernel.cubin"
    path.write_bytes(code)
    text = subprocess.run([disassembler(), "-c", path], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", text, re.MULTILINE)
    wide = {name: sum(bool(re.fullmatch(rf"{name}\.E(\.NA)?\.128", one)) for one in found) for name in ("LDG", "STG")}
    all_of = {name: sum(one.startswith(name) for one in found) for name in wide}
    # x and dy before the loop and in it, and the weights, two slots of each; the rest is the element to shift by.
    assert (wide["LDG"], all_of["LDG"]) == (10, 12)
    # dx, and the sums of two features at a time.
    elements = SLOTS * SLOT_NBYTES // ITEMSIZE[CHOICES[name][2].dtype]
    assert wide["STG"] == all_of["STG"] == 2 + elements
    # Each element of x, dy, the weight and dx once; the shift before the loop and in it.
    assert sum(one.startswith("F2F.") for one in found) <= 4 * elements + 2
