"""Columns of .parquet files: several at once, lists in structs, and numbers side by side; all else as it was."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import anynorm
from anynorm import cli
from tests.files import assert_few_ulp, assert_refused, assert_same_bits, deviates, written_by_arrow

pytestmark = pytest.mark.usefixtures("folder")

DATA = Path(__file__).parent / "data"


def normalize(*options, target="y.parquet"):
    return cli.main(["normalize", "x.parquet", *([target] if target else []), "--norm", "layer", *options])


def rows_of(column):
    column = column.combine_chunks()
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    return np.stack(column.drop_null().to_numpy(zero_copy_only=False))


def saved(columns, **options):
    table = pa.table(columns).replace_schema_metadata({"kept": "yes"})
    written_by_arrow(table, "x.parquet", row_group_size=7, **options)
    return pq.read_table("x.parquet")


def assert_others_kept(new, old, *columns):
    assert new.drop_columns(columns).equals(old.drop_columns(columns), check_metadata=True)
    assert [new.schema.field(name).nullable for name in columns] == [
        old.schema.field(name).nullable for name in columns
    ]


@pytest.mark.parametrize("name", ["fixed-shape-tensor", "list-view"])
def test_kinds_of_lists_as_they_are_shipped(name):
    shutil.copy(DATA / f"{name}.parquet", "x.parquet")
    assert normalize() == 0
    old, new = pq.read_table("x.parquet"), pq.read_table("y.parquet")
    assert new.schema == old.schema
    assert_same_bits(rows_of(new["e"]), anynorm.layer_norm(rows_of(old["e"])))


@pytest.mark.parametrize("axis", ["-1", "0"])
def test_several_columns(capsys, axis):
    x, y = deviates((30, 6)), deviates((30, 4), "float64", 1)
    nulls = [None if axis == "-1" and i in (0, 9) else row for i, row in enumerate(y)]
    old = saved({"a": list(x), "id": range(30), "b": pa.array(nulls, pa.list_(pa.float64(), 4))})
    assert normalize("--column", "b", "--column", "a", f"--axis={axis}") == 0
    assert "b 30 x 4 float64, a 30 x 6 float32" in capsys.readouterr().err
    new = pq.read_table("y.parquet")
    assert new.schema.equals(old.schema, check_metadata=True)
    assert_others_kept(new, old, "a", "b")
    assert new["b"].is_null().equals(old["b"].is_null())
    assert_few_ulp(rows_of(new["a"]), anynorm.layer_norm(x, axis=int(axis)))
    assert_few_ulp(rows_of(new["b"]), anynorm.layer_norm(y[~old["b"].is_null().to_numpy()], axis=int(axis)))
    assert pq.read_metadata("y.parquet").num_row_groups == 5


KINDS = {
    "list": pa.list_(pa.float32()), "fixed": pa.list_(pa.float32(), 6), "view": pa.list_view(pa.float32()),
    "large": pa.large_list(pa.float64()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_lists_in_structs(kind):
    """Structs in structs, null at each depth: what is null stays so, and what lies beside it stays as it was."""
    x = deviates((30, 6), f"float{KINDS[kind].value_type.bit_width}")
    inner = [None if i == 3 else {"v": None if i == 9 else row, "t": str(i)} for i, row in enumerate(x)]
    outer = [None if i == 21 else {"k": i, "in": one} for i, one in enumerate(inner)]
    type_in = pa.struct([pa.field("v", KINDS[kind], metadata={"of": "v"}), ("t", pa.string())])
    column = pa.array(outer, pa.struct([("k", pa.int8()), pa.field("in", type_in)]))
    old = saved({"s": column, "plain.name": [[1.0, 2.0]] * 30, "id": range(30)})
    assert normalize("--column", "s.in.v") == 0
    new = pq.read_table("y.parquet")
    assert new.schema.equals(old.schema, check_metadata=True)
    assert_others_kept(new, old, "s")
    there = [i for i in range(30) if i not in (3, 9, 21)]
    want = outer.copy()
    for i, row in zip(there, anynorm.layer_norm(x[there]), strict=True):
        want[i] = {"k": i, "in": {"v": row.tolist(), "t": str(i)}}
    assert new["s"].to_pylist() == want
    # A name that has dots itself.
    assert normalize("--column", "plain.name", "--force") == 0
    assert pq.read_table("y.parquet")["s"].equals(old["s"])
    # Another dtype.
    assert normalize("--column", "s.in.v", "--force", "--dtype=float16") == 0
    found = pq.read_table("y.parquet")["s"].type.field("in").type.field("v").type
    assert (type(found), found.value_type) == (type(KINDS[kind]), pa.float16())


def test_a_struct_is_read_into_other_formats():
    x = deviates((30, 6))
    saved({"s": [{"v": row} for row in x]})
    assert normalize(target="y.npy") == 0
    assert_same_bits(np.load("y.npy"), anynorm.layer_norm(x))


@pytest.mark.parametrize("axis", ["-1", "0"])
def test_columns_of_numbers(capsys, axis):
    shutil.copy(DATA / "wide.parquet", "x.parquet")
    assert normalize("--columns", "f*", f"--axis={axis}") == 0
    assert "y.parquet: 20 x 8 float32" in capsys.readouterr().err
    old, new = pq.read_table("x.parquet"), pq.read_table("y.parquet")
    assert new.schema == old.schema
    x, y = (np.stack([one.to_numpy() for one in table.columns], axis=1) for table in (old, new))
    assert_few_ulp(y, anynorm.layer_norm(x, axis=int(axis)))


def test_which_columns_of_numbers():
    """Those of floats whose names match, in their order, whatever stands between them; structs have some too."""
    x = deviates((30, 4), "float64")
    old = saved({
        "f1": x[:, 0], "f_id": range(30), "f2": x[:, 1], "g": x[:, 2],
        "s": pa.StructArray.from_arrays([pa.array(x[:, 3]), pa.array(range(30))], ["f3", "k"]),
    })  # fmt: skip
    assert normalize("--columns", "f*", "--columns", "s.*") == 0
    new = pq.read_table("y.parquet")
    assert new.schema.equals(old.schema, check_metadata=True)
    assert_others_kept(new, old, "f1", "f2", "s")
    found = [new["f1"], new["f2"], new["s"].combine_chunks().field("f3")]
    want = anynorm.layer_norm(x[:, [0, 1, 3]])
    assert_same_bits(np.stack([one.to_numpy() for one in found], axis=1), want)
    assert new["s"].combine_chunks().field("k").to_pylist() == list(range(30))
    assert normalize("--columns", "f[12]", "--column", "e", target="y.npy") == 1
    assert normalize("--columns", "f[12]", target="y.npy") == 0
    assert_same_bits(np.load("y.npy"), anynorm.layer_norm(x[:, :2]))
    assert normalize("--columns", "F*", target="z.npy") == 1  # capitals are others


@pytest.mark.parametrize("dtype", [None, "float16", "float64"])
def test_columns_of_several_types(dtype):
    """A row is as wide as the widest; each column keeps its own type, unless another is asked for."""
    x = deviates((30, 3), "float16").astype("float64")
    old = saved({"a": x[:, 0].astype("float16"), "b": x[:, 1].astype("float32"), "c": x[:, 2].astype("float32")})
    assert normalize("--columns", "*", *([f"--dtype={dtype}"] if dtype else [])) == 0
    new = pq.read_table("y.parquet")
    wide = anynorm.layer_norm(x.astype("float64" if dtype == "float64" else "float32"))
    for i, name in enumerate("abc"):
        kind = pa.from_numpy_dtype(np.dtype(dtype)) if dtype else old.schema.field(name).type
        assert new.schema.field(name).type == kind
        assert_same_bits(new[name].to_numpy(), wide[:, i].astype(f"float{kind.bit_width}"))


def test_a_result_that_a_column_has_no_room_for(capsys, folder):
    saved({"a": np.ones(3, "float16"), "b": np.ones(3, "float32")})
    command = ["x.parquet", "y.parquet", "--norm", "scale", "--scale", "1e6", "--columns", "*"]
    assert_refused(capsys, folder, "a result does not fit in float16", *command)


@pytest.mark.parametrize("options", [["--columns", "f*"], ["--column", "a", "--column", "b"]])
def test_in_place(options):
    x = deviates((30, 2), "float64")
    old = saved({"f1": x[:, 0], "f2": x[:, 1], "a": list(x), "b": list(x), "id": range(30)})
    assert normalize("--in-place", *options, target=None) == 0
    new = pq.read_table("x.parquet")
    changed = [name for name in old.column_names if not new[name].equals(old[name])]
    assert changed == (["f1", "f2"] if "--columns" in options else ["a", "b"])


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3), pa.float32()])
def test_no_rows(kind):
    pq.write_table(pa.table({"f": pa.array([], kind)}), "x.parquet")
    assert normalize(*(["--columns", "f"] if kind == pa.float32() else [])) == 0
    assert pq.read_table("y.parquet").equals(pq.read_table("x.parquet"))


@pytest.mark.parametrize("axis", ["-1", "0"])
def test_rows_of_no_elements_stay(axis):
    empty = None if axis == "-1" else []
    old = saved({"e": pa.array([empty] * 9, pa.list_(pa.float32())), "id": range(9)})
    assert normalize(f"--axis={axis}") == 0
    assert pq.read_table("y.parquet").equals(old)


def test_weights_and_statistics_of_columns_of_numbers():
    x = deviates((30, 3))
    saved({f"f{i}": x[:, i] for i in range(3)})
    np.save("w.npy", weight := deviates((3,), seed=1))
    assert cli.main(["show", "x.parquet", "--columns", "f*"]) == 0
    assert normalize("--columns", "f*", "--weight", "w.npy", target="y.npy") == 0
    assert_same_bits(np.load("y.npy"), anynorm.layer_norm(x, weight))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("wide --columns g*", "no column of floats of wide.parquet matches g*; such columns are: f0, f1"),
        ("wide --columns f1 --columns ff", "no column of floats of wide.parquet matches ff; such columns are: f0, f1"),
        ("wide --columns f0,f1", "f7; write --columns for each of f0,f1"),
        ("whole --columns *", "no column of floats of whole.parquet matches *; such columns are: none"),
        ("wide --columns f* --column f0", "--columns and --column exclude each other; leave one out"),
        ("wide --column f0", "f0 of wide.parquet is float; --column takes lists of floats, and --columns f0 columns"),
        ("wide", "; --columns 'f*' makes rows of columns of numbers whose names match"),
        ("wide --columns f* --axis 2", "--axis 2 does not fit f* of shape (20, 8)"),
        ("holes --columns f*", "f* of holes.parquet has null in f2; fill that first"),
        ("whole --column e", "e of whole.parquet is list<int64>; --column takes lists of floats: cast it to"),
        ("whole --column s.e", "s.e of whole.parquet is list<int8>; --column takes lists of floats: cast it to"),
        ("whole --column s", "s of whole.parquet is struct<e: list<int8>>; --column takes lists of floats"),
        ("whole --column s.f", "whole.parquet holds no column of lists of floats"),
        ("struct --column s.f", "struct.parquet holds no s.f; it holds s.v"),
        ("ragged --column a --column b", "b of ragged.parquet has lists of different lengths"),
    ],
)  # fmt: skip
def test_refuses(capsys, folder, arguments, message):
    shutil.copy(DATA / "wide.parquet", "wide.parquet")
    for name, columns in {
        "whole": {"e": [[1]], "s": pa.array([{"e": [1]}], pa.struct([("e", pa.list_(pa.int8()))]))},
        "holes": {"f1": [1.0, 2.0], "f2": [1.0, None]},
        "struct": {"s": [{"v": [1.0]}]},
        "ragged": {"a": [[1.0], [2.0]], "b": [[1.0], [2.0, 3.0]]},
    }.items():
        pq.write_table(pa.table(columns), f"{name}.parquet")
    name, *options = arguments.split()
    assert_refused(capsys, folder, message, f"{name}.parquet", "y.parquet", *options, "--norm", "layer")


def test_integer_lists_as_they_are_shipped(capsys, folder):
    shutil.copy(DATA / "integer-lists.parquet", "x.parquet")
    message = "e of x.parquet is list<int64>; --column takes lists of floats: cast it to list<float> first"
    assert_refused(capsys, folder, message, "x.parquet", "y.parquet", "--norm", "layer", "--column", "e")
    # What it says to do does it.
    table = pq.read_table("x.parquet")
    pq.write_table(table.set_column(1, "e", table["e"].cast(pa.list_(pa.float32()))), "x.parquet")
    assert normalize("--column", "e") == 0
