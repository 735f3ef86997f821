"""The norms of a trained model, from its file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, SupportsIndex

from anynorm._convention import Convention, check_convention
from anynorm._numbers import check_length, check_number
from anynorm._wording import describe, sentence

if TYPE_CHECKING:
    from anynorm._checkpoints.made import Norms


def load_norms(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    convention: Convention | str | None = None,
    eps: float | None = None,
    dim: SupportsIndex | None = None,
    xp: Any = None,
    dtype: Any = None,
    device: Any = None,
) -> Norms:
    """Load each LayerNorm, RMSNorm and ScaleNorm of a trained model from its file, and nothing else of it.

    What decides about a norm, in this order:

    - which norm it is: ``kind``; the model's architecture, as ``model_type`` in config.json or ``general.architecture``
      in GGUF; in GGUF also which eps the file has; in ONNX the operator; in .keras the class of the layer
    - how it is computed: ``convention``; the architecture; in ONNX the operator's own, in files of Keras its own
    - its eps: ``eps``; what the file or the config.json beside it says, as ``rms_norm_eps`` or ``layer_norm_epsilon``;
      where config.json does not, the default that the architecture has in Hugging Face's transformers
    - weight and bias: the tensors of the norm's name, ``weight``, ``gamma``, ``scale`` or ``g``, and ``bias``, ``beta``
      or ``offset``. GGUF files hold the weight that is multiplied by: to those of Gemma and Nemotron 1 has been added,
      and none is added again.

    Nothing is guessed. What is named as a norm of which something is not known is left out, and said to be in
    ``skipped``. In .safetensors and GGUF files norms are known by their names alone. Of a weight whose name tells
    nothing, as ``1.weight`` of a torch.nn.Sequential or ``layers.0.0.0.g`` of x-transformers, ``skipped`` says so.

    A weight of more axes than are normalized, as that of Cohere's query-key norms with one for each head, makes a norm
    with that ``weight_shape``, where the file is GGUF or ONNX or the convention is that of a model.

    Parameters
    ----------
    path : str or path
        One of these, or a folder that holds one:

        - a .safetensors file (extra ``files``), with config.json in its folder
        - the .safetensors.index.json of several such files
        - a .gguf file; of a model in several any of them
        - an .onnx file; its data may lie in other files of its folder
        - a .keras file, or a .weights.h5 file, which says nothing of its layers but their names (package h5py, extra
          ``files``)
    kind : {"layer_norm", "rms_norm", "scale_norm"}, optional
        Which norm all in the file are.
    convention : Convention or str, optional
        How all are computed: ``"torch"``, ``"llama"``, ``"gemma"`` or another of ``anynorm.CONVENTIONS``, by name or
        itself, or a `Convention` of one's own, whose offset counts for GGUF files too.
    eps : float, optional
        That of all.
    dim : int, optional
        The number of features of each ScaleNorm, which its scale does not tell.
    xp : array namespace, optional
        The library of the parameters, such as torch, cupy or jax.numpy; left out, NumPy.
    dtype : dtype of that library, optional
        Left out, that of the file, of a weight and a bias that have two the one that holds both; bfloat16 in NumPy is
        ml_dtypes'.
    device : device of that library, optional
        Left out, the library's own.

    Returns
    -------
    mapping from str to LayerNorm, RMSNorm or ScaleNorm
        By name, without that of the parameter: ``"model.layers.0.input_layernorm"``; in files of Keras by that of the
        layer, or where two have the same by its path. Its attribute ``skipped`` is a dict of what is named as a norm or
        may be one and was not loaded, and why: a BatchNorm, one whose eps is not known, a weight whose name tells
        nothing. Printed, a line for each sort.

    Raises
    ------
    ValueError
        If a file is damaged, does not fit its index, names a file outside of its folder, or may hold pickled objects,
        as .bin and .pt do; if no norm is found or all would be skipped. Nothing in a file is executed, and nothing is
        read but headers and the parameters of norms.
    FileNotFoundError
        If there is nothing at the path.
    TypeError
        If an argument is of a wrong type.

    Examples
    --------
    A file without a config.json does not say what its norms are:

    >>> import tempfile, numpy, safetensors.numpy, anynorm
    >>> weights = {"model.norm.weight": numpy.ones(4, numpy.float32), "lm_head.weight": numpy.ones((9, 4))}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     safetensors.numpy.save_file(weights, f"{folder}/model.safetensors")
    ...     norms = anynorm.load_norms(folder, convention="llama", eps=1e-5)
    >>> norms["model.norm"]
    RMSNorm(4, eps=1e-05, bias=False, convention='llama', dtype=float32)
    """
    from pathlib import Path

    from anynorm._checkpoints.facts import KINDS, Facts
    from anynorm._checkpoints.made import make_norms
    from anynorm._checkpoints.places import find_norms

    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(sentence("path", "be a str or a path", describe(path), "pass the name of a file or a folder"))
    if kind is not None and kind not in KINDS:
        wrong = ValueError if isinstance(kind, str) else TypeError
        raise wrong(sentence("kind", f"be one of {', '.join(KINDS)}", describe(kind), "leave it out, or pass one"))
    if convention is not None:
        check_convention(convention)
    eps = None if eps is None else check_number("eps", eps, least=0.0)
    dim = None if dim is None else check_length("dim", dim)
    return make_norms(find_norms(Path(path)), Facts(kind, convention, eps, dim), path, xp, dtype, device)
