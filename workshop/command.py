"""What every command line does alike when somebody stops it, or when nobody reads what it prints.

What this is: Ctrl-C as one line and exit code 130, also while PyTorch is being imported, which
takes seconds; and no traceback behind `| head`. It serves every root file that is a command. What
this is not: the commands' own errors.

    python stream.py | head -1
"""
import os
import signal
import sys

STOPPED = 128 + signal.SIGINT      # what a shell reports of a program that Ctrl-C ended
UNREAD = 128 + getattr(signal, "SIGPIPE", 13)
stops = []                         # the sentences of note_stop


def stop_while_loading(name):
    """From here on until `run`, Ctrl-C ends the program at once. For the time of the imports."""
    def stop(*_):
        print(f"\n{name}: stopped", file=sys.stderr, flush=True)
        os._exit(STOPPED)
    signal.signal(signal.SIGINT, stop)


def run(name, main, stopped="stopped"):
    """Call `main`, the function of a command, and end the program as a command should.

    stopped: what is printed after a Ctrl-C, such as how to go on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
        if stops:
            sys.exit(STOPPED)
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(STOPPED)
    except BrokenPipeError:
        _print_to_nobody()  # or Python complains when it flushes at its end
        sys.exit(UNREAD)


def note_stop(sentence):
    """A Ctrl-C ends the work early, and what is there is still put away: say so, and let `run` end
    with the exit code of a program that was stopped."""
    print(f"\n{sentence}", file=sys.stderr)
    stops.append(sentence)


def print_while_read(*values, **options):
    """`print`, for what goes on when nobody reads any more: an answer is still written to its
    file."""
    try:
        print(*values, **options)
    except BrokenPipeError:
        _print_to_nobody()


def _print_to_nobody():
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
