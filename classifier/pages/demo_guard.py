"""The guard before the page of demo.py: which requests reach Gradio at all.

A page of another site, open in the same browser, can send requests to a server on this machine. And Gradio's server can do
more than the page needs, such as fetching files from other servers for a visitor.
"""

import json
import posixpath
from urllib.parse import unquote, urlsplit

MAX_UPLOAD = 256 << 20  # bytes of all files of one request
MAX_BODY = 1 << 20  # bytes of any other request

# What the page, a program that uses its API and Gradio's page about the API ask for.
PAGES = {"/", "/login", "/login/", "/logout", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
FILES = ("/assets/", "/static/", "/svelte/")
API = "/gradio_api"
CALLS = {
    "/info",
    "/openapi.json",
    "/app_id",
    "/startup-events",
    "/upload",
    "/upload_progress",
    "/queue/join",
    "/queue/data",
    "/cancel",
    "/reset",
    "/theme.css",
}
CALLS_BELOW = ("/call/", "/heartbeat/")

HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware that answers a request that nobody honest sends with one plain sentence."""

    def __init__(self, app, hosts, folder):
        """`hosts`: what the Host header may say, None: anything. `folder`: Gradio's, the only one to send from."""
        self.app, self.hosts, self.folder = app, hosts, posixpath.normpath(folder)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        status, reason = self.refusal(scope) if scope["type"] == "http" else (403, "no WebSockets here")
        if status:
            await answer(send, scope, status, reason)
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def refusal(self, scope):
        """The status and the reason why a request is refused; (None, None) if it is not."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, path = headers.get("host", "").lower(), scope["path"]
        if self.hosts is not None and host not in self.hosts:
            return 421, "this page answers only under its own address"
        if headers.get("origin") and urlsplit(headers["origin"].lower()).netloc != host:
            return 403, "another site's page may not use this one"
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, "another site's page may not use this one"
        if not self.is_needed(path):
            return 404, "there is nothing here"
        if scope["method"] == "POST":
            length, most = headers.get("content-length", ""), MAX_UPLOAD if path == f"{API}/upload" else MAX_BODY
            if not length.isdecimal():
                return 411, "how long is this request?"
            if int(length) > most:
                return 413, f"too large: more than {most >> 20} MB at once"
        return None, None

    def is_needed(self, path):
        """Whether the page, or a program that uses its API, asks for this path."""
        if path.startswith(f"{API}/file="):
            file = posixpath.normpath(unquote(path.removeprefix(f"{API}/file=")))
            return file.startswith(f"{self.folder}/")
        if path.startswith(f"{API}/"):
            call = path.removeprefix(API)
            return call in CALLS or call.startswith(CALLS_BELOW)
        return path in PAGES or (path.startswith(FILES) and ".." not in unquote(path))


async def answer(send, scope, status, reason):
    """Send a short answer, or close a WebSocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps({"detail": reason}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
