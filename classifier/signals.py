"""Signals to stop: they wait until the training can be saved."""

import contextlib
import signal
import sys


class StopRequest:
    """A request to stop, by SIGINT (Ctrl-C) or SIGTERM: `signum` is its number, None before there is one."""

    signum = None

    @contextlib.contextmanager
    def listening(self):
        """Note a signal instead of stopping at once; a second one stops at once."""

        def note(signum, _):
            if self.signum:
                sys.exit(128 + signum)
            self.signum = signum

        before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
