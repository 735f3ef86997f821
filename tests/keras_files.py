"""Files of Keras, written as it writes them: .keras and .weights.h5."""

import io
import json
import zipfile

import h5py

from tests.checkpoints import BFLOAT16, numbers


def layer(kind, name, shape=(None, 5, 8), module="keras.layers", **config):
    built = {"build_config": {"input_shape": list(shape)}} if shape else {}
    return {"module": module, "class_name": kind, "config": {"name": name, **config}, **built}


def norm(kind="LayerNormalization", name="norm", axis=-1, epsilon=1e-3, **config):
    return layer(kind, name, axis=[axis] if isinstance(axis, int) else axis, epsilon=epsilon, **config)


def in_hdf5(variables, names=()):
    """The HDF5 file of variables by the path of their layer, as bytes."""
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        for path, held in variables.items():
            group = root.create_group(f"{path}/vars")
            if path in names:
                group.attrs["name"] = names[path]
            for i, array in enumerate(held):
                is_brain = array.dtype == BFLOAT16
                dataset = group.create_dataset(str(i), data=array.view("V2") if is_brain else array)
                if is_brain:
                    dataset.attrs["dtype"] = "bfloat16"
    return file.getvalue()


def write_keras(path, layers, variables, names=(), compression=zipfile.ZIP_STORED):
    model = {"module": "keras", "class_name": "Functional", "config": {"name": "m", "layers": layers}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(model), zipfile.ZIP_DEFLATED)
        archive.writestr("model.weights.h5", in_hdf5(variables, names), compression)


def pair(dtype="float32", seed=0, shape=(8,)):
    return [numbers(shape, dtype, seed), numbers(shape, dtype, seed + 1)]
