"""The command line of eval.py.

What this is: its options, and the refusal of those that cannot be used together. What this is not:
what is measured (eval.py, which it serves).

    python eval.py --help
"""
import argparse
from pathlib import Path

from workshop.devices import check_device
from workshop.model_files import SHIPPED
from workshop.recogniser import check_packages


def make_parser(conversations):
    """conversations: the parts of --dialogs beside the questions themselves."""
    parser = argparse.ArgumentParser(
        description="Measure a model. Ask for one part or for many. OUT keeps every conversation, "
        "so that the same command goes on after a stop. The table holds the parts that a command "
        "names: to add one, repeat the options and name it too; nothing is held again.",
        epilog="OUT: results.txt (a table), results.json (value, n, low, high), results.png, "
        "failures.md, and every conversation, the user left, the model right.")
    add_conversation_options(parser, conversations)
    group = parser.add_argument_group("the paper's tables, for post-trained models, and others'")
    group.add_argument("--asr", type=Path, metavar="PATH",
                       help="recordings, heard in ASR style: errors of the monologue (Table 4); "
                       "a JSONL of pairs, or a test folder of LibriSpeech or FLEURS")
    group.add_argument("--asr-format", choices=("asr", "asr-response-tts"),
                       help="what the model's stage was trained on: an empty voice (asr), or a "
                       "silent one (default: as the run's checkpoints say, else asr)")
    group.add_argument("--qa", type=Path, metavar="CSV",
                       help="spoken questions with accepted answers (question, answer, audio; "
                       "LlamaQuestions and the like): answers that hold one (Table 4)")
    group.add_argument("--tts", type=Path, metavar="PATH",
                       help="texts, spoken in TTS style: errors of what --whisper hears (Table 5); "
                       "a JSONL of pairs, or meta.lst of Seed-TTS")
    group.add_argument("--tts-format", choices=("tts", "reference-tts"),
                       help="reference-tts: the references of meta.lst are heard first, as "
                       "--similarity needs it (default: as the run's grids say, else tts)")
    group.add_argument("--grids", nargs="+", default=[], metavar="FOLDER",
                       help="folders of data.py encode: teacher-forced loss by class")
    group.add_argument("--fdb", type=Path, metavar="FOLDER",
                       help="Full-Duplex-Bench 1.0 or 1.5: write output.wav beside each "
                       "input.wav, and clean_output.wav beside clean_input.wav")
    group.add_argument("--overwrite", action="store_true",
                       help="replace an output.wav that is there already")
    group = parser.add_argument_group("people compare two models (Table 6)")
    group.add_argument("--ab", nargs=2, type=Path, metavar=("A", "B"),
                       help="two folders of results: write a page of blind pairs to OUT/page")
    group.add_argument("--ab-sheets", nargs="+", type=Path, metavar="JSON",
                       help="what raters saved from OUT/page: points and intervals")
    add_run_options(parser)
    return parser


def add_conversation_options(parser, conversations):
    group = parser.add_argument_group(
        "conversation: questions alone, with a pause in them, interrupted, five in a row")
    group.add_argument("--dialogs", type=Path, metavar="JSONL",
                       help="dialogs of voices that the model was not trained on "
                       "(workshop/manifests.py has the format); their first turns are asked")
    group.add_argument("--only", nargs="+", choices=("questions", *conversations), metavar="PART",
                       help="of the questions alone and what may befall them, these parts: "
                       f"questions (which are always asked), {', '.join(conversations)}")
    group.add_argument("--backchannels", type=Path, metavar="FOLDER",
                       help="recordings of uh-huh and the like, spoken into answers")
    group.add_argument("--snr", type=float, nargs="+", default=[], metavar="DB",
                       help="ask the questions again, in noise so many dB below the voice")
    group.add_argument("--noise", nargs="+", default=[], metavar="FOLDER",
                       help="recordings for --snr (default: pink noise)")
    group.add_argument("--rooms", action="store_true",
                       help="ask the questions again, in made-up rooms")
    group.add_argument("--talk", type=float, default=10.0, metavar="MINUTES",
                       help="length of the long conversations that are full of "
                       "questions; questions after a hundred seconds of silence belong to them; "
                       "0 for neither (default: %(default)s)")
    group.add_argument("--leakage", type=float, nargs="+", default=[], metavar="GAIN",
                       help="ask the questions again, while the model hears itself at this gain")


def add_run_options(parser):
    group = parser.add_argument_group("how")
    group.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                       help="for results and conversations")
    group.add_argument("--model", default=SHIPPED,
                       help="folder or Hub id (default: the small model shipped here)")
    group.add_argument("--whisper", nargs="?", const="", metavar="MODEL",
                       help="transcribe what the model says: faster-whisper folder, size or "
                       "id, or paraformer-zh of funasr (default: a packaged Whisper tiny)")
    group.add_argument("--similarity", nargs="?", const="resemblyzer", metavar="MODEL",
                       help="compare the voice of --tts with its references (Table 5): "
                       "resemblyzer (default), or a WavLM for speakers by folder or Hub id")
    group.add_argument("--judge", nargs=2, metavar=("URL", "MODEL"),
                       help="have a language model grade answers from 0 to 10 (Table 6): an "
                       "endpoint of OpenAI's style, its key in OPENAI_API_KEY")
    group.add_argument("--judge-prompt", type=Path, metavar="FILE",
                       help="its prompt, with {question}, {reference} and {answer}")
    group.add_argument("--language", default="en",
                       help="language of the texts; zh counts characters (default: %(default)s)")
    group.add_argument("--most", type=int, metavar="N",
                       help="use at most N entries, evenly spaced (default: 200 of a JSONL, all of "
                       "another test set, and 100 pairs of --ab)")
    group.add_argument("--batch", type=int, default=32, metavar="N",
                       help="conversations at once (default: %(default)s)")
    group.add_argument("--plan", nargs="?", type=float, const=0.0, metavar="MS",
                       help="hold nothing: print conversations, frames and hours, with so many "
                       "milliseconds a step (default: timed on this machine)")
    group.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    group.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    group.add_argument("--bfloat16", action="store_true", help="weights in 16 bits, for GPUs")


def check(args):
    """Raise ValueError, one sentence, for options that cannot be used."""
    if args.batch < 1 or args.most is not None and args.most < 1:
        raise ValueError("--batch and --most must be 1 or more")
    if not 0 <= args.talk <= 600:
        raise ValueError(f"--talk must be 0 .. 600 minutes, not {args.talk:g}")
    for name, lowest, highest in (("snr", -100, 100), ("leakage", 0, 10)):
        for value in getattr(args, name):
            if not lowest <= value <= highest:
                raise ValueError(f"--{name} must be {lowest} .. {highest}, not {value}")
    for name in ("backchannels", "snr", "noise", "rooms", "leakage", "only"):
        if getattr(args, name) and not args.dialogs:
            raise ValueError(f"--{name} needs the questions of --dialogs")
    if args.judge and not (args.dialogs or args.qa):
        raise ValueError("--judge needs the questions of --dialogs or --qa")
    for name, other in (("noise", "snr"), ("judge_prompt", "judge"), ("overwrite", "fdb"),
                        ("asr_format", "asr"), ("tts_format", "tts")):
        if getattr(args, name) and not getattr(args, other):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} has no effect without --{other}")
    if args.similarity and not args.tts:
        raise ValueError("--similarity needs the references of --tts meta.lst")
    parts = (args.dialogs, args.qa, args.asr, args.tts, args.grids, args.fdb, args.ab,
              args.ab_sheets)
    if not any(parts):
        raise ValueError("nothing to measure: name --dialogs, --qa, --asr, --tts, --grids, --fdb "
                         "or --ab")
    if (args.ab or args.ab_sheets) and sum(map(bool, parts)) > 1:
        raise ValueError("--ab and --ab-sheets are commands of their own: name no other part")
    if args.plan is not None and (args.grids or args.ab or args.ab_sheets):
        raise ValueError("--plan counts conversations, and --grids and --ab hold none")
    if args.plan is not None and not 0 <= args.plan < 1e6:
        raise ValueError(f"--plan takes milliseconds of a step, not {args.plan:g}")
    if args.whisper is not None:
        check_packages(args.whisper)
    check_device(args.device)
