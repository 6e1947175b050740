"""A model folder as one talks with it: language model, codec and tokenizer, which fit each other.

What this is: what chat.py's Partner and bench load. It serves chat.py. What this is not: the files
of the language model (model_files.py) or of the codec (codec_files.py).

    python chat.py --model FOLDER --in question.wav --out answer.wav
"""
from copy import deepcopy

from flm import K
from workshop import codec_files, fast_codec, model_files, quantize


def read(folder, device, dtype, bits=16, codec_bits=32):
    """A folder or Hub id -> (flm.FLM, mimi.Mimi, Tokenizer). bits: of a weight, 16, 8 or 4;
    codec_bits: of a weight of the codec, 32 or 16.

    Raises model_files.LoadError, one sentence."""
    folder = model_files.resolve(folder)
    model = model_files.load(folder, device, dtype, quantize.packing(bits)).eval()
    codec = codec_files.load(folder, device, K)
    if codec_bits == 16:
        fast_codec.round_weights(codec)
    codec = fast_codec.prepare_for_streaming(codec)
    tokenizer = model_files.read_tokenizer(folder)
    ids = model.config.aud_vocab_size
    entries = codec.config.codebook_size
    if ids <= entries:
        raise model_files.LoadError(f"{folder}: the model has {ids} audio ids, too few for a "
                                    f"codec of {entries}")
    return model, codec, tokenizer


def with_streams_of_its_own(codec, batch, compiled=False):
    """A codec that shares its weights with this one, and has streams of its own. compiled: it will
    be compiled, and consists of what the compiler takes."""
    shared = {id(tensor): tensor for tensor in (*codec.parameters(), *codec.buffers())}
    own = deepcopy(codec, shared)
    if compiled:
        own = fast_codec.plain(own)
    own.start(batch)
    return own
