"""convert beside what else torch does with a model: compile, trace, script, shard and prune it, run its encoders."""

import pytest
import torch
from torch.nn.utils import prune

import anynorm.torch as norms
from tests.test_torch_convert import CLOSE, OURS, filled, rows, small_model


def test_code_that_was_compiled_before_is_made_anew():
    model, x, graphs = small_model(), rows(), []

    def keep(graph, given):
        graphs.append(str(graph.graph))
        return graph

    compiled = torch.compile(model, backend=keep, fullgraph=True)
    before = compiled(x)
    assert "anynorm" not in graphs[-1]
    report = norms.convert(compiled)
    assert report.swapped[0].names == ("_orig_mod.1",)
    assert torch.equal(compiled(x), model(x))
    assert graphs[-1].count("torch.ops.anynorm.layer_norm") == 2
    norms.revert(compiled)
    torch.testing.assert_close(compiled(x), before, rtol=0.0, atol=0.0)


def test_a_graph_of_torch_fx():
    traced, x = torch.fx.symbolic_trace(small_model()), rows()
    before = traced(x)
    assert len(norms.convert(traced).swapped) == 3
    torch.testing.assert_close(traced(x), before, **CLOSE)
    again = torch.fx.symbolic_trace(traced)
    assert torch.equal(again(x), traced(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_torchscript_compiled_is_left_and_converted_models_are_compiled():
    model, x = small_model(), rows()
    report = norms.convert(torch.jit.script(model))
    assert (report.swapped, {one.note for one in report.left}) == ((), {"it is compiled by TorchScript"})
    assert [one.kind for one in report.left] == ["LayerNorm", "RMSNorm", "LayerNorm"]
    norms.convert(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), **CLOSE)


@pytest.mark.parametrize("kind", OURS)
def test_parameters_without_memory(kind):
    model = kind(8, device="meta")
    norms.convert(model)
    assert model.weight.is_meta
    assert model(torch.ones(3, 8, device="meta")).shape == (3, 8)
    model.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(model(rows()), kind(8)(rows()), **CLOSE)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_of_torch(padded):
    """In eval mode it reads the parameters of its norms itself; padded rows become nested tensors there."""
    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, norm=torch.nn.LayerNorm(64))
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None

    def run(mode):
        with torch.set_grad_enabled(mode):
            y = model.train(mode)(rows(2, 5, 64), src_key_padding_mask=mask)
        return y if mask is None else y.masked_fill(mask[..., None], 0.0)

    before = [run(mode) for mode in (True, False)]
    report = norms.convert(model)
    assert len(report.swapped) == 5
    assert ["TransformerEncoderLayer" in one.note for one in report.swapped] == [True] * 4 + [False]
    for mode, expected in zip((True, False), before, strict=True):
        torch.testing.assert_close(run(mode), expected, rtol=1e-5, atol=1e-5)


def test_models_of_several_processes(tmp_path):
    """Those of DistributedDataParallel, and sharded ones, whose parameters are no plain tensors between calls."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x, expected = rows(), small_model()(rows())
        spread = torch.nn.parallel.DistributedDataParallel(small_model())
        assert norms.convert(spread).swapped[0].names == ("module.1",)
        sharded = small_model()
        norms.convert(sharded)
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(sharded, mesh=mesh)
        for model in (spread, sharded):
            y = model(x)
            torch.testing.assert_close(y, expected, **CLOSE)
            y.sum().backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
        notes = [one.note for one in norms.convert(fully_shard(small_model(), mesh=mesh)).left]
        assert notes[0] == "its weight is a DTensor; convert before parameters become such"
    finally:
        destroy_process_group()


def test_weights_that_are_computed_by_a_hook():
    model, x = prune.random_unstructured(filled(torch.nn.LayerNorm(8)), "weight", 0.5), rows()
    before = model(x)
    assert len(norms.convert(model).swapped) == 1
    torch.testing.assert_close(model(x), before, **CLOSE)
    model(x).sum().backward()
    assert model.weight_orig.grad.any()
    prune.remove(model, "weight")
    torch.testing.assert_close(model(x), before, **CLOSE)
