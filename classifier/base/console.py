"""What every script has in common at the shell: flags, messages, tables, progress bars, signals and exit codes."""

import argparse
import contextlib
import errno
import faulthandler
import io
import logging
import operator
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROJECT = Path(__file__).resolve().parents[2]
is_silent = False  # True where only errors are to be printed
DONE, FAILED, USAGE, NO_DATA, BELOW_ACCURACY, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143
# Ctrl-C, kill, a closed terminal, Ctrl-\, and what Slurm and other schedulers send before a limit. Windows has two of them.
_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOP_SIGNALS = [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class UserError(Exception):
    """An error that the user can correct. `str(error)` is one line: what is wrong, and what to do."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(main: Callable) -> NoReturn:
    """Run a script's `main()` as a program of its own and leave with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper | None):  # a notebook, with its %run, has others, and shows what they get
        _prepare_streams()
        _quieten_libraries()
    os.environ["MPLBACKEND"] = "agg"  # a notebook names one for its own Python: ours may not have it
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of its cache, and of a user's odd matplotlibrc
    _on_stop_signals(_leave)
    sys.unraisablehook = _ignore_leaving
    sys.exit(exit_code_of(main))


def _leave(signum, _):
    """Leave because of a signal, or at the next StopRequest: imports of TensorFlow can swallow what is raised here."""
    if StopRequest.signum != signum or signum in (signal.SIGINT, signal.SIGTERM):  # shell and kernel both say: terminal gone
        StopRequest.signum = signum
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)


def _on_stop_signals(handler):
    """Handle all STOP_SIGNALS; returns the handlers before. SIGHUP stays ignored under nohup."""
    if threading.current_thread() is not threading.main_thread():  # Python hears signals in the main thread alone
        return {}
    heard = [signum for signum in STOP_SIGNALS if signum.name != "SIGHUP" or signal.getsignal(signum) != signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in heard}


def _ignore_leaving(unraisable):
    """Report what was raised where nothing can be, such as while an object is collected, but not what _leave() raised."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt | SystemExit):
        sys.__unraisablehook__(unraisable)


def exit_code_of(main: Callable, argv: Sequence[str] | None = None) -> int:
    """Run a script's `main(argv)`; returns its exit code. An error that a user can cause becomes one line."""
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        code, line = error.exit_code, f"error: {error}"
    except KeyboardInterrupt:
        code, line = INTERRUPTED, "interrupted"
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("classifier", "dataset", "model"):
            raise
        code, line = FAILED, f"error: {error}: {_advice_on_packages(error)}"
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:  # its disk is full, or its reader, `head` perhaps, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return FAILED
        code, line = FAILED, f"error: {describe(error)}"
    _to_standard_error(line)
    return code


def _advice_on_packages(error):
    """What to do where a package is missing, or a library of the system that it needs."""
    own = PROJECT / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = f"{shell_path(Path(sys.executable))} -m pip"
    if error.name == "cv2" and not isinstance(error, ModuleNotFoundError):  # opencv-python needs those that open windows
        return f"{pip} uninstall opencv-python, then {pip} install --force-reinstall opencv-python-headless"
    if own.exists() and Path(sys.prefix).resolve() != own.parents[1].resolve():
        return f"run this with {shell_path(own)}"
    return f"{pip} install -r {shell_path(PROJECT / 'requirements.txt')}"


class StopRequest:
    """A request to stop, by one of STOP_SIGNALS: `signum` is its number, None before there was one."""

    signum: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """A context in which a signal is noted and does not stop the program; Ctrl-C after it stops it at once.

        Any other may follow by itself: a closed terminal sends two, and schedulers send SIGTERM after their warning.
        """

        def note(signum, _):
            if self.signum and signum == signal.SIGINT:
                sys.exit(INTERRUPTED)
            self.signum = self.signum or signum

        before = _on_stop_signals(note)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def say(message: str) -> None:
    """Print a line of log, not of results: to standard error."""
    if not is_silent:
        _to_standard_error(message)


def _to_standard_error(message):
    print(f"{printable(message)}\n", end="", file=sys.stderr, flush=True)  # at once: other threads may print, too


def show(text: str) -> None:
    """Print lines of results for people: to standard output."""
    if not is_silent:
        print("\n".join(map(printable, text.split("\n"))), flush=True)


def describe(error: OSError) -> str:
    """An OSError in words without its number: `No space left on device: runs/001/model.json`."""
    name = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    return f"{error.strerror or error}{name}"


def printable(text: object) -> str:
    """Text on one line that cannot steer a terminal: codes, such as \\x1b, in place of control characters.

    Also in place of those that end a line or reverse the direction of writing. Bytes that are no UTF-8 stay as they are.
    """
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], str(text))


def readable(text: object) -> str:
    """printable() text in which bytes of file names that are no UTF-8 are replaced, too."""
    return printable(os.fsencode(str(text)).decode("utf-8", "replace"))


def command(script: str, *arguments: object) -> str:
    """A command to copy into the shell: it runs a script of this project with this Python."""
    python = "python" if shutil.which("python") == sys.executable else Path(sys.executable)
    return " ".join(map(shell_path, (python, PROJECT / script, *arguments)))


def shell_path(part: object) -> str:
    """A Path as short as it can be from here, or any other word as it is, quoted for the shell."""
    if isinstance(part, Path):
        part = part.absolute()
        with contextlib.suppress(ValueError):  # Windows: it is on another drive
            relative = os.path.relpath(part)
            if not relative.startswith(".."):
                part = f"./{relative}" if relative.startswith("-") else relative
    return shlex.quote(str(part))


def aligned(rows: Sequence[Sequence], align: str = "<") -> str:
    """Rows of a table as text with aligned columns: "<" to the left, ">" to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{align}{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


class _Output(io.FileIO):
    """Standard output or error. What is written after its terminal was closed is lost, which is no error."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def _prepare_streams():
    """Make standard output and error usable even if they are closed, now or later, or if their encoding lacks characters."""
    for name, errors in (("stdout", "surrogateescape"), ("stderr", "backslashreplace")):  # file names stay as they are
        stream = getattr(sys, name)
        file = _Output(os.dup(stream.fileno()) if stream else os.open(os.devnull, os.O_WRONLY), "w")
        lines = io.TextIOWrapper(io.BufferedWriter(file), "utf-8", errors, line_buffering=file.isatty() or name == "stderr")
        setattr(sys, name, lines)


def _quieten_libraries():
    """Hide the messages of C libraries from the user.

    libjpeg (about odd files), libpng and TensorFlow (when it starts) write to file descriptor 2, and have no option that
    turns this off. Python's standard error is a copy of it, see _prepare_streams(); so the original is closed. If
    TF_CPP_MIN_LOG_LEVEL is 0 or 1, nothing is hidden.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1"):
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with contextlib.suppress(OSError):  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.enable(sys.stderr)  # a crash inside a library must not be silent


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Yield `advance(count=1)` for a progress bar on a terminal, or a counter without a total; it does nothing elsewhere."""
    if is_silent or not sys.stderr.isatty():
        yield lambda count=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Results on the same terminal are printed above the bar; it does not touch those that go to a file.
    here = sys.stdout.isatty()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=here) as bars:
        task = bars.add_task(description, total=total)
        yield lambda count=1: bars.advance(task, count)


def with_progress(description: str, items: Iterable, total: int) -> Iterator[Any]:
    """Yield the items, and show on a progress bar how many were taken."""
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance()


def outside_bounds(value: float, low: Any = None, high: Any = None, above: Any = None, below: Any = None) -> str | None:
    """Why a number is not within these bounds, in words; None if it is."""
    holds = {"at least": operator.ge, "at most": operator.le, "above": operator.gt, "below": operator.lt}
    bounds = {word: bound for word, bound in zip(holds, (low, high, above, below), strict=True) if bound is not None}
    if all(holds[word](value, bound) for word, bound in bounds.items()):  # NaN is within no bounds
        return None
    return f"is not {' and '.join(f'{word} {bound}' for word, bound in bounds.items())}"


def number(kind: type, low: Any = None, high: Any = None, **bounds: Any) -> Callable[[str], Any]:
    """An argparse type: an int or a float (`kind`) within bounds, see outside_bounds()."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        if problem := outside_bounds(value, low, high, **bounds):
            raise argparse.ArgumentTypeError(f"{text} {problem}")
        return value

    return parse
