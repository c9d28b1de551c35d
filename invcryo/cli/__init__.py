"""The command line: ``invcryo COMMAND``, also ``python -m invcryo COMMAND``.

One module per command, each with ``add_parser`` and ``run``; what a command needs is imported when it runs, so
that ``invcryo --help`` is quick.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from .._version import __version__
from . import convert, demo, doctor, fsc, info, local_resolution, mask, postprocess, reconstruct, simulate
from .common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Aborted,
    Console,
    Interrupted,
    UsageError,
    add_talking,
    plain_message,
)

__all__ = ["main"]

_EPILOG = """\
start here:
  invcryo doctor                 is the installation sound?
  invcryo demo                   a small reconstruction, with pictures (about a minute)
  invcryo info particles.star    what is in a file?
  invcryo reconstruct particles.star -o run --half-maps

`invcryo COMMAND --help` explains each command, with an example.

exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` are the words after ``invcryo``."""
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help, --version, wrong usage: argparse has said what there is to say
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    console = Console(quiet=args.quiet, json=args.json, debug=args.debug)
    words = list(sys.argv[1:] if argv is None else argv)
    with console.listening():
        code, report = _run(args, words, console)
    console.finish({"command": args.command, "exit_code": code, **report})
    return code


def _run(args: argparse.Namespace, words: list[str], console: Console) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of a command, whatever happens in it."""
    try:
        return args.run(args, words, console)
    except UsageError as error:
        console.error(f"{error}\n(invcryo {args.command} --help explains the options)")
        return EXIT_USAGE, {"error": str(error)}
    except Interrupted as stop:
        console.error(str(stop))
        return EXIT_INTERRUPTED, {**stop.report, "error": str(stop)}
    except (KeyboardInterrupt, Aborted):
        message = "interrupted: nothing was written, earlier results are as they were"
        console.error(message)
        return EXIT_INTERRUPTED, {"error": message}
    except Exception as error:  # the last resort of a program: say it plainly, whatever it is
        if args.debug:
            traceback.print_exc()
        message = plain_message(error)
        console.error(message)
        return EXIT_FAILED, {"error": message}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="invcryo",
        description="Reconstruction in cryo-electron microscopy as an inverse problem.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"invcryo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for module in (
        doctor,
        demo,
        info,
        convert,
        simulate,
        reconstruct,
        mask,
        fsc,
        postprocess,
        local_resolution,
    ):
        module.add_parser(commands)
    for command in commands.choices.values():
        add_talking(command)
    return parser
