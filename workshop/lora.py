"""Training a part of a model: low-rank adapters (LoRA), and parts that stay as they are.

What this is: which weights of a run are trained, adapters beside those that are not, and the merge
that makes an ordinary model of both. It serves train.py. What this is not: the loss or the loop;
they are the same with all weights and with some.

    python train.py run grids/ft2 --init CofeAI/FLM-Audio --lora 32 --out runs/lora \\
        --stage fine-tuning-2 --lr 1e-4 7e-5 --bfloat16 --recompute --device cuda --micro 1
    python train.py run grids/ft2 --init tiny/model --freeze depth heads --out runs/backbone
    python train.py export runs/lora somewhere/model       # merged: an ordinary model
    python train.py export runs/lora to-share --adapters   # what was trained alone

A matrix W [out, in] stays as it is, and two thin ones beside it are trained:

    y = x W^T + (ALPHA / R) x A^T B^T        A [R, in], random at first; B [out, R], 0 at first

What is trained with --lora R, and with --lora-full-audio beside it:

    text embedding, text head                       adapters     adapters
    backbone: q, k, v, o, gate, up, down            adapters     adapters
    depth transformer: attention and MLPs           adapters     whole
    its way in (linear_in, wtes, wpe), last norm    whole        whole
    audio embeddings, audio heads                   whole        whole
    all other norms, all biases                     -            those of the depth transformer

--freeze takes parts out of this: neither they nor adapters of theirs are trained.

Decision: the paper trains all weights. Adapters are for a 7B model on one GPU of 24 GB. What is
audio and no large matrix is trained whole, since it costs little there and is what the language
model did not know before. A model that starts from --qwen has a fresh depth transformer, which is
trained whole: adapters of random weights learn little.
Decision: text embedding and text head have adapters too. The rows of <wait>, <asr> and <answer>
were never trained in a Qwen, and those of <asr> and <answer> not in the release either.
"""
import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from workshop import parameters
from workshop.parameters import part_of

# Decision: the update is scaled by ALPHA / R, so that one learning rate serves many ranks. A usual
# choice; good rates are about ten times those of a full training.
ALPHA = 32
PARTS = tuple(dict.fromkeys(parameters.PARTS.values()))  # what --freeze knows

# Of the depth transformer only the blocks are large.
DEPTH = "aud_output_layers."
DEPTH_BLOCKS = "aud_output_layers.transformer.h."
AUDIO_EMBEDDINGS = "model.embed_tokens.aud_"


@dataclass(frozen=True)
class Selection:
    """Which weights of a model are trained."""
    rank: int | None = None    # of adapters; None: weights themselves
    full_audio: bool = False   # the depth transformer whole, beside adapters elsewhere
    freeze: tuple = ()         # names of parameters.PARTS

    @classmethod
    def of(cls, settings):
        """settings: train.Settings as a dict, or the method of a checkpoint, which may be older
        than these settings."""
        full_audio = settings.get("lora_full_audio") or settings.get("qwen")
        return cls(settings.get("lora"), bool(full_audio), tuple(settings.get("freeze") or ()))

    @property
    def everything(self):
        """Whether all weights are trained, as in the paper."""
        return not self.rank and not self.freeze

    def is_frozen(self, name):
        """Whether --freeze names the part that a parameter or module belongs to."""
        return part_of(name) in self.freeze

    def is_adapted(self, name):
        """Whether a matrix of this name gets an adapter."""
        if not self.rank or self.is_frozen(name):
            return False
        if name.startswith(DEPTH):
            return name.startswith(DEPTH_BLOCKS) and not self.full_audio
        return not name.startswith(AUDIO_EMBEDDINGS)

    def is_whole(self, name):
        """Whether a parameter of the model itself is trained."""
        if self.is_frozen(name):
            return False
        if not self.rank or name.startswith(AUDIO_EMBEDDINGS):
            return True
        if name.startswith(DEPTH_BLOCKS):
            return self.full_audio
        return name.startswith(DEPTH)


# --- adapters ---

class Adapter(nn.Module):
    """A frozen matrix with an adapter, under the names that it had alone: `weight`, `bias`."""

    def __init__(self, layer, rank):
        super().__init__()
        rows, columns = layer.weight.shape
        device = layer.weight.device
        self.weight = layer.weight                                          # [rows, columns]
        self.bias = getattr(layer, "bias", None)                            # [rows]
        self.scale = ALPHA / rank
        self.lora_A = nn.Parameter(torch.empty(rank, columns, device=device))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, device=device))  # so it starts as W
        if not layer.weight.is_meta:
            self.lora_A.data.normal_(0, columns ** -0.5)

    def merged(self):
        """The matrix that does what both do, in float32: W + (ALPHA / R) B A, [rows, columns]"""
        change = self.lora_B @ self.lora_A                                  # [rows, columns]
        return self.weight.float() + self.scale * change


class AdaptedLinear(Adapter):
    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


class AdaptedEmbedding(Adapter):
    """rows: ids; columns: the model's width."""

    def forward(self, ids):
        change = F.embedding(ids, self.lora_B) @ self.lora_A                # [..., columns]
        return F.embedding(ids, self.weight) + self.scale * change


def adapt(model, selection, bfloat16=False):
    """Prepare a flm.FLM in place for training what a Selection says: adapters beside what has them,
    and no gradient for what stays.

    What is trained becomes float32. bfloat16: matrices that stay are held in bfloat16, in which the
    computation reads them. A model in which everything is trained stays as it is."""
    if selection.everything:
        return
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, (nn.Linear, nn.Embedding)) or not selection.is_adapted(name + "."):
            continue
        kind = AdaptedLinear if isinstance(layer, nn.Linear) else AdaptedEmbedding
        model.set_submodule(name, kind(layer, selection.rank))
    for name, parameter in model.named_parameters():
        is_trained = ".lora_" in name or selection.is_whole(name)
        parameter.requires_grad_(is_trained)
        to_16_bits = bfloat16 and not is_trained and parameter.ndim > 1
        parameter.data = parameter.data.to(torch.bfloat16 if to_16_bits else torch.float32)


def merge(model):
    """Put ordinary layers in the place of all adapters, in place, in float32."""
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, Adapter):
            continue
        rows, columns = layer.weight.shape
        if isinstance(layer, AdaptedEmbedding):
            ordinary = nn.Embedding(rows, columns, device="meta")
        else:
            ordinary = nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
            ordinary.bias = layer.bias
        ordinary.weight = nn.Parameter(layer.merged().detach())
        model.set_submodule(name, ordinary)
    model.float()


def fingerprint(model):
    """A hash of a sample of each weight, as text: it tells the model that a run started from from
    the same folder with other weights in it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        every = max(1, len(values) // 1000)
        digest.update(f"{name} {list(parameter.shape)}".encode())
        digest.update(values[::every].float().cpu().numpy().tobytes())
    return digest.hexdigest()
