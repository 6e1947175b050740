"""The codec against the release's outputs, transformers' Mimi, and itself frame by frame."""
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import chat
import data
import mimi
from workshop import bench, codec_files, sound_file
from workshop.files import LoadError

REFERENCE = Path(__file__).parent / "reference"
EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = mimi.PRESETS["tiny"]


def close(found, expected, share=1e-4):
    """Equal to `share` of the expected peak."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= share * expected.abs().max(), f"{(found - expected).abs().max()} of {expected.abs().max()}"


@pytest.fixture(scope="module")
def reference():
    return codec_files.load(REFERENCE / "mimi_small"), load_file(REFERENCE / "mimi_small" / "golden.safetensors")


def random_codec(config, seed=0):
    torch.manual_seed(seed)
    return mimi.Mimi(config).eval().requires_grad_(False)


def test_reference_latent_codes_and_waveform(reference):
    """Catches any difference from the release's codec, wherever in it: latent, codes, waveform."""
    codec, golden = reference
    close(codec.to_latent(golden["audio"]), golden["latent"])
    assert torch.equal(codec.encode(golden["audio"]), golden["codes"])
    close(codec.decode(golden["codes"]), golden["decoded"])


def test_transformers_naming():
    """Catches a wrong map of names, and RoPE's other pairing, in checkpoints of kyutai/mimi on the Hub."""
    codec = codec_files.load(REFERENCE / "mimi_transformers")
    golden = load_file(REFERENCE / "mimi_transformers" / "golden.safetensors")
    assert torch.equal(codec.encode(golden["audio"]), golden["codes"])
    close(codec.decode(golden["codes"]), golden["decoded"])


def test_released_names_and_shapes():
    """Catches a preset that would not load the released file."""
    with torch.device("meta"):
        codec = mimi.Mimi(mimi.PRESETS["released"])
    wanted = json.loads((REFERENCE / "mimi_released_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in codec.state_dict().items()} == wanted


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("ends", ["seanet", "stft"])
def test_streaming_equals_offline(reference, ends, chunk):
    """Catches a past that is dropped, doubled or mixed up between the streams of a batch, and attention that forgets
    its window. 33 frames, more than either codec's context here."""
    codec = reference[0] if ends == "seanet" else random_codec(mimi.Config(**{**vars(TINY), "context": 20}))
    audio = 0.1 * torch.randn(3, 1, 33 * 1920, generator=torch.Generator().manual_seed(1))
    codes = codec.encode(audio)
    decoded = codec.decode(codes)
    with codec.streaming(3):
        streamed_codes = torch.cat([codec.encode(x) for x in audio.split(chunk * 1920, -1)], -1)
    with codec.streaming(3):
        streamed = torch.cat([codec.decode(x) for x in codes.split(chunk, -1)], -1)
    assert torch.equal(streamed_codes, codes)
    close(streamed, decoded)
    alone = codec.encode(audio[1:2])
    assert torch.equal(alone, codes[1:2])


def test_memory_is_constant_in_a_stream(reference):
    """Catches a state that grows: after its context is full, no state is larger a hundred frames later."""
    codec = reference[0]

    def held():
        return sum(t.numel() for m in codec.modules() if isinstance(m, mimi.Streaming) for t in m.state if isinstance(t, torch.Tensor))
    with codec.streaming(1):
        sizes = []
        for frames in (200, 100):
            for _ in range(frames):
                codec.decode(codec.encode(torch.zeros(1, 1, 1920)))
            sizes.append(held())
    assert sizes[0] == sizes[1] > 0


def test_a_day_later_a_stream_sounds_the_same(reference):
    """Catches positions that lose precision: the same frames, a day of steps later, give the same waveform to 1e-5, once
    what the stream began with is out of every layer's sight."""
    codec = reference[0]
    seen = codec.config.context * codec.config.num_layers
    codes = torch.randint(0, codec.config.codebook_size, (1, 8, seen // 2 + 10), generator=torch.Generator().manual_seed(4))
    sounds = []
    for steps_before in (0, 24 * 3600 * 25):
        with codec.streaming(1):
            codec.decoder_transformer.state[0][:] = steps_before
            sounds.append(torch.cat([codec.decode(frame) for frame in codes.split(1, -1)], -1)[..., -5 * 1920:])
    close(sounds[1], sounds[0], 1e-5)


@pytest.mark.parametrize("ends", ["seanet", "stft"])
def test_a_frame_can_be_compiled_whole(reference, ends):
    """Catches a look at a value, a count on the host, or a shape or address that changes: each would break a CUDA graph, or
    compile a frame anew. One of three streams stands still now and then, and one begins anew."""
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    codec = reference[0] if ends == "seanet" else random_codec(mimi.Config(**{**vars(TINY), "context": 20}))
    audio = 0.1 * torch.randn(3, 1, 30 * 1920, generator=torch.Generator().manual_seed(1))

    def frame(x):
        codes = codec.quantizer.encode(codec.to_latent(x))
        return codes, codec.from_latent(codec.quantizer.decode(codes))

    def streamed(run):
        heard, at = [[], [], []], [0, 0, 0]
        with codec.streaming(3), torch.inference_mode():
            places = [state.data_ptr() for m in codec.modules() for state in getattr(m, "state", None) or ()]
            for t in range(36):
                if t == 12:
                    codec.reset(1)
                    heard[1], at[1] = [], 0
                codec.active.copy_(torch.tensor([True, True, t % 3 > 0]))
                codes, sound = run(torch.stack([audio[i, :, at[i] % 30 * 1920:][:, :1920] for i in range(3)]))
                for i in codec.active.nonzero()[:, 0].tolist():
                    heard[i].append((codes[i], sound[i]))
                    at[i] += 1
            assert places == [state.data_ptr() for m in codec.modules() for state in getattr(m, "state", None) or ()]
        return [[torch.cat(part, -1) for part in zip(*stream)] for stream in heard]
    with torch.inference_mode():
        compiled = streamed(torch.compile(frame, fullgraph=True, dynamic=False, backend="aot_eager"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1
    for i, (found, eager) in enumerate(zip(compiled, streamed(frame))):
        assert torch.equal(found[0], eager[0])
        close(found[1], eager[1])
        n = min(30, found[0].shape[-1])
        assert torch.equal(found[0][:, :n], codec.encode(audio[i:i + 1, :, :n * 1920])[0]) and n > 20


@pytest.mark.parametrize("ends", ["shipped", "seanet"])
def test_long_sound_streams_as_it_encodes(reference, request, pytestconfig, ends):
    """Catches a drift of the streams in a long talk: attention past its window, a ring that turns, a
    phase that is lost. --long holds a minute; without it 8 s, which is past both windows.

    A code may differ where two are equally near and rounding decides, so latents are compared."""
    codec = reference[0] if ends == "seanet" else codec_files.load(request.getfixturevalue("shipped"))
    frames = 750 if pytestconfig.getoption("long") else 100
    assert frames > codec.config.context
    audio = sound_file.read_audio(EXAMPLES / "questions.flac").repeat(3)[:frames * 1920]
    audio = audio + 0.002 * torch.randn(len(audio), generator=torch.Generator().manual_seed(5))
    audio = audio[None, None]
    with torch.inference_mode():
        latent = codec.to_latent(audio)
        codes = codec.encode(audio)
        decoded = codec.decode(codes)
        with codec.streaming(1):
            latents = [codec.to_latent(frame) for frame in audio.split(1920, -1)]
        with codec.streaming(1):
            sounds = [codec.decode(frame) for frame in codes.split(1, -1)]
    streamed_latent = torch.cat(latents, -1)
    close(streamed_latent, latent)
    close(torch.cat(sounds, -1), decoded)
    differ = (codec.quantizer.encode(streamed_latent) != codes).any(1).sum().item()
    assert differ <= frames // 50, f"{differ} of {frames} frames have other codes"


def test_long_clips_go_piece_by_piece(reference, monkeypatch):
    """Catches a seam between the pieces of a long clip."""
    codec = reference[0]
    audio = 0.1 * torch.randn(1, 1, 70 * 1920 + 5, generator=torch.Generator().manual_seed(2))
    codes = codec.encode(audio)
    decoded = codec.decode(codes)
    monkeypatch.setattr(mimi, "LONG", 2)
    assert torch.equal(codec.encode(audio), codes) and codes.shape[-1] == 71
    close(codec.decode(codes), decoded)


def test_short_time_spectrum_lags_as_it_says():
    """Catches a lag that differs from `config.lag`: with the convolutions, the heads' spectrum of a known signal set by
    hand, what comes out is that signal, lag samples late."""
    decoder = mimi.STFTDecoder(TINY)
    audio = 0.1 * torch.randn(1, 20 * 960, generator=torch.Generator().manual_seed(3))
    past = torch.cat([torch.zeros(1, TINY.lag), audio], -1)
    spectrum = torch.fft.rfft(past.unfold(-1, TINY.window, TINY.hop) * torch.hann_window(TINY.window))
    heads = torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()], -1)
    decoder.convs, decoder.norms = torch.nn.ModuleList(), torch.nn.ModuleList()
    decoder.linear, decoder.head = torch.nn.Identity(), torch.nn.Identity()
    stacked = heads.unflatten(1, (-1, 4)).flatten(2).transpose(1, 2)
    y = decoder(stacked)[0]
    close(y[:, TINY.lag:], audio[:, :-TINY.lag], 1e-3)


def test_save_and_load(tmp_path):
    """Catches settings or weights that do not come back."""
    codec = random_codec(TINY)
    codec_files.save(codec, tmp_path)
    again, audio = codec_files.load(tmp_path), torch.randn(1, 1, 5 * 1920) * 0.1
    assert again.config == codec.config and torch.equal(again.encode(audio), codec.encode(audio))


def test_bad_codec_files_are_one_sentence(tmp_path):
    """Catches a traceback, or a silent random weight, where a codec file is not what it should be."""
    source = REFERENCE / "mimi_small"
    tensors = load_file(source / "mimi.safetensors")
    name = "quantizer.rvq_first.input_proj.weight"

    def attempt(change):
        (tmp_path / "mimi.json").write_text((source / "mimi.json").read_text())
        changed = dict(tensors)
        change(changed)
        save_file(changed, tmp_path / "mimi.safetensors")
        with pytest.raises(LoadError) as error:
            codec_files.load(tmp_path)
        assert "mimi.safetensors" in str(error.value) and "\n" not in str(error.value)
        return str(error.value)
    assert f"lacks the tensor {name}" in attempt(lambda t: t.pop(name))
    assert "has a tensor extra" in attempt(lambda t: t.update(extra=torch.zeros(1)))
    assert name in attempt(lambda t: t.update({name: torch.zeros(3, 3, 1)}))
    (tmp_path / "mimi.safetensors").write_bytes((source / "mimi.safetensors").read_bytes()[:5000])
    with pytest.raises(LoadError, match="cannot be read as safetensors"):
        codec_files.load(tmp_path)
    (tmp_path / "mimi.json").write_text(json.dumps({"unheard_of": 1}))
    with pytest.raises(ValueError, match="unheard_of"):
        codec_files.load(tmp_path)
    with pytest.raises(LoadError, match="does not exist, and is no Hub id"):
        codec_files.load("/nowhere")
    with pytest.raises(LoadError, match="holds no codec"):
        codec_files.load(tmp_path.parent)


def test_codes_that_no_codebook_has(reference):
    with pytest.raises(ValueError, match="codes must be 0 .."):
        reference[0].decode(torch.full((1, 8, 1), 10**6))


@pytest.mark.parametrize("settings, sentence", [
    ([1], "must be an object of settings"), ({"ratios": 3}, "ratios must be a list"), ({"codebook_size": "512"}, "codebook_size must be"),
    ({"hop": True}, "hop must be a number above 0"), ({"ends": 1}, "ends must be a text"), ({"frame_rate": 0}, "frame_rate must be")])
def test_settings_of_the_wrong_kind_are_one_sentence(tmp_path, settings, sentence):
    """Catches a traceback for a mimi.json that holds something else than a codec's settings."""
    codec_files.save(random_codec(TINY), tmp_path)
    values = json.loads((tmp_path / "mimi.json").read_text())
    (tmp_path / "mimi.json").write_text(json.dumps(values | settings if isinstance(settings, dict) else settings))
    with pytest.raises(LoadError, match=sentence):
        codec_files.load(tmp_path)


def test_a_transformers_config_without_a_setting_is_one_sentence(tmp_path):
    """Catches a KeyError for a config.json of transformers' Mimi that is not whole."""
    (tmp_path / "config.json").write_text('{"model_type": "mimi"}')
    with pytest.raises(LoadError, match="config.json lacks the setting 'num_filters'"):
        codec_files.load(tmp_path)


@pytest.mark.parametrize("change", [{"n_q_used": 4}, {"sample_rate": 12_000, "hop": 120}])
def test_a_codec_that_does_not_fit_the_language_model_is_one_sentence(tmp_path, untrained, change):
    """Catches a model folder whose codec makes other codes or frames than the language model reads:
    a crash in the first frame, or grids of wrong length that are written without a word."""
    folder = tmp_path / "model"
    shutil.copytree(untrained, folder)
    codec_files.save(random_codec(replace(TINY, **change)), folder)
    sentence = f"{folder}: the codec has {next(iter(change))} "
    assert codec_files.load(folder).config == replace(TINY, **change)
    bench_args = SimpleNamespace(random_weights=None, bits=16, codec_bits=32, model=folder,
                                 device="cpu", dtype=torch.float32)
    for load in (lambda: chat.Partner(folder, chat.Sampling()),
                 lambda: data.Encoder(folder),
                 lambda: data.Encoder(untrained, hearing=folder),
                 lambda: bench.subject(bench_args)):
        with pytest.raises(LoadError, match="the language model needs") as error:
            load()
        assert str(error.value).startswith(sentence)
