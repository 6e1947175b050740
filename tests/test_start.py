"""Where a model comes from: the release's folder and back to it, other language models, a
config.json alone, a tokenizer of one's own; and what lies beside the weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

import data
import eval as evaluation
import flm
import mimi
import train
from workshop import (
    beside,
    checkpoints,
    codec_files,
    config_files,
    gguf_files,
    model_files,
    shards,
    starting,
    tokenizer,
)

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "tests" / "reference"
# What the release's configuration class takes in its two groups; it stops at any other key there.
RELEASE_GROUPS = {
    "mm_token_info": {"text_wait_token_id", "aud_pad_token_id", "aud_emp_token_id"},
    "aud_depthgpt": {
        "n_layer",
        "n_head",
        "n_embd",
        "dropout",
        "bias",
        "use_cmlp",
        "use_rmsnorm",
        "use_swiglu",
        "block_size",
        "vocab_size",
        "main_hidden_size",
        "pad_token_id",
    },
}
WAIT = 337  # of the made-up release: any row behind the tokenizer's last


def small(**changes):
    return replace(
        flm.PRESETS["tiny"],
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        depth_layers=1,
        depth_dim=32,
        head_dim=None,
        **changes,
    )


def qwen_tokenizer(folder, size=300):
    """A byte-level tokenizer as Qwen's: words of bytes, then special tokens, and rows that are
    free."""
    words = tokenizer.learn(["who are you", "I am Joe", "what is your name"] * 9, size)
    values = json.loads(words.to_str())
    names = {"<wait>": "<|endoftext|>", "<asr>": "<|im_start|>", "<answer>": "<|im_end|>"}
    values["model"]["vocab"] = {
        names.get(word, word): i for word, i in values["model"]["vocab"].items()
    }
    for token in values["added_tokens"]:
        token["content"] = names[token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(values))


def write_codec(folder, naming):
    """A miniature codec, with tensors named as Moshi's or as transformers'."""
    if naming == "moshi":
        codec_files.save(
            mimi.Mimi(mimi.Config(**{**vars(mimi.PRESETS["tiny"]), "num_layers": 1})), folder
        )
        return
    source = REFERENCE / "mimi_transformers"
    settings = codec_files.from_transformers_settings(
        json.loads((source / "config.json").read_text())
    )
    (folder / "mimi.json").write_text(json.dumps(vars(settings)))
    shutil.copy(source / "model.safetensors", folder / "mimi.safetensors")


def write_pairs(folder):
    for name in ("q", "a"):
        soundfile.write(
            folder / f"{name}.wav",
            (0.3 * np.sin(np.arange(12_000) * 0.05)).astype(np.float32),
            24_000,
        )
    turn = {
        "heard": "q.wav",
        "transcript": "who are you",
        "spoken": "a.wav",
        "response": "I am Joe",
    }
    (folder / "dialogs.jsonl").write_text("\n".join([json.dumps({"turns": [turn]})] * 4))
    pair = {"audio": "q.wav", "text": "who are you"}
    (folder / "pairs.jsonl").write_text("\n".join([json.dumps(pair)] * 2))


def write_release(folder, naming):
    """A folder as the release's: its keys in config.json and no others, weights in bfloat16, no
    <asr>, no <answer>."""
    folder.mkdir()
    write_codec(folder, naming)
    entries = json.loads((folder / "mimi.json").read_text())["codebook_size"]
    values = {
        "vocab_size": 340,
        "aud_vocab_size": entries + 1,
        "aud_channel": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "attention_bias": True,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
        "disable_att_o_bias": True,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_mup": False,
        "input_mult": 1.0,
        "output_mult": 1.0,
        "mup_scale_factor": 1.0,
        "mm_token_info": {
            "text_wait_token_id": WAIT,
            "aud_pad_token_id": entries,
            "aud_emp_token_id": entries,
        },
        "aud_depthgpt": {
            "n_layer": 1,
            "n_head": 4,
            "n_embd": 32,
            "dropout": 0.0,
            "bias": False,
            "use_cmlp": True,
            "use_rmsnorm": True,
            "use_swiglu": True,
        },
    }
    torch.manual_seed(0)
    model = flm.init_weights(flm.FLM(config_files.from_json(values)))
    save_file(
        {name: tensor.bfloat16() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(values))
    qwen_tokenizer(folder)


@pytest.mark.parametrize("naming", ["moshi", "transformers"])
def test_the_release_is_encoded_for_trained_measured_exported_and_read_again(
    tmp_path, naming, capsys
):
    """Catches any step that needs an id which the release does not name, and an export that the
    release's own configuration class refuses."""
    release, out = tmp_path / "release", tmp_path / "out"
    write_release(release, naming)
    write_pairs(tmp_path)
    data.main(
        [
            "encode",
            str(tmp_path / "dialogs.jsonl"),
            str(tmp_path / "grids"),
            "--format",
            "asr-response-tts",
            "--model",
            str(release),
            "--workers",
            "1",
        ]
    )
    grid = shards.Shard(next((tmp_path / "grids").glob("*.safetensors")))[0]
    text = grid.text.tolist()
    assert (
        text[0] == WAIT and text.count(338) == text.count(339) == 1
    )  # <asr>, <answer>: the last rows
    transcript = text[text.index(338) + 1 : text.index(339)]
    assert data.Encoder(release).tokenizer.decode(transcript) == "who are you"
    train.main(
        [
            "run",
            str(tmp_path / "grids"),
            "--init",
            str(release),
            "--out",
            str(out),
            "--stage",
            "fine-tuning-1",
            "--epochs",
            "4",
            "--batch",
            "4",
            "--length",
            "256",
            "--lr",
            "1e-3",
            "1e-3",
        ]
    )
    assert "cannot talk" not in capsys.readouterr().out
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 4 and steps[-1]["loss"] < steps[0]["loss"]
    evaluation.main(
        [
            "--grids",
            str(tmp_path / "grids"),
            "--asr",
            str(tmp_path / "pairs.jsonl"),
            "--model",
            str(out),
            "--out",
            str(tmp_path / "eval"),
        ]
    )
    train.main(["export", str(out), str(tmp_path / "back"), "--dtype", "bfloat16"])
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    for group, keys in RELEASE_GROUPS.items():
        assert values[group].keys() <= keys
    before = model_files.read_config(release)
    assert replace(model_files.read_config(tmp_path / "back"), trained_frames=None) == before
    assert (
        load_file(tmp_path / "back" / "model.safetensors").keys()
        == load_file(release / "model.safetensors").keys()
    )
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (
        release / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize("name", flm.PRESETS)
def test_groups_hold_only_keys_of_the_release(name):
    """Catches a key of ours in a group that the release checks: nothing that we export would load
    in its code."""
    values = config_files.to_json(flm.PRESETS[name])
    for group, keys in RELEASE_GROUPS.items():
        assert values[group].keys() <= keys


def test_the_shipped_folder_has_groups_that_the_release_reads():
    """Catches a shipped model that the release's own code cannot open."""
    values = json.loads((ROOT / "tiny" / "model" / "config.json").read_text())
    for group, keys in RELEASE_GROUPS.items():
        assert values[group].keys() <= keys


def test_older_folders_of_ours_are_read():
    """Catches folders that have <asr> and <answer> in mm_token_info, as ours did, read with other
    ids."""
    config = replace(flm.PRESETS["tiny"], asr_token=12, answer_token=13)
    values = config_files.to_json(config)
    for key in ("text_asr_token_id", "text_answer_token_id"):
        values["mm_token_info"][key] = values.pop(key)
    assert config_files.from_json(values) == config


def test_free_rows_are_the_last_but_wait():
    """Catches <asr> or <answer> in the row of <wait>, or of each other."""
    rows = {}
    for wait in (5, 22, 23, 21):
        config = replace(small(vocab_size=24), wait_token=wait, asr_token=None, answer_token=None)
        rows[wait] = (config.asr_token, config.answer_token)
    assert rows == {5: (22, 23), 22: (21, 23), 23: (21, 22), 21: (22, 23)}
    config = replace(small(vocab_size=24), wait_token=5, asr_token=23, answer_token=None)
    assert config.answer_token == 22
    with pytest.raises(ValueError, match="must be different ids"):
        replace(config, answer_token=5)


def test_a_tokenizer_without_free_rows_is_refused(tmp_path):
    """Catches words that stand for <asr> without anybody having said so."""
    write_release(tmp_path / "release", "moshi")
    values = json.loads((tmp_path / "release" / "config.json").read_text())
    values["vocab_size"] = 1 + max(
        json.loads((tmp_path / "release" / "tokenizer.json").read_text())["model"][
            "vocab"
        ].values()
    )
    values["mm_token_info"]["text_wait_token_id"] = 0
    (tmp_path / "release" / "config.json").write_text(json.dumps(values))
    write_pairs(tmp_path)
    with pytest.raises(SystemExit, match="<asr> has no row of its own"):
        data.main(
            [
                "encode",
                str(tmp_path / "pairs.jsonl"),
                str(tmp_path / "g"),
                "--format",
                "asr",
                "--model",
                str(tmp_path / "release"),
            ]
        )


# --- starts ---


def test_a_preset_takes_the_ids_of_the_folder_beside(tmp_path, monkeypatch):
    """Catches --qwen with grids encoded for the release: its <wait> is another row than the
    preset's."""
    write_release(tmp_path / "release", "moshi")
    monkeypatch.setitem(flm.PRESETS, "small", small(vocab_size=340, wait_token=300))
    config = starting.fresh_config("small", tmp_path / "release")
    assert (config.wait_token, config.asr_token, config.answer_token) == (WAIT, 338, 339)
    assert starting.fresh_config("small").wait_token == 300
    assert starting.fresh_config("small", REFERENCE / "qwen_small").wait_token == 300
    # Catches a run that goes on with other special ids, since --beside may change.
    before, now = config_files.to_json(config), config_files.to_json(starting.fresh_config("small"))
    with pytest.raises(checkpoints.CheckpointError, match=f"with wait_token {WAIT} and not 300"):
        checkpoints.check_same_model(tmp_path, before, now)
    monkeypatch.setitem(flm.PRESETS, "small", small(vocab_size=330, wait_token=300))
    with pytest.raises(
        starting.StartError, match="special ids of .*release.config.json do not fit"
    ):
        starting.fresh_config("small", tmp_path / "release")


def test_a_config_alone_starts_with_fresh_weights(tmp_path):
    """Catches a folder, or a file, with a config.json alone that is refused for its missing
    weights; with --qwen these fill it; and a folder that has weights does not start anew."""
    config = replace(
        small(vocab_size=97),
        num_attention_heads=4,
        intermediate_size=56,
        rope_theta=10_000.0,
        wait_token=90,
    )
    (tmp_path / "start").mkdir()
    file = tmp_path / "start" / "config.json"
    file.write_text(json.dumps(config_files.to_json(config)))
    for init in (tmp_path / "start", file):
        model = starting.starting_model(str(init), None, seed=3)
        assert model.config == config
        filled = starting.starting_model(str(init), str(REFERENCE / "qwen_small"), seed=3)
        assert not torch.equal(filled.lm_head.weight, model.lm_head.weight)
    model_files.save(model, tmp_path / "start")
    again = starting.starting_model(str(tmp_path / "start"), None, seed=4)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    with pytest.raises(starting.StartError, match="--qwen fills a model without weights"):
        starting.starting_model(str(tmp_path / "start"), str(REFERENCE / "qwen_small"), seed=3)


def test_a_tokenizer_of_no_text_is_refused(tmp_path, capsys):
    """Catches a model of one's own language that has learned no word of it, from an empty file."""
    (tmp_path / "texts.txt").write_text("\n  \n")
    with pytest.raises(SystemExit, match="there is no text in .*texts.txt"):
        train.main(["tokenizer", str(tmp_path / "texts.txt"), str(tmp_path / "start")])
    assert not (tmp_path / "start").exists()


def test_what_is_lacking_beside_is_said_before_training(tmp_path, monkeypatch, capsys):
    """Catches a model trained for days that cannot talk; and an export that cannot lay beside
    what a run did not have."""
    write_release(tmp_path / "release", "moshi")
    write_pairs(tmp_path)
    data.main(
        [
            "encode",
            str(tmp_path / "dialogs.jsonl"),
            str(tmp_path / "grids"),
            "--format",
            "response-tts",
            "--model",
            str(tmp_path / "release"),
            "--workers",
            "1",
        ]
    )
    monkeypatch.setitem(flm.PRESETS, "small", small(vocab_size=340, wait_token=WAIT))
    outputs = []
    monkeypatch.setattr(train, "take_steps", lambda run: outputs.append(capsys.readouterr().out))
    command = [
        "run",
        str(tmp_path / "grids"),
        "--init",
        "small",
        "--out",
        str(tmp_path / "out"),
        "--length",
        "256",
        "--epochs",
        "1",
        "--batch",
        "4",
    ]
    with pytest.raises(SystemExit, match="130"):
        train.main(command)
    assert "there is no tokenizer and no codec to lay beside" in outputs[0]
    with pytest.raises(SystemExit, match="130"):
        train.main([*command, "--beside", str(tmp_path / "release")])
    assert "to lay beside" not in outputs[1]
    monkeypatch.undo()
    monkeypatch.setitem(flm.PRESETS, "small", small(vocab_size=340, wait_token=WAIT))
    train.main(command)
    assert "has no tokenizer and no codec and cannot talk" in capsys.readouterr().out
    train.main(
        [
            "export",
            str(tmp_path / "out"),
            str(tmp_path / "m"),
            "--beside",
            str(tmp_path / "release"),
        ]
    )
    none = str(tmp_path / "none")
    with pytest.raises(SystemExit, match="none does not exist"):
        train.main(["export", str(tmp_path / "out"), str(tmp_path / "n"), "--beside", none])
    assert {"tokenizer.json", "mimi.json", "mimi.safetensors"} <= {
        path.name for path in (tmp_path / "m").iterdir()
    }


def test_what_lies_beside_comes_from_the_first_folder_that_has_it(tmp_path):
    """Catches a codec of two folders, an export that needs the folder which a run started from, and
    files that a later folder overwrites."""
    for name, files in {
        "first": ("tokenizer.json",),
        "second": ("tokenizer.json", "mimi.json", "mimi.safetensors"),
        "third": ("tokenizer-e351c8d8-checkpoint125.safetensors", "sampling.json"),
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    names = [str(tmp_path / name) for name in ("first", "gone", "second", "third")]
    (tmp_path / "out").mkdir()
    beside.lay(beside.sources(*names, "tiny"), tmp_path / "out")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "tokenizer.json": "first",
        "mimi.json": "second",
        "mimi.safetensors": "second",
        "sampling.json": "third",
    }
    assert beside.lacking([tmp_path / "first"]) == ["codec"]


def test_a_new_codec_takes_the_place_of_the_old(tmp_path):
    """Catches an export with --beside that leaves the codec of an export before it in force: a
    folder with mimi.json is read by that."""
    moshi = "tokenizer-e351c8d8-checkpoint125.safetensors"
    for name, files in {"small": ("mimi.json", "mimi.safetensors"), "release": (moshi,)}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    out = tmp_path / "out"
    out.mkdir()
    (out / "sampling.json").write_text("mine")
    beside.lay([tmp_path / "small"], out)
    beside.lay([tmp_path / "release"], out)
    assert {path.name for path in out.iterdir()} == {moshi, "sampling.json"}
    beside.lay([out, tmp_path / "small"], out)
    assert {path.name for path in out.iterdir()} == {moshi, "sampling.json"}


def test_files_with_names_like_weights_stay(tmp_path):
    """Catches a save that deletes what it did not write, such as a copy that somebody made; and old
    shards that stay and are read in place of the new weights."""
    model = flm.init_weights(flm.FLM(small(vocab_size=40)))
    model_files.save(model, tmp_path, 30_000)
    index = json.loads((tmp_path / model_files.INDEX).read_text())
    shards = set(index["weight_map"].values())
    mine = {"model-mine.safetensors", "model.safetensors.bak", "model-old.safetensors.index.json"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    renamed = {"first.safetensors", *shards} - {min(shards)}
    (tmp_path / min(shards)).rename(tmp_path / "first.safetensors")
    index["weight_map"] = {
        name: "first.safetensors" if file == min(shards) else file
        for name, file in index["weight_map"].items()
    }
    (tmp_path / model_files.INDEX).write_text(json.dumps(index))
    model_files.load(tmp_path)
    model_files.save(model, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", *mine} and not names & renamed
    (tmp_path / "start").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "start" / "config.json")
    (tmp_path / "model-mine.safetensors").rename(tmp_path / "start" / "model-mine.safetensors")
    assert starting.fresh_config(str(tmp_path / "start")) == model.config


# --- a tokenizer of one's own ---


def test_a_tokenizer_reads_what_check_accepts(tmp_path):
    """Catches a manifest with an empty line or a byte-order mark that data.py reads and the
    tokenizer refuses."""
    file = tmp_path / "m.jsonl"
    file.write_text('\ufeff{"audio": "a.wav", "text": "one"}\r\n\n{"text": "two"}', encoding="utf-8")
    assert list(tokenizer.read_texts([file])) == ["one", "two"]
    (tmp_path / "t.txt").write_text("\ufeffone\u2028half\r\ntwo", encoding="utf-8")
    assert list(tokenizer.read_texts([tmp_path / "t.txt"])) == ["one\u2028half", "two"]


def test_a_tokenizer_for_another_language(tmp_path, capsys):
    """Catches a tokenizer to which some text is unknown, special ids that words have, and a
    config.json that does not fit."""
    (tmp_path / "texts.txt").write_text(
        "Wie heißt die Hauptstadt von Österreich?\nSie heißt Wien.\n" * 30
    )
    (tmp_path / "dialogs.jsonl").write_text(
        json.dumps({"turns": [{"transcript": "你好吗", "response": "我很好"}] * 30})
    )
    write_codec(tmp_path, "moshi")
    out = tmp_path / "start"
    train.main(
        [
            "tokenizer",
            str(tmp_path / "texts.txt"),
            str(tmp_path / "dialogs.jsonl"),
            str(out),
            "--size",
            "320",
            "--codec",
            str(tmp_path),
        ]
    )
    assert "<wait> 0, <asr> 1, <answer> 2" in capsys.readouterr().out
    encoder = data.Encoder(out)
    text = "Wien <wait> heißt 你好吗 – naïve 🙂"
    ids = encoder.words(text.replace("<wait>", ""))
    assert not {0, 1, 2} & set(ids) and encoder.tokenizer.decode(ids) == text.replace(
        "<wait>", ""
    )
    assert len(encoder.words(" Österreich")) < 4 and len(encoder.words("你好吗")) < 4
    config = model_files.read_config(out)
    assert (
        config.aud_vocab_size == 513 and config.vocab_size == encoder.tokenizer.get_vocab_size()
    )
    assert starting.fresh_config(str(out)) == config
    with pytest.raises(SystemExit, match="tokenizer.json is there already"):
        train.main(["tokenizer", str(tmp_path / "texts.txt"), str(out)])
    with pytest.raises(SystemExit, match="--size must be 259 or more, not 100"):
        train.main(
            ["tokenizer", str(tmp_path / "texts.txt"), str(tmp_path / "x"), "--size", "100"]
        )
    with pytest.raises(SystemExit, match="none.txt cannot be read: No such file"):
        train.main(
            [
                "tokenizer",
                str(tmp_path / "texts.txt"),
                str(tmp_path / "none.txt"),
                str(tmp_path / "x"),
            ]
        )
    assert not (tmp_path / "x").exists()


def test_a_folder_is_whole_or_can_be_made_again(tmp_path, monkeypatch):
    """Catches a codec without weights that is taken for one, and a first try that failed and after
    which the second is refused."""
    (tmp_path / "texts.txt").write_text("who are you")
    write_codec(tmp_path, "moshi")
    weights = tmp_path / "mimi.safetensors"
    weights.rename(tmp_path / "away")
    command = ["tokenizer", str(tmp_path / "texts.txt"), str(tmp_path / "start")]
    command += ["--codec", str(tmp_path)]
    with pytest.raises(SystemExit, match="mimi.safetensors is missing, and .* is no codec"):
        train.main(command)
    assert not (tmp_path / "start").exists()
    (tmp_path / "away").rename(weights)

    def fail(source, target):
        raise OSError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfile", fail)
        with pytest.raises(SystemExit, match="No space left"):
            train.main(command)
    train.main(command)
    assert data.Encoder(tmp_path / "start").words("who")


def test_the_codec_of_transformers_is_laid_under_its_own_name(tmp_path):
    """Catches kyutai/mimi given as --codec: its files have the names of a language model's, and the
    folder would be left without a codec, or with weights of another kind."""
    codec = REFERENCE / "mimi_transformers"
    (tmp_path / "start").mkdir()
    tokenizer.lay_codec(codec, tmp_path / "start")
    assert {path.name for path in (tmp_path / "start").iterdir()} == {
        "mimi.json",
        "mimi.safetensors",
    }
    audio = torch.randn(1, 1, 3840)
    ours = codec_files.load(tmp_path / "start").encode(audio)
    assert torch.equal(ours, codec_files.load(codec).encode(audio))


def test_a_folder_to_start_from_another_language_model(tmp_path):
    """Catches <wait>, <asr> and <answer> in rows that the other model's tokenizer has, or outside
    the vocabulary."""
    source = tmp_path / "qwen"
    shutil.copytree(REFERENCE / "qwen_small", source)
    values = json.loads((source / "config.json").read_text())
    qwen_tokenizer(source, 260)
    rows = 1 + max(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"].values())
    (source / "config.json").write_text(json.dumps(values | {"vocab_size": rows}))
    tensors = load_file(source / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.randn(rows, 32)
    save_file(tensors, source / "model.safetensors")
    write_codec(tmp_path, "moshi")
    config = tokenizer.make([str(source)], tmp_path / "start", None, "tiny", tmp_path)
    with pytest.raises(tokenizer.TokenizerError, match="--size is for a tokenizer of texts"):
        tokenizer.make([str(source)], tmp_path / "x", 4096, "tiny", tmp_path)
    assert [config.wait_token, config.asr_token, config.answer_token] == [
        rows,
        rows + 1,
        rows + 2,
    ]
    model = starting.starting_model(str(tmp_path / "start"), str(source), seed=0)
    assert torch.equal(model.lm_head.weight[:rows], tensors["lm_head.weight"])
    assert data.Encoder(tmp_path / "start").words("who are you")


def test_the_tokenizer_of_a_gguf_file(tmp_path):
    """Catches ids of a GGUF file's tokenizer that are not those of the tokenizer.json which it was
    made from, marks of the chat that text cannot write any more, and words in rows that are free."""
    gguf = pytest.importorskip("gguf")
    qwen_tokenizer(tmp_path, 300)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    rows = {i: word for word, i in values["model"]["vocab"].items()}
    size = len(rows)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*(rows[i] for i in range(size)), "[PAD]"])
    writer.add_token_types([3, 3, 3, *[1] * (size - 3), 5])
    writer.add_token_merges([" ".join(pair) for pair in values["model"]["merges"]])
    writer.add_tensor("token_embd.weight", np.zeros((size + 1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = gguf_files.Checkpoint(tmp_path / "x.gguf").tokenizer()
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("who are you, Joe?", "[PAD] 12 naïve 你好\n\n", "<|im_start|>I am<|im_end|>"):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
    assert ours.get_vocab_size() == size


def test_words_are_cut_as_qwen_and_smollm_cut_them():
    """Catches a tokenizer of a GGUF file that cuts words elsewhere than its model was trained
    with."""
    expected = {
        "qwen2": ["I", "'ll", "Ġpay", "Ġ", "1", "2", "!Ċ", "ĠOk"],
        "smollm": ["I", "'ll", "Ġpay", "Ġ", "1", "2", "!", "Ċ", "ĠOk"],
    }
    for words, pieces in expected.items():
        bpe = Tokenizer(models.BPE())
        gguf_files.cut_words(bpe, words)
        assert [
            piece for piece, _ in bpe.pre_tokenizer.pre_tokenize_str("I'll pay 12!\n Ok")
        ] == pieces
