"""The `manyminds` command."""

import io
import sys


def main() -> None:
    """Run the `manyminds` command.

    Exit codes: 0 done, 1 some trials failed, 2 a user error, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
    """
    from harness.cli.interrupts import Interrupted, raising_interrupts

    for stream in (sys.stdout, sys.stderr):  # texts are UTF-8, whatever the locale says
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    with raising_interrupts() as received:
        try:
            from harness.cli.verbs import run_command_line

            status = run_command_line(sys.argv[1:])
        except Interrupted:
            status = 0
        if received:  # also where a library has turned the exception into another one
            print("interrupted: finished work is kept, and the same command continues from there", file=sys.stderr)
            status = 128 + received[-1]
    sys.exit(status)
