"""Files of one format made into those of another."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file

from anynorm import cli
from anynorm._files import Job
from anynorm._files.formats import raw, targets
from anynorm._files.formats import zarr as zarr_files

JOB = Job("layer_norm", None, None, (-1,), 1e-5)
SUFFIXES = (".npy", ".safetensors", ".zarr", ".parquet")
DATA = Path(__file__).parent / "data"


def in_small_parts(monkeypatch):
    """Blocks of a few rows, which neither chunks nor row groups begin with; those of Zarr cut rows."""
    monkeypatch.setattr(zarr_files, "_BLOCK_NBYTES", 200)
    monkeypatch.setattr(targets, "_CHUNK_NBYTES", 100)
    monkeypatch.setattr(targets, "_GROUP_NBYTES", 250)
    monkeypatch.setattr(raw, "_TURNED_NBYTES", 150)


def lists(x):
    value = pa.from_numpy_dtype(x.dtype)
    if x.ndim == 2:
        return pa.array(list(x), pa.list_(value))
    kind = pa.fixed_shape_tensor(value, x.shape[1:])
    return pa.ExtensionArray.from_storage(kind, pa.array([row.reshape(-1) for row in x], kind.storage_type))


def save(suffix, x):
    """A file x of this format, with parts that no block begins with."""
    if suffix == ".npy":
        np.save("x.npy", x)
    elif suffix == ".safetensors":
        save_file({"e": x}, "x.safetensors")
    elif suffix == ".parquet":
        pq.write_table(pa.table({"e": lists(x)}), "x.parquet", row_group_size=7)
    else:
        zarr.create_array("x.zarr", data=x, chunks=tuple(min(4, length) for length in x.shape))


def load(suffix):
    """The array of the file y, and what it is called there."""
    if suffix == ".npy":
        return np.load("y.npy"), ""
    if suffix == ".safetensors":
        with safe_open("y.safetensors", "numpy") as file:
            (name,) = file.keys()
            return file.get_tensor(name), name
    if suffix == ".zarr":
        found = zarr.open("y.zarr", mode="r")
        if isinstance(found, zarr.Array):
            return found[...], ""
        ((name, array),) = found.members()
        return array[...], name
    table = pq.read_table("y.parquet")
    column = table.column(0).combine_chunks()
    if isinstance(column.type, pa.FixedShapeTensorType):
        return column.to_numpy_ndarray(), table.column_names[0]
    if pa.types.is_floating(column.type):
        return column.to_numpy(), table.column_names[0]
    assert pa.types.is_fixed_size_list(column.type)
    return column.flatten().to_numpy().reshape(-1, column.type.list_size), table.column_names[0]


def normalize(source, target, *options):
    return cli.main(["normalize", source, target, "--norm", "layer", *options])


PAIRS = [pair for pair in itertools.product(SUFFIXES, repeat=2) if pair[0] != pair[1]]
