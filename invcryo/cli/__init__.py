"""The command line: ``invcryo COMMAND``, also ``python -m invcryo COMMAND``.

One module per command, each with ``add_parser`` and ``run``; what a command needs is imported when it runs, so
that ``invcryo --help`` is quick.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from .._version import __version__
from . import (
    convert,
    demo,
    doctor,
    external_reconstruct,
    fsc,
    info,
    local_resolution,
    mask,
    posterior,
    postprocess,
    reconstruct,
    refine,
    simulate,
    stet,
)
from .common import (
    EXIT_DONE,
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
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        args = parser.parse_args(words)
    except WrongUsage as error:
        error.show()
        Console(json="--json" in words).finish(
            {"command": error.command, "exit_code": EXIT_USAGE, "error": str(error)}
        )
        return EXIT_USAGE
    except SystemExit:  # --help, --version: argparse has said what there is to say
        return EXIT_DONE
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    console = Console(quiet=args.quiet, json=args.json, debug=args.debug)
    with console.listening(words, args.log):
        start = time.perf_counter()
        code, report = _run(args, words, console)
        logging.getLogger(__name__).info("exit code %d after %.1f s", code, time.perf_counter() - start)
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


class WrongUsage(Exception):
    """What argparse objects to."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self._parser = parser
        #: The command that was named, None if none was.
        self.command = parser.prog.partition(" ")[2] or None

    def show(self) -> None:
        """On standard error, as argparse does."""
        self._parser.print_usage(sys.stderr)
        print(f"{self._parser.prog}: error: {self}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUsage(self, message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
        refine,
        posterior,
        external_reconstruct,
        mask,
        fsc,
        postprocess,
        local_resolution,
        stet,
    ):
        module.add_parser(commands)
    for command in commands.choices.values():
        add_talking(command)
    return parser
