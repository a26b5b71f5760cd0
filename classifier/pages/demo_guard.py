"""The guard before the page of demo.py: which requests reach Gradio at all.

A page of another site, open in the same browser, can send requests to a server on this machine. And Gradio's server can do
more than the page needs, such as fetching files from other servers for a visitor.
"""

import posixpath
import re
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_UPLOAD = 256 << 20  # bytes of all files of one request
MAX_BODY = 1 << 20  # bytes of any other request

# What the page, a program that uses its API and Gradio's page about the API ask for.
PAGES = r"/(login/?|logout|config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)?"
FILES = r"/(assets|static|svelte)/.*"
API = "/gradio_api"
CALLS = (
    rf"{API}/(info|openapi\.json|app_id|startup-events|upload|upload_progress|queue/join|queue/data|cancel|reset"
    r"|theme\.css|call/.*|heartbeat/.*)"
)
NEEDED = re.compile(f"{PAGES}|{FILES}|{CALLS}", re.DOTALL)

HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware that answers a request that nobody honest sends with one plain sentence."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None, folder: str):
        """`hosts`: what the Host header may say, None: anything. `folder`: Gradio's, the only one to send from."""
        self.app, self.hosts, self.folder = app, hosts, posixpath.normpath(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on to the app."""
        if scope["type"] == "websocket":  # the page needs none
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif refusal := self.refusal(scope):
            status, reason = refusal
            await JSONResponse({"detail": reason}, status, {"Connection": "close"})(scope, receive, send)
        else:

            async def send_with_headers(message):
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(HEADERS)
                await send(message)

            await self.app(scope, receive, send_with_headers)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the reason why a request is refused; None if it is not."""
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if self.hosts is not None and host not in self.hosts:
            return 421, "this page answers only under its own address"
        is_navigation = headers.get("sec-fetch-mode") == "navigate"
        from_elsewhere = headers.get("sec-fetch-site") == "cross-site" and not is_navigation
        if from_elsewhere or (origin and urlsplit(origin).netloc != host):
            return 403, "another site's page may not use this one"
        if not self.is_needed(path):
            return 404, "there is nothing here"
        if scope["method"] == "POST":
            length, most = headers.get("content-length", ""), MAX_UPLOAD if path == f"{API}/upload" else MAX_BODY
            if not length.isdecimal():
                return 411, "how long is this request?"
            if int(length) > most:
                return 413, f"too large: more than {most >> 20} MB at once"
        return None

    def is_needed(self, path: str) -> bool:
        """Whether the page, or a program that uses its API, asks for this path."""
        if path.startswith(f"{API}/file="):
            file = posixpath.normpath(unquote(path.removeprefix(f"{API}/file=")))
            return file.startswith(f"{self.folder}/")
        return ".." not in unquote(path) and NEEDED.fullmatch(path) is not None
