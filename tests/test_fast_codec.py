"""The codec's faster modules against those of mimi.py, frame by frame."""
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mimi
from workshop import codec_files, fast_codec, half_products, sound_file

REFERENCE = Path(__file__).parent / "reference"
EXAMPLES = Path(__file__).parent.parent / "examples"
FRAME = 1920


@pytest.fixture(params=["seanet", "stft"])
def pair(request):
    """A codec as it stands in mimi.py, and the same, prepared."""
    if request.param == "seanet":
        plain = codec_files.load(REFERENCE / "mimi_small")
    else:
        torch.manual_seed(0)
        config = replace(mimi.PRESETS["tiny"], context=20, conv_layers=2)
        plain = mimi.Mimi(config).eval().requires_grad_(False)
    return plain, fast_codec.prepare_for_streaming(deepcopy(plain))


def assert_close(sound, expected):
    """Equal to a ten-thousandth of the expected peak."""
    assert (sound - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.inference_mode()
def stream(codec, audio):
    """Three streams of audio [3, 1, N] -> codes and sound of every frame. One stream stands still
    now and then, and one begins anew."""
    codes = []
    sound = []
    with codec.streaming(3):
        for t, frame in enumerate(audio.split(FRAME, -1)):
            if t == 12:
                codec.reset(1)
            codec.active.copy_(torch.tensor([True, True, t % 3 > 0]))
            codes.append(codec.encode_chunk(frame))
            sound.append(codec.decode_chunk(codes[-1]))
    return torch.cat(codes, -1), torch.cat(sound, -1)


def test_a_prepared_codec_streams_as_the_plain_one(pair):
    """Catches a past that is dropped, doubled or mixed up in a faster module, a ring or a mask that
    is one step off, and a stream that does not stand still. 33 frames are past both contexts."""
    plain, fast = pair
    audio = 0.1 * torch.randn(3, 1, 33 * FRAME, generator=torch.Generator().manual_seed(1))
    codes, sound = stream(plain, audio)
    fast_codes, fast_sound = stream(fast, audio)
    assert torch.equal(fast_codes, codes)
    assert_close(fast_sound, sound)


def test_one_stream_takes_the_product_of_two_rows(pair):
    """Catches a wrong product for the two rows of a single conversation, which a batch never
    takes."""
    plain, fast = pair
    audio = 0.1 * torch.randn(1, 1, 8 * FRAME, generator=torch.Generator().manual_seed(2))
    codes = plain.encode(audio)
    decoded = plain.decode(codes)
    with fast.streaming(1):
        fast_codes = torch.cat([fast.encode(frame) for frame in audio.split(FRAME, -1)], -1)
    with fast.streaming(1):
        sound = torch.cat([fast.decode(frame) for frame in codes.split(1, -1)], -1)
    assert torch.equal(fast_codes, codes)
    assert_close(sound, decoded)


def test_a_prepared_codec_equals_the_release(pair):
    """Catches a faster module that differs from the release's outputs, in a stream or offline."""
    if pair[0].config.ends != "seanet":
        pytest.skip("the release has SEANet's ends alone")
    golden = load_file(REFERENCE / "mimi_small" / "golden.safetensors")
    codec = pair[1]
    assert torch.equal(codec.encode(golden["audio"]), golden["codes"])
    with codec.streaming(len(golden["audio"])):
        frames = golden["audio"].split(FRAME, -1)
        whole = [frame for frame in frames if frame.shape[-1] == FRAME]
        codes = torch.cat([codec.encode(frame) for frame in whole], -1)
    assert torch.equal(codes, golden["codes"][..., :len(whole)]) and len(whole) > 2
    with codec.streaming(len(golden["codes"])):
        sound = torch.cat([codec.decode(frame) for frame in golden["codes"].split(1, -1)], -1)
    assert_close(sound, golden["decoded"])


def test_preparing_changes_no_weight_and_copies_share_it(pair):
    """Catches weights that get other names or values, and a copy for another conversation that
    holds the packed weights a second time."""
    plain, fast = pair
    before = plain.state_dict()
    after = fast.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    copy = deepcopy(fast)
    assert copy.quantizer.tables is fast.quantizer.tables
    assert copy.upsample.matrix is fast.upsample.matrix
    matrices = zip(copy.decoder_transformer.matrices[0], fast.decoder_transformer.matrices[0])
    assert all(ours is theirs for ours, theirs in matrices)


def test_the_shipped_codec_prepared_hears_the_same(shipped):
    """Catches rounding in the faster modules that is more than rounding: of five seconds of
    speech, one frame at most gets another code."""
    plain = codec_files.load(shipped)
    fast = fast_codec.prepare_for_streaming(deepcopy(plain))
    audio = sound_file.read_audio(EXAMPLES / "questions.flac")[None, None, :60 * FRAME]
    codes = plain.encode(audio)
    with fast.streaming(1):
        fast_codes = torch.cat([fast.encode(frame) for frame in audio.split(FRAME, -1)], -1)
    assert (fast_codes != codes).any(1).sum() <= 1
    with fast.streaming(1):
        sound = torch.cat([fast.decode(frame) for frame in codes.split(1, -1)], -1)
    assert_close(sound, plain.decode(codes))


def test_rounded_weights_hear_nearly_the_same(shipped):
    """Catches --codec-bits 16 that rounds more than it says, or that leaves a matrix as it was, so
    that no product is faster."""
    codec = codec_files.load(shipped)
    torch.manual_seed(1)  # its training began with the numbers of seed 0
    for parameter in codec.parameters():  # numbers between those of float16
        parameter.data *= 1 + 2.0 ** -12 * (2 * torch.rand_like(parameter) - 1)
    rounded = deepcopy(codec)
    fast_codec.round_weights(rounded)
    fast = fast_codec.prepare_for_streaming(deepcopy(rounded))
    if half_products.available():
        assert all(matrix.half for layer in fast.decoder_transformer.matrices for matrix in layer)
    audio = sound_file.read_audio(EXAMPLES / "questions.flac")[None, None, :60 * FRAME]
    codes = codec.encode(audio)
    assert (rounded.encode(audio) == codes).float().mean() > 0.97
    sound = codec.decode(codes)
    assert (rounded.decode(codes) - sound).abs().max() < 0.005 * sound.abs().max()
