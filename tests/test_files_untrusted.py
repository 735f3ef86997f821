"""Nothing that a file says of itself is executed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from anynorm.cli import main


class Bomb:
    """Makes a file where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def refused(name, capsys):
    assert main(["normalize", name, "y.npy", "--norm", "rms"]) == 1
    assert not Path("exploded").exists()
    return capsys.readouterr().err


def test_the_bomb_explodes_where_it_is_unpickled(folder):
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("exploded").exists()


def test_an_npy_file_of_objects(folder, capsys):
    np.save("x.npy", np.array([Bomb(), Bomb()], dtype=object), allow_pickle=True)
    assert "Python objects, which are never loaded" in refused("x.npy", capsys)


@pytest.mark.parametrize(
    "codecs",
    [
        {"compressor": {"id": "pickle"}, "filters": None},
        {"compressor": None, "filters": [{"id": "pickle"}]},
        {"compressor": None, "filters": [{"id": "shuffle", "elementsize": 4}, {"id": "pickle"}]},
    ],
    ids=["compressor", "filter", "last filter"],
)
@pytest.mark.parametrize("dtype", ["<f4", "|O"])
def test_a_zarr_array_that_names_pickle_as_its_codec(codecs, dtype, folder, capsys):
    array = {"zarr_format": 2, "shape": [3, 4], "chunks": [3, 4], "dtype": dtype, "fill_value": 0, "order": "C"}
    Path("x.zarr").mkdir()
    Path("x.zarr/.zarray").write_text(json.dumps(array | codecs))
    Path("x.zarr/0.0").write_bytes(pickle.dumps(Bomb()))
    assert "x.zarr cannot be read" in refused("x.zarr", capsys)
