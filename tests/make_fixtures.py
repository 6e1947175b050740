"""Make the fixtures in tests/reference that come from transformers. They are committed; rerun to renew. The others
(flm_small, flm_small_mup, mimi_small, mimi_released_keys.json) come from the release and its own code, which is not here.

    python3 -m venv /opt/ref && /opt/ref/bin/pip install torch==2.13.0 transformers safetensors numpy
    /opt/ref/bin/python tests/make_fixtures.py            # both, or name one: qwen_small

Each function below makes one fixture. What it writes depends on its seed and on the library versions above alone.
"""
import sys
from pathlib import Path

import torch

REFERENCE = Path(__file__).parent / "reference"


def qwen_small():
    """Two random Qwen2 checkpoints, untied and tied, with grouped-query attention and what transformers computes from them."""
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM
    for name, tied in (("qwen_small", False), ("qwen_small_tied", True)):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(
            vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rope_theta=10_000.0, tie_word_embeddings=tied)).eval()
        for parameter in model.parameters():  # far from their first values: norms are not 1, biases not 0, logits not small
            parameter.data += 0.2 * torch.randn_like(parameter)
        text = torch.randint(0, 97, (2, 23))
        with torch.no_grad():
            hidden = model.model(text).last_hidden_state
            logits = model(text).logits
        model.save_pretrained(REFERENCE / name)
        (REFERENCE / name / "generation_config.json").unlink(missing_ok=True)
        save_file({"text_ids": text, "hidden": hidden, "text_logits": logits}, REFERENCE / name / "golden.safetensors")


def mimi_transformers():
    """A small random Mimi in transformers' naming, and what transformers computes with it."""
    from safetensors.torch import save_file
    from transformers import MimiConfig, MimiModel
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(
        hidden_size=32, num_filters=4, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8,
        intermediate_size=64, codebook_size=32, codebook_dim=16, vector_quantization_hidden_dimension=16,
        num_quantizers=9, sliding_window=20, upsample_groups=32, attn_implementation="eager")).eval()
    for name, parameter in model.named_parameters():  # far from their first values
        parameter.data += 0.1 * torch.randn_like(parameter)
        if "layer_scale" in name:
            parameter.data += 0.3
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.data = torch.randn_like(buffer)
        if name.endswith("cluster_usage"):
            buffer.data = 0.5 + torch.rand_like(buffer)
    audio = 0.3 * torch.randn(2, 1, 1920 * 25)
    with torch.no_grad():
        codes = model.encode(audio, num_quantizers=8).audio_codes
        decoded = model.decode(codes).audio_values
    model.save_pretrained(REFERENCE / "mimi_transformers")
    save_file({"audio": audio, "codes": codes.contiguous(), "decoded": decoded.contiguous()}, REFERENCE / "mimi_transformers" / "golden.safetensors")


if __name__ == "__main__":
    makers = {name: value for name, value in list(globals().items()) if getattr(value, "__module__", "") == "__main__" and callable(value)}
    for name in sys.argv[1:] or makers:
        makers[name]()
        print(f"made {name}")
