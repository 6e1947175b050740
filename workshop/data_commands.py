"""The commands of data.py: `import`, `transcribe`, `synth`, `references`, `check` and
`encode`.

What this is: one parser for all of them, and the one line that an error ends in. What this is not:
the commands themselves, each of which has a file of its own. Serves data.py.

    python data.py --help
"""
import argparse
import sys

from workshop import check, encoding, importers, references, synthesis, transcription


def main(arguments, settings_class, encode):
    """Run one command. settings_class, encode: data.Settings and data.encode."""
    parser = argparse.ArgumentParser(description="From recordings to token grids.",
                                     epilog="More: python data.py COMMAND --help")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    importers.add_command(commands)
    transcription.add_command(commands)
    synthesis.add_command(commands)
    references.add_command(commands)
    check.add_command(commands)
    encoding.add_command(commands, settings_class, encode)
    args = parser.parse_args(arguments)
    try:
        if getattr(args, "workers", 1) < 1:
            raise ValueError(f"--workers must be 1 or more, not {args.workers}")
        print(args.run(args))
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        sys.exit(f"data.py: {error}")
