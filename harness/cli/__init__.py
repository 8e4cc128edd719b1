"""The `manyminds` command."""

import atexit
import io
import os
import sys


def main() -> None:
    """Run the `manyminds` command.

    Exit codes: 0 done, 1 some trials failed, 2 a user error, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
    """
    from harness.cli.interrupts import raising_interrupts

    for stream in (sys.stdout, sys.stderr):  # texts are UTF-8, whatever the locale says
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    with raising_interrupts() as received:
        try:
            from harness.cli.verbs import run_command_line

            status = run_command_line(sys.argv[1:])
        except BaseException:
            if not received:
                raise
        if received:  # also where a library has turned Interrupted into another exception, or into an exit
            print("interrupted: finished work is kept, and the same command continues from there", file=sys.stderr)
            end_at_once(128 + received[-1])
    sys.exit(status)


def end_at_once(status: int) -> None:
    """End the process without taking Python apart, during which threads of libraries in C++ may crash."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
