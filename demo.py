"""A page to drop a photo on: python demo.py

Read here how the page is started and ended; what is on it is in classifier/pages/demo_page.py, who may ask for it in
classifier/pages/demo_guard.py.
"""

import argparse
import importlib.metadata
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out

from classifier.base import console
from classifier.base.console import DONE, PROJECT, USAGE, UserError, describe, number, say

OLDEST_GRADIO = (6, 24)  # see requirements-optional.txt
LOCAL = ("127.0.0.1", "localhost")

# Gradio and TensorFlow are imported inside the functions that use them: --help and a wrong flag answer at once.


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Open a page to drop photos on. Photos stay on this machine, and are deleted within minutes.",
        epilog="exit codes: 1 failed, 2 wrong usage or Gradio is missing, 3 a bad run folder, 130 Ctrl-C, 143 terminated",
    )
    add = parser.add_argument
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--port", type=number(int, 1024, 65535), default=7860, metavar="N", help="default: 7860")
    others = "also answer other machines, at this address of this one (0.0.0.0: at all of them), with a password"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=f"{others} (default: 127.0.0.1, only this machine)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Show the page until Ctrl-C or SIGTERM."""
    arguments = parse_arguments(argv)
    check_gradio()
    check_address(arguments.host, arguments.port)
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:  # they could share the page, or open folders
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="demo-", ignore_cleanup_errors=True) as folder:  # only this user can read it
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "NO_PROXY": "*"}
        serve(arguments, folder)
    return DONE


def check_gradio() -> None:
    """Raise UserError if Gradio is missing or too old."""
    how = "pip install -c requirements-optional.txt gradio"
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"demo.py needs the package gradio: {how}", USAGE) from None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_GRADIO:
        raise UserError(f"gradio {version} is too old: {how} --upgrade", USAGE)


def check_address(host: str, port: int) -> None:
    """Raise UserError if the page cannot be at this address, before the slow start."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = describe(error).partition(" (while")[0]  # Python repeats the address
        raise UserError(f"cannot open port {port} of {host} ({reason}): choose another --port or --host") from None


def serve(arguments: argparse.Namespace, folder: str) -> None:
    """Show the page until KeyboardInterrupt or SystemExit ends it; the threads of the server end with the process."""
    from classifier.pages.demo_page import Demo, build_page, launch

    auth = None if arguments.host in LOCAL else ("demo", secrets.token_urlsafe(12))  # user and password
    launch(build_page(Demo(arguments.model, folder)), arguments.host, arguments.port, folder, auth)
    if auth:
        say("warning: other machines can open this page, with the password; what they send is not encrypted")
        print(f"user {auth[0]}, password {auth[1]}")
    host = socket.gethostname() if arguments.host == "0.0.0.0" else arguments.host
    print(f"open http://{host}:{arguments.port} in a browser; Ctrl-C ends it", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    console.run(main)
