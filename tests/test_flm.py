"""flm.py against the release's outputs, against transformers, and against itself: cached,
sharded, broken on purpose."""
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flm
from workshop import config_files, gguf_files, model_files, parameters, qwen_files

REFERENCE = Path(__file__).parent / "reference"
QWEN_SMALL = replace(flm.PRESETS["tiny"], vocab_size=97, hidden_size=32, head_dim=8, intermediate_size=56, num_hidden_layers=2)


@pytest.fixture
def model():
    return model_files.load(REFERENCE / "flm_small")


@pytest.fixture
def folder(tmp_path):
    """A copy of the small model to break."""
    return Path(shutil.copytree(REFERENCE / "flm_small", tmp_path / "model"))


def frames(config, B, T, seed=0):
    """Random text, speak, listen."""
    g = torch.Generator().manual_seed(seed)
    audio = torch.randint(0, config.aud_vocab_size, (2, B, T, flm.K), generator=g)
    return torch.randint(0, config.vocab_size, (B, T), generator=g), *audio


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["flm_small", "flm_small_mup"])
@torch.no_grad()
def test_golden(name):
    """Catches a wrong norm, RoPE, GQA order, mup factor, bias, depth input or MLP choice:
    anything that moves a number."""
    model, golden = model_files.load(REFERENCE / name), load_file(REFERENCE / name / "golden.safetensors")
    h = model.hidden(golden["text_ids"], golden["speak_ids"], golden["listen_ids"])
    close(h, golden["hidden"])
    close(model.text_logits(h), golden["text_logits"])
    close(model.depth_logits(h.flatten(0, 1), golden["depth_targets"][:, :-1]), golden["depth_logits"])


@pytest.mark.parametrize("name", ["qwen_small", "qwen_small_tied"])
@torch.no_grad()
def test_from_qwen_equals_transformers(name):
    """Catches a Qwen tensor mapped wrongly or left fresh, RoPE base not read, or a tied head that
    is not the embedding."""
    golden = load_file(REFERENCE / name / "golden.safetensors")
    config = replace(flm.PRESETS["tiny"], vocab_size=97, hidden_size=32, head_dim=8, intermediate_size=56, num_hidden_layers=2,
                     max_position_embeddings=64)
    model, text = qwen_files.from_qwen(REFERENCE / name, config), golden["text_ids"]
    for embedding in [*model.model.embed_tokens.aud_speak_embeddings, *model.model.embed_tokens.aud_listen_embeddings]:
        assert embedding.weight.std() > 0.01
        embedding.weight.zero_()
    h = model.hidden(text, *torch.zeros(2, *text.shape, flm.K, dtype=torch.long))
    close(h, golden["hidden"])
    close(model.text_logits(h), golden["text_logits"])


@torch.no_grad()
def test_from_qwen_reads_a_vision_language_checkpoint(tmp_path):
    """Catches a prefix not taken off, or the vision tower taken for an unknown tensor."""
    source = REFERENCE / "qwen_small"
    tensors = {name.replace("model.", "model.language_model."): t for name, t in load_file(source / "model.safetensors").items()}
    save_file(tensors | {"visual.patch_embed.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    config = replace(flm.PRESETS["tiny"], vocab_size=97, hidden_size=32, head_dim=8, intermediate_size=56, num_hidden_layers=2)
    plain, nested = qwen_files.from_qwen(source, config), qwen_files.from_qwen(tmp_path, config)
    assert torch.equal(plain.model.layers[1].mlp.up_proj.weight, nested.model.layers[1].mlp.up_proj.weight)
    too_few = "has vocab_size 97, and the model to be started has 96, .* too few"
    with pytest.raises(model_files.LoadError, match=too_few):
        qwen_files.from_qwen(source, replace(config, vocab_size=96))


@pytest.mark.parametrize("changes, sentence", [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "has RoPE of type yarn"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "has RoPE of type llama3"),
    ({"use_sliding_window": True}, "has use_sliding_window"),
    ({"rope_scaling": 3}, "rope_scaling must be an object")])
def test_a_qwen_that_computes_otherwise_is_refused(tmp_path, changes, sentence):
    """Catches a checkpoint whose other positions, or whose window, are left out without a word:
    it would start, and be wrong."""
    source = shutil.copytree(REFERENCE / "qwen_small", tmp_path / "qwen")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(model_files.LoadError, match=sentence):
        qwen_files.from_qwen(source, QWEN_SMALL)


@torch.no_grad()
def test_a_start_with_more_rows_than_the_checkpoint(model):
    """Catches rows beyond the checkpoint's that are empty or shift the others: a tokenizer that
    fills its vocabulary leaves none for <wait>."""
    source = REFERENCE / "qwen_small"
    plain = qwen_files.from_qwen(source, QWEN_SMALL)
    more = qwen_files.from_qwen(source, replace(QWEN_SMALL, vocab_size=100))
    for name in ("lm_head", "model.embed_tokens.text_embeddings"):
        rows, all_rows = plain.get_submodule(name).weight, more.get_submodule(name).weight
        assert torch.equal(rows, all_rows[:97]) and (all_rows[97:].std(1) > 0.001).all()


@torch.no_grad()
def test_a_nested_checkpoint_with_one_matrix_for_both_ends(tmp_path):
    """Catches Qwen2.5-VL 3B as newer transformers writes it, which says outside text_config that
    its head is its embedding."""
    source = REFERENCE / "qwen_small_tied"
    values = json.loads((source / "config.json").read_text())
    del values["tie_word_embeddings"]
    inner = values | {"model_type": "qwen2_5_vl_text"}
    outer = {"model_type": "qwen2_5_vl", "tie_word_embeddings": True, "text_config": inner}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    tensors = load_file(source / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model."): t for name, t in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    plain = qwen_files.from_qwen(source, QWEN_SMALL)
    nested = qwen_files.from_qwen(tmp_path, QWEN_SMALL)
    assert torch.equal(plain.lm_head.weight, nested.lm_head.weight)
    assert torch.equal(nested.lm_head.weight, nested.model.embed_tokens.text_embeddings.weight)


@torch.no_grad()
def test_llama_is_qwen_without_biases(tmp_path):
    """Catches SmolLM2 refused for the biases that it does not have, or computed with some: a
    Llama equals the Qwen whose biases are 0."""
    source = REFERENCE / "qwen_small"
    values = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    for folder, kind in (("llama", "llama"), ("zeros", "qwen2")):
        weights = {name: t for name, t in tensors.items() if not name.endswith("bias")}
        if kind == "qwen2":
            weights |= {name: t * 0 for name, t in tensors.items() if name.endswith("bias")}
        (tmp_path / folder).mkdir()
        save_file(weights, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text(json.dumps(values | {"model_type": kind}))
    llama = qwen_files.from_qwen(tmp_path / "llama", replace(QWEN_SMALL, attention_bias=False))
    zeros = qwen_files.from_qwen(tmp_path / "zeros", QWEN_SMALL)
    inputs = frames(QWEN_SMALL, 1, 7)
    llama.model.embed_tokens.load_state_dict(zeros.model.embed_tokens.state_dict())
    close(llama.hidden(*inputs), zeros.hidden(*inputs))
    biases = "has attention_bias False, and the model to be started has True"
    with pytest.raises(model_files.LoadError, match=biases):
        qwen_files.from_qwen(tmp_path / "llama", QWEN_SMALL)


@pytest.mark.parametrize("kind, reason", [
    ("qwen3", "type qwen3: it normalizes queries and keys in each head"),
    ("gemma2", "type gemma2: it scales its embeddings"),
    ("olmo", "type olmo: it is not known here; Qwen2, Qwen2.5 and Llama")])
def test_another_architecture_is_refused_by_name(tmp_path, kind, reason):
    """Catches a checkpoint that has the names of Qwen2 and computes otherwise: it would start, or
    end in the name of a tensor."""
    source = shutil.copytree(REFERENCE / "qwen_small", tmp_path / "qwen")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"model_type": kind}))
    with pytest.raises(model_files.LoadError, match=reason):
        qwen_files.from_qwen(source, QWEN_SMALL)


def test_rows_of_a_llama_file_by_hand():
    """Catches q and k of a GGUF file of Llama left in the file's order, in which pairs stand side
    by side: the model would run, and be wrong."""
    rows = torch.tensor([0, 100, 1, 101, 2, 102, 10, 110, 11, 111, 12, 112])[:, None].expand(-1, 3)
    ours = gguf_files.half_split(rows, heads=2)
    assert ours[:, 0].tolist() == [0, 1, 2, 100, 101, 102, 10, 11, 12, 110, 111, 112]
    assert gguf_files.half_split(rows[:, 0], heads=2).tolist() == ours[:, 0].tolist()


def test_names_of_a_gguf_file():
    """Catches a tensor of Llama or Qwen2 under another name than transformers gives it."""
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.11.attn_q.bias": "model.layers.11.self_attn.q_proj.bias",
        "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "output_norm.weight": "model.norm.weight",
        "rope_freqs.weight": None,
    }
    assert {name: gguf_files.tensor_name(name) for name in names} == names


def test_a_gguf_file_without_the_package_is_one_sentence(tmp_path, monkeypatch):
    """Catches a traceback where the optional package is not installed."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    how = "package gguf .pip install gguf.; or give the folder"
    with pytest.raises(model_files.LoadError, match=how):
        qwen_files.from_qwen(tmp_path / "x.gguf", QWEN_SMALL)
    with pytest.raises(model_files.LoadError, match="y.gguf does not exist"):
        qwen_files.from_qwen(tmp_path / "y.gguf", QWEN_SMALL)


def write_gguf(file, source, architecture):
    """The checkpoint of a folder as a GGUF file, in the manner of llama.cpp's converter."""
    gguf = pytest.importorskip("gguf")
    config = QWEN_SMALL
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    names = {ours: theirs for theirs, ours in gguf_files.TENSORS.items()}
    parts = {ours: theirs for theirs, ours in gguf_files.TENSORS_OF_LAYER.items()}
    for name, tensor in load_file(source / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        if architecture == "llama" and kind == "bias":
            continue
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            halves = tensor.reshape(heads, 2, -1, tensor.shape[-1])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        if stem.startswith("model.layers."):
            layer, part = stem.split(".", 3)[2:]
            stem = f"blk.{layer}.{parts[part]}"
        writer.add_tensor(f"{names.get(stem, stem)}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_a_gguf_file_is_the_folder_that_it_was_made_from(tmp_path, architecture):
    """Catches settings, shapes or rows of q and k of a GGUF file that are not those of its
    folder."""
    write_gguf(tmp_path / "x.gguf", REFERENCE / "qwen_small", architecture)
    config = replace(QWEN_SMALL, attention_bias=architecture == "qwen2")
    model = qwen_files.from_qwen(tmp_path / "x.gguf", config)
    plain = qwen_files.from_qwen(REFERENCE / "qwen_small", QWEN_SMALL)
    for name, tensor in model.state_dict().items():
        if "aud_" not in name:
            assert torch.equal(tensor, plain.state_dict()[name]), name
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(data[:200])
    with pytest.raises(model_files.LoadError, match="x.gguf cannot be read as GGUF"):
        qwen_files.from_qwen(tmp_path / "x.gguf", config)


def test_an_empty_rope_theta_is_no_rope_theta(tmp_path):
    """Catches a checkpoint of newer transformers that is refused because its older key is null."""
    source = shutil.copytree(REFERENCE / "qwen_small", tmp_path / "qwen")
    values = json.loads((source / "config.json").read_text())
    values |= {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": QWEN_SMALL.rope_theta}}
    (source / "config.json").write_text(json.dumps(values))
    assert qwen_files.from_qwen(source, QWEN_SMALL).config == QWEN_SMALL


def test_spoilt_weights_are_not_written(tmp_path):
    """Catches a training that has come to NaN and replaces the good model before it."""
    model = flm.init_weights(flm.FLM(flm.PRESETS["tiny"]))
    model_files.save(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model.model.norm.weight.data[3] = float("inf")
    with pytest.raises(ValueError, match="its tensor model.norm.weight holds values that are no finite numbers"):
        model_files.save(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_files_are_readable_as_the_umask_says(tmp_path):
    """Catches weights that their owner alone can read, which the safetensors library makes."""
    before = os.umask(0o022)
    try:
        model_files.save(flm.init_weights(flm.FLM(flm.PRESETS["tiny"])), tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}
    assert len(list(tmp_path.iterdir())) == 2, "nothing is left beside"


@torch.no_grad()
def test_cached_frames_equal_the_full_pass(model):
    """Catches a wrong position, mask or cache row: one frame at a time, in chunks, and batched."""
    inputs = frames(model.config, 2, 17)
    full = model.hidden(*inputs)
    for sizes in ([1] * 17, [5, 1, 8, 3]):
        cache = flm.KVCache(model.config, 2, 17)
        parts = [model.hidden(*(x[:, cache.filled:cache.filled + T] for x in inputs), cache) for T in sizes]
        close(torch.cat(parts, 1), full, 2e-5)
    with pytest.raises(ValueError, match="the cache is full: it holds 17 of 17 frames"):
        model.hidden(*(x[:, :2] for x in inputs), cache)


@torch.no_grad()
def test_a_step_over_the_whole_masked_cache_is_the_same(model):
    """Catches a wrong mask on accelerators, where a step reads all rows so that its shapes stay;
    here on the CPU."""
    inputs, cache = frames(model.config, 2, 9), flm.KVCache(model.config, 2, 20)
    cache.fixed = True
    for tensor in (*cache.k, *cache.v):
        tensor.fill_(3.0)
    parts = [model.hidden(*(x[:, t:t + 1] for x in inputs), cache) for t in range(9)]
    close(torch.cat(parts, 1), model.hidden(*inputs), 2e-5)


@torch.no_grad()
def test_a_ring_reads_the_last_frames(model):
    """Catches a ring that forgets too early or late, mixes up rows, or runs off the positions:
    once it has turned, a layer's keys and values are those of the last frames, and attention
    gives what a window's mask gives."""
    config = replace(model.config, num_hidden_layers=1, max_position_embeddings=32)
    shallow = flm.FLM(config)
    shallow.load_state_dict(model.state_dict(), strict=False, assign=True)
    inputs, cache = frames(config, 2, 90), flm.KVCache(config, 2, 13)
    for t in range(90):
        h = shallow.hidden(*(x[:, t:t + 1] for x in inputs), cache)
        if t in (5, 12, 13, 40, 89):  # in one layer h depends on the window's frames alone, and on no absolute position
            window = [x[:, max(0, t - 12):t + 1] for x in inputs]
            close(h, shallow.hidden(*window)[:, -1:], 5e-5)


@torch.no_grad()
def test_conversations_of_a_batch_may_wait(model):
    """Catches a conversation that moves, or loses a frame, while another one's frame is
    computed."""
    inputs, cache = frames(model.config, 2, 12), flm.KVCache(model.config, 2, 20)
    full, found, at = model.hidden(*inputs), [[], []], [0, 0]
    for active in [(1, 1), (1, 0), (1, 0), (0, 1), (1, 1), (0, 1), (0, 1), (1, 1)]:
        cache.active.copy_(torch.tensor(active))
        h = model.hidden(*(torch.stack([x[b, at[b]:at[b] + 1] for b in (0, 1)]) for x in inputs), cache)
        for b in (0, 1):
            found[b] += [h[b]] * active[b]
            at[b] += active[b]
    for b in (0, 1):
        close(torch.cat(found[b]), full[b, :at[b]], 2e-5)


@pytest.mark.parametrize("change", [{}, {"depth_cmlp": False, "depth_bias": True}, {"depth_swiglu": False, "depth_rmsnorm": False}])
@torch.no_grad()
def test_depth_steps_equal_teacher_forcing(change):
    """Catches an off-by-one in the depth inputs, a stale cache row from the frame before, or a
    code seen before its time."""
    config = replace(flm.PRESETS["tiny"], num_hidden_layers=1, **change)
    torch.manual_seed(0)
    model = flm.init_weights(flm.FLM(config))
    cache = flm.depth_cache(config, 5)
    for _ in range(2):  # the second frame finds the first one's rows in the cache
        h, codes = torch.randn(5, 256), torch.randint(0, 513, (5, flm.K))
        full = model.depth_logits(h, codes[:, :-1])
        steps = [model.depth_logits(h, codes[:, :c], cache) for c in range(flm.K)]
        close(torch.cat(steps, 1), full, 2e-5)
        close(model.depth_logits(h, codes[:, :3]), full[:, :4], 2e-5)


@torch.no_grad()
def test_rows_of_a_batch_do_not_mix(model):
    """Catches a view that crosses batch and time."""
    inputs = frames(model.config, 3, 6)
    close(model.hidden(*inputs)[1:2], model.hidden(*(x[1:2] for x in inputs)), 2e-5)


def test_initial_weights_follow_the_seed_and_every_one_learns():
    """Catches parameters left without values, drawn from another generator, or cut off from the
    loss."""
    config = replace(flm.PRESETS["tiny"], num_hidden_layers=2)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(flm.init_weights(flm.FLM(config)))
    weights = [m.lm_head.weight for m in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert models[0].model.layers[0].mlp.down_proj.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert sum(parameters.count_parameters(models[0]).values()) == sum(p.numel() for p in models[0].parameters())
    h = models[0].hidden(*frames(config, 2, 4))
    depth = models[0].depth_logits(h.flatten(0, 1), torch.zeros(8, 7).long())
    (models[0].text_logits(h).logsumexp(-1).sum() + depth.logsumexp(-1).sum()).backward()
    assert [name for name, p in models[0].named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_save_and_load_round_trip(model, tmp_path, max_shard_bytes):
    """Catches a lost tensor or setting, and shards or an index left over from an earlier save."""
    model_files.save(model, tmp_path, 300_000)
    model_files.save(model, tmp_path, max_shard_bytes)
    assert not list(tmp_path.glob("*.part"))
    assert (tmp_path / "model.safetensors").exists() == (max_shard_bytes == 10**9) == (not list(tmp_path.glob("*index*")))
    again = model_files.load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_dtype(folder):
    """Catches a tensor that keeps the file's type, or a rotation in float32 that breaks a
    bfloat16 model."""
    model = model_files.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert model.hidden(*frames(model.config, 1, 3)).dtype == torch.bfloat16


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])


def lose_shard(folder):
    model_files.save(model_files.load(folder), folder, 300_000)
    next(folder.glob("model-00002-*")).unlink()


NAME = "model.norm.weight"


def lose_map(folder):
    lose_shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')


FAULTS = {
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop(NAME)), f"model.safetensors lacks the tensor {NAME}"),
    "extra tensor": (lambda f: rewrite(f, lambda t: t.update(more=torch.zeros(1))), "model.safetensors has a tensor more"),
    "shape": (lambda f: rewrite(f, lambda t: t.update({NAME: torch.zeros(31)})), rf"{NAME} is \[31\] and should be \[32\]"),
    "type": (lambda f: rewrite(f, lambda t: t.update({NAME: torch.zeros(32).int()})), f"{NAME} is torch.int32"),
    "truncated": (truncate, "model.safetensors cannot be read as safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no shard": (lose_shard, "model-00002-of-00003.safetensors is missing"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "unknown key": (lambda f: reconfigure(f, hiden_size=3), r"config.json: unknown model setting\(s\) hiden_size"),
    "missing group": (lambda f: reconfigure(f, aud_depthgpt={}), r"missing model setting\(s\) depth_layers, depth_heads"),
    "heads": (lambda f: reconfigure(f, num_attention_heads=3), "must be a multiple of num_key_value_heads"),
    "token": (lambda f: reconfigure(f, vocab_size=5), "wait_token must be an id below vocab_size 5, not 7"),
    "rope": (lambda f: reconfigure(f, rope_scaling={"type": "yarn"}), "rope_type must be 'mrope' or 'default', not 'yarn'"),
    "group": (lambda f: reconfigure(f, aud_depthgpt=3), "config.json: aud_depthgpt must be an object of settings, not 3"),
    "list": (lambda f: (f / "config.json").write_text("[1]"), "config.json: a configuration is an object of settings"),
    "whole": (lambda f: reconfigure(f, hidden_size=32.0), "hidden_size must be a whole number above 0, not 32.0"),
    "truth": (lambda f: reconfigure(f, num_hidden_layers=True), "num_hidden_layers must be a whole number above 0, not True"),
    "number": (lambda f: reconfigure(f, rope_theta="10000"), "rope_theta must be a number above 0, not '10000'"),
    "flag": (lambda f: reconfigure(f, attention_bias="no"), "attention_bias must be true or false, not 'no'"),
    "rope group": (lambda f: reconfigure(f, rope_scaling=[1]), "rope_scaling must be an object of settings"),
    "yarn by its newer name": (lambda f: reconfigure(f, rope_parameters={"rope_type": "yarn"}), "not 'yarn'"),
    "rows of training": (lambda f: reconfigure(f, trained_frames=0), "trained_frames must be a whole number above 0, not 0"),
    "not finite": (lambda f: rewrite(f, lambda t: t[NAME].fill_(float("nan"))), f"tensor {NAME} holds values that are no finite"),
    "index": (lose_map, "index.json has no weight_map"),
    "channels": (lambda f: reconfigure(f, aud_channel=4), "aud_channel must be 8, not 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_folder_is_one_sentence(folder, fault):
    """Catches a traceback, or a message that does not say which file and which tensor."""
    breaks, sentence = FAULTS[fault]
    breaks(folder)
    with pytest.raises(model_files.LoadError, match=sentence) as caught:
        model_files.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_path_is_one_sentence(folder):
    """Catches a path typed wrongly that is looked up on the Hub."""
    with pytest.raises(model_files.LoadError, match="does not exist, and is no Hub id"):
        model_files.load("no such folder")
    with pytest.raises(model_files.LoadError, match="is a file"):
        model_files.load(folder / "config.json")


@pytest.mark.parametrize("name", flm.PRESETS)
def test_config_round_trip(name):
    """Catches a field that is not written to, or read from, the release's format."""
    assert config_files.from_json(json.loads(json.dumps(config_files.to_json(flm.PRESETS[name])))) == flm.PRESETS[name]


def test_command_line(folder, capsys):
    """Catches a table whose parts do not sum, and a traceback for a broken folder."""
    parameters.main(["7b"])
    parameters.main([str(folder)])
    assert capsys.readouterr().out.split()[-2:] == ["166,168", "664,672"]
    truncate(folder)
    with pytest.raises(SystemExit, match="flm.py: .*cannot be read"):
        parameters.main([str(folder)])
