"""How every script speaks to the person at the shell: flags, messages, progress bars, files that are whole, exit codes."""

import argparse
import contextlib
import csv
import faulthandler
import io
import os
import signal
import sys

DONE, FAILED, USAGE, NO_DATA, BELOW_ACCURACY, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143


class UserError(Exception):
    """Something the user can mend. `str(error)` is one line that says what is wrong and what to do."""

    def __init__(self, message, exit_code=FAILED):
        super().__init__(message)
        self.exit_code = exit_code


def run(main):
    """Run a script's `main()` and leave with its exit code; an error that a user can cause becomes one line."""
    _silence_native_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.stdout.reconfigure(errors="surrogateescape")  # file names that are no valid UTF-8 leave as they came
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except OSError as error:
        say(f"error: {describe(error)}")
        code = FAILED
    sys.exit(code)


def say(message):
    """Print a line of log, not of results: to standard error."""
    print(message, file=sys.stderr, flush=True)


def describe(error):
    """An OSError in words without its number: `No space left on device: runs/001/model.json`."""
    name = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    return f"{error.strerror or error}{name}"


def write_whole(path, text):
    """Write a text file as a whole or not at all; what was there before stays until then. Raises UserError."""
    partial = f"{path}.partial"
    try:
        with open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def csv_text(header, rows):
    """A table as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _silence_native_libraries():
    """Keep the chatter of C libraries off the terminal: libjpeg on odd files, libpng, TensorFlow's start-up notes.

    They write to file descriptor 2 and cannot be asked not to. Python's own standard error moves to a copy of it.
    Whoever sets TF_CPP_MIN_LOG_LEVEL hears everything.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: SIM115
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable(sys.stderr)  # a crash inside a library must not be silent


@contextlib.contextmanager
def progress(description, total):
    """Yield `advance(count=1, note="")` for a progress bar on a terminal; elsewhere it does nothing."""
    if not sys.stderr.isatty():
        yield lambda count=1, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task(description, total=total, note="")
        yield lambda count=1, note="": bars.update(task, advance=count, note=note)


def number(kind, low=None, high=None, above=None, below=None):
    """An argparse type: an int or a float (`kind`) within the given bounds."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        inside = (
            (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        if not inside or value != value:
            bounds = {"at least": low, "at most": high, "above": above, "below": below}
            wanted = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return parse
