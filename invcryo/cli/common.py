"""What the commands share: talking to the user, interruption, option types."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .runlog import RunLog

#: Under this name the console writes into the log what it says.
_NAME = "invcryo.cli"

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """Options that do not go together, or lack one: exit code 2."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message of what was saved and the report for ``--json``."""

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = dict(report or {})


class Aborted(BaseException):
    """The second Ctrl-C; no KeyboardInterrupt, since solvers answer that one with what they have so far."""


class Interrupts:
    """Ctrl-C in a long job: the first ends the present solver with what it has, the second ends the command.

    A context manager; ``seen`` counts. Without ``patience`` the first one ends the command. Outside the main
    thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, console: Console, *, patience: bool = True) -> None:
        self.seen, self._console, self._patience = 0, console, patience
        self._earlier: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)

    def _receive(self, number: int, frame: object) -> None:
        self.seen += 1
        if self.seen > 1 or not self._patience:
            raise Aborted
        self._console.error("interrupted, ending with what is there; press Ctrl-C again to stop at once")
        raise KeyboardInterrupt


# --- talking to the user ------------------------------------------------------------------------------------


class Console:
    """Results on standard output, everything else on standard error.

    Attributes
    ----------
    warnings : list of str
        What the library warned of while `listening`, in order, each once.
    progress : bool or None
        For the library's ``progress=``: None shows bars on a terminal only.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False, debug: bool = False) -> None:
        self.quiet, self.json, self.debug = quiet, json, debug
        self._log = logging.getLogger(_NAME)
        self.warnings: list[str] = []
        self.progress: bool | None = False if quiet else None

    def say(self, text: str = "") -> None:
        """A line of the result."""
        if text:
            self._log.info("%s", text.rstrip("\n"))
        if not (self.quiet or self.json):
            _put(sys.stdout, text)

    def note(self, text: str) -> None:
        """What is being done now; for people who watch, so on a terminal only."""
        self._log.info("%s", text)
        if not self.quiet and sys.stderr.isatty():
            _put(sys.stderr, text)

    def warn(self, text: str) -> None:
        """A warning, shown once and kept for the record."""
        self._log.warning("%s", text)
        self.show_warning(text)

    def show_warning(self, text: str) -> None:
        """The same of what is in the log already."""
        text = in_words_of_the_command_line(text)
        if text not in self.warnings:
            self.warnings.append(text)
            _put(sys.stderr, f"warning: {text}")

    def error(self, text: str) -> None:
        self._log.error("%s", text)
        _put(sys.stderr, f"invcryo: {text}")

    def finish(self, report: Mapping[str, Any]) -> None:
        """With ``--json``, the one object that goes to standard output."""
        if self.json:
            _put(sys.stdout, json.dumps(plain(report), indent=2, allow_nan=False))

    @contextmanager
    def listening(self, words: Sequence[str], log_file: str | None = None) -> Iterator[None]:
        """Pass the library's log and Python's warnings to the user, and to the log of the run, for the block.

        ``words`` are the command, for the log; ``log_file`` is where it goes, if not into an output folder.
        """
        log = logging.getLogger("invcryo")
        run_log = RunLog(words)
        handlers = (_Listener(self), run_log)
        level, propagate = log.level, log.propagate
        for handler in handlers:
            log.addHandler(handler)
        log.setLevel(logging.DEBUG if self.debug else logging.INFO)
        log.propagate = False
        if log_file is not None:
            run_log.open(Path(log_file))
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: self.warn(str(message))
            try:
                yield
            finally:
                for handler in handlers:
                    log.removeHandler(handler)
                    handler.close()
                log.setLevel(level)
                log.propagate = propagate


class _Listener(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.DEBUG if console.debug else logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _NAME:  # the console itself, which has spoken
            return
        if record.levelno >= logging.WARNING:
            self._console.show_warning(record.getMessage())
        else:
            _put(sys.stderr, f"{record.name}: {record.getMessage()}")


def _put(stream: IO[str], text: str) -> None:
    if "tqdm" in sys.modules and stream is sys.stderr:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=stream):  # a bar that is being drawn steps aside
            _write(stream, text)
    else:
        _write(stream, text)


def _write(stream: IO[str], text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        # a name of a file may hold what the terminal cannot show
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:
        # whoever read has gone (`invcryo info f | head`); Python would complain once more at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


#: The library names its keywords in messages; here they are options.
_OPTIONS = {
    "pixel_size": "--pixel-size",
    "data_dir": "--data-dir",
    "optics_group": "--optics-group",
    "voltage_kv": "--voltage",
    "cs_mm": "--cs",
    "amplitude_contrast": "--amplitude-contrast",
    "mask": "--mask",
    "max_iter": "--max-iter",
    "bfactor": "--bfactor",
}
_PHRASES: tuple[tuple[str, Any], ...] = (
    (r"ignore=\(([^)]*)\)", lambda m: "--ignore " + " ".join(re.findall(r"'([^']*)'", m[1]))),
    (r"degrees=False", "--angles radians"),
    (r"fresh=True", "--fresh"),
    (r"use scale (\d)", r"use --scale \1"),
    (r"placement='(\w+)'", r"--placement \1"),
    (r"\(fit_range\)", "(--fit-from)"),
    (r"force_mask=True", "--force-mask"),
    (r"degrees=True", "--angles degrees"),
    (r"contrast='(\w+)'", r"--contrast \1"),
    (r", or resume with state=result\.state", ""),
    (r"use open_stack, or pass kind='volume'", "if it holds a volume, rename it to end in .mrc"),
    (rf"\b({'|'.join(_OPTIONS)})=(?![\w('\"\[])", lambda m: _OPTIONS[m[1]]),
    (r"raise max_iter\b", "raise --max-iter"),
)


def in_words_of_the_command_line(message: str) -> str:
    """A message of the library with its Python keywords replaced by the options that stand for them."""
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    return message


def plain_message(error: Exception) -> str:
    """One paragraph for the user; errors that the library does not raise on purpose are called a bug."""
    if isinstance(error, MemoryError):
        return "the computer ran out of memory; use fewer particles (--subset) or a smaller box"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.strerror}: {error.filename}"
    else:
        text = str(error)
    if isinstance(error, (ValueError, OSError, ArithmeticError, ImportError)) and text:
        return in_words_of_the_command_line(text)
    return (
        f"a bug, or a case that nobody thought of ({type(error).__name__}: {text}); run the same command with"
        " --debug and report what it prints"
    )


def facts(rows: Sequence[tuple[str, Any]], indent: str = "  ") -> str:
    """Lines of ``name  value``, aligned; rows whose value is None are left out."""
    shown = [(name, value) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}" for name, value in shown)


def count(number: int, noun: str) -> str:
    """``1 stack``, ``2 stacks``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def plain(value: Any) -> Any:
    """``value`` in the types of JSON; infinities and NaN, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist") and not isinstance(value, str):  # NumPy's arrays and scalars
        return plain(value.tolist())
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} does not go into JSON")


# --- options ------------------------------------------------------------------------------------------------


def new_parser(
    commands: Any, name: str, run: Callable[..., Any], summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """The parser of one command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_talking(parser: argparse.ArgumentParser) -> None:
    """The options that all commands have; added last, so that help begins with what matters."""
    group = parser.add_argument_group("talking")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object, not as text")
    group.add_argument("--quiet", action="store_true", help="print nothing but warnings and errors")
    group.add_argument("--debug", action="store_true", help="print details, and the traceback of an error")
    group.add_argument(
        "--log",
        metavar="FILE",
        help="append what happens, with times, to this file; default: run.log in the output folder, if there is one",
    )


def finite(text: str) -> float:
    """Option type: a finite number."""
    return _number(text, float, lambda v: True, "a number")


def positive(text: str) -> float:
    """Option type: a finite number above 0."""
    return _number(text, float, lambda v: v > 0, "a positive number")


def non_negative(text: str) -> float:
    """Option type: a finite number, 0 or more."""
    return _number(text, float, lambda v: v >= 0, "a number, 0 or more")


def natural(text: str) -> int:
    """Option type: 1, 2, 3, ..."""
    return _number(text, int, lambda v: v >= 1, "a whole number, 1 or more")


def seed(text: str) -> int:
    """Option type: 0, 1, 2, ..."""
    return _number(text, int, lambda v: v >= 0, "a whole number, 0 or more")


def _number(text: str, kind: Callable[[str], Any], test: Callable[[Any], bool], what: str) -> Any:
    try:
        value = kind(text)
        good = math.isfinite(value) and test(value)
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
    return value


def add_report(parser: Any) -> None:
    """For commands without an output folder."""
    parser.add_argument(
        "--report",
        metavar="PAGE.html",
        help="write all of it on one page: result, warnings, picture, options, how to make it again",
    )


def add_threads(parser: Any) -> None:
    parser.add_argument(
        "--threads",
        "--j",
        type=natural,
        metavar="N",
        help="processor threads to use; default: $INVCRYO_NUM_THREADS, else all that this process may use",
    )


def add_pixel_size(parser: Any, what: str) -> None:
    parser.add_argument("--pixel-size", "--angpix", type=positive, metavar="A", help=what)


def add_passthrough(parser: Any, file: str) -> None:
    parser.add_argument(
        "--passthrough",
        metavar="FILE",
        action="append",
        default=[],
        help=f"further .cs file of the same particles, for the columns that {file} lacks; may be given several times",
    )


def add_output(parser: Any, default: str | None = None) -> None:
    parser.add_argument(
        "-o",
        "--output",
        "--o",
        metavar="DIR",
        default=default,
        required=default is None,
        help="folder for the results, made if it is not there" + (f"; default: {default}" if default else ""),
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the results of an earlier run in that folder; without it they are left alone and the"
        " command stops before computing",
    )
