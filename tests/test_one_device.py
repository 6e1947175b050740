"""What a GPU would refuse and a CPU forgives: tensors of two devices in one operation.

The meta device stands for the GPU: its tensors have shapes and no values, so that a whole frame and
a whole step of training run in a moment. What waits for a value of theirs fails here too."""
from dataclasses import replace

import pytest
import torch
import torch.fx.experimental._config
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import chat
import flm
import mimi
import stream
import train
from stream import Ids, Loss
from workshop import batches, costs, lora, quantize

SMALL = replace(flm.PRESETS["tiny"], num_hidden_layers=2, depth_layers=1)
# A mask without values picks all that it covers.
EVERY_POSITION_HAS_LOSS = torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True)
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


def tensors_in(*values):
    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class OneDevice(TorchDispatchMode):
    """Within, no operation but a copy may take tensors of two devices. Numbers as tensors, which
    have no dimension, may be anywhere, as PyTorch allows."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [tensor for tensor in tensors_in(args, kwargs) if tensor.ndim]
        devices = {tensor.device for tensor in tensors}
        shapes = [(str(tensor.device), list(tensor.shape)) for tensor in tensors]
        assert len(devices) < 2 or operation in COPIES, f"{operation} of {shapes}"
        return operation(*args, **kwargs)


class NothingElsewhere(OneDevice):
    """Within, no tensor may be made or used on the CPU at all, and none copied from or to it: what
    is captured as a graph cannot wait for that."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        devices = {tensor.device.type for tensor in tensors_in(args, kwargs, result)}
        assert devices <= {"meta"}, operation
        return result


def test_what_is_watched_can_fail():
    """Catches a watch that sees nothing."""
    with NothingElsewhere(), pytest.raises(AssertionError):
        torch.ones(())
    table = torch.empty(3, 2, device="meta")
    with OneDevice():
        torch.nn.functional.embedding(torch.zeros(2, dtype=torch.long, device="meta"), table)
        with pytest.raises(AssertionError, match="of two|embedding|index_select"):
            torch.nn.functional.embedding(torch.zeros(2, dtype=torch.long), table)
        with pytest.raises((AssertionError, RuntimeError)):
            table + torch.ones(2)


@pytest.mark.parametrize("ends, bits, fields", [
    ("tiny", 16, {}),
    ("released", 16, dict(temperature_text=0, temperature_audio=0)),
    ("tiny", 8, dict(top_p_text=0, top_p_audio=0, top_k_audio=5)),
])
def test_a_frame_stays_on_its_device(ends, bits, fields):
    """Catches a number, a mask, a table or a state of the frame that is made on the CPU, in any way
    of drawing tokens, and a frame that waits for the device in its midst."""
    model = flm.FLM(SMALL).to(torch.bfloat16)
    quantize.pack(model, bits)
    with torch.device("meta"):
        codec = mimi.Mimi(mimi.PRESETS[ends]).eval().requires_grad_(False)
    codec.to("meta")
    sampling = chat.Sampling(**fields)
    with torch.inference_mode(), OneDevice():
        cache = flm.KVCache(SMALL, 2, 16, "meta", torch.bfloat16)
        depth_cache = flm.depth_cache(SMALL, 2, "meta", torch.bfloat16)
        codec.start(2)
        codec.reset(1)
        tools = chat.Tools(model, codec, sampling, cache, depth_cache)
        state = chat.State.zeros(2, sampling, "meta")
        for i in range(2):
            state.start(i, SMALL)
        user = torch.empty(2, 1920, device="meta")
        all_of_them = torch.empty(2, device="meta")
        chances = torch.empty(2, 1 + stream.K, device="meta")

        def run(function, tools, *tensors):
            with NothingElsewhere():
                return function(tools, *tensors)
        for hears in (all_of_them, None):
            state, answer = chat.frame(tools, state, user, hears, all_of_them, chances, run)
    assert answer.shape == (2, 1 + stream.K + 1920)
    assert {tensor.device.type for tensor in (*state, answer)} == {"meta"}


@pytest.mark.parametrize("adapters", (None, 4))
@pytest.mark.parametrize("recompute", (False, True))
def test_a_step_of_training_stays_on_its_device(adapters, recompute, monkeypatch):
    """Catches positions, masks, weights of the loss or an optimizer's state that are made on the
    CPU, with all weights and with adapters, and when activations are computed again."""
    model = flm.FLM(SMALL)
    lora.adapt(model, lora.Selection(rank=adapters))
    monkeypatch.setattr(train.starting, "model_to_train", lambda settings: (model, None))
    settings = train.Settings(init="tiny", out="-", recompute=recompute, lora=adapters)
    equation, _ = train.build(settings, torch.device("meta"))
    optimizer = train.make_optimizer(equation)
    samples = costs.made_up_pairs(SMALL, 300)
    batch = batches.collate([samples], 300, Ids.of(SMALL))
    scale = torch.ones(len(Loss), dtype=torch.float64)
    with OneDevice(), EVERY_POSITION_HAS_LOSS:
        sums = equation(*batch.to(train.device_of(equation)))
        (sums * scale.to(sums)).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(equation.parameters(), 1.0)
        optimizer.step()
    assert sums.device.type == norm.device.type == "meta"
    trained = [p for p in equation.parameters() if p.requires_grad]
    assert trained and all(p.grad.device.type == "meta" for p in trained)
