"""What the codec keeps of a voice: a sound file encoded, decoded, and written.

What this is: the command line of mimi.py. What this is not: the codec (mimi.py), or the reading and
writing of sound (sound_file.py).

    python mimi.py voice.mp3 again.flac
"""
import argparse
import sys
from pathlib import Path

from workshop import codec_files, sound_file
from workshop.model_files import SHIPPED


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="mimi.py",
        description="Encode a sound file and decode it again: what the codec keeps of it.")
    parser.add_argument("source", type=Path, help="any format and rate that soundfile reads")
    parser.add_argument("target", type=Path,
                        help=f"file to write, of one of {' '.join(sound_file.FORMATS)}")
    parser.add_argument("--overwrite", action="store_true", help="replace a target that exists")
    parser.add_argument("--model", default=SHIPPED,
                        help="folder, file or Hub id (default: tiny/model)")
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parse(arguments)
    try:
        sound_file.check_target(args.target, args.overwrite, [args.source])
        codec = codec_files.load(args.model)
        sample_rate = codec.config.sample_rate
        audio = sound_file.read_audio(args.source, sample_rate)
        codes = codec.encode(audio[None, None])  # [1, K, T]
        decoded = codec.decode(codes)[0, 0]
        sound_file.write_audio(args.target, decoded, sample_rate)
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        sys.exit(f"mimi.py: {error}")
    first = " ".join(str(code) for code in codes[0, 0, :12].tolist())
    print(f"{codes.shape[2]} frames of {codes.shape[1]} codes; codebook 0: {first} ...")
