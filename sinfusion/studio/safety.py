"""Who may ask the server for anything: the page that it served itself, at the address with its token.

Anything on this machine, and any page in its browser, can reach 127.0.0.1. So each request must have the token in its
path, name this server as its Host (else a foreign name may have been made to point here), and, where a browser says
which page asks, be from this one; what changes anything must say so.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

MOST_PATH = 300  # bytes
READING = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Refuses what must not reach an application, and adds the headers of safety to what it answers."""

    def __init__(self, app: App, token: str, port: int):
        self.app, self.token = app, token
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in HEADERS}
                others = [pair for pair in message.get("headers", []) if pair[0].lower() not in names]
                message["headers"] = [*others, *HEADERS]
            await send(message)

        refusal = self.refusal(scope)
        if refusal:
            await _refuse(guarded, *refusal)
            return
        inner = scope["path"].removeprefix(f"/{self.token}")
        await self.app({**scope, "path": inner, "root_path": "", "raw_path": inner.encode()}, receive, guarded)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """A status and a sentence for what is refused; None for what may pass."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        given = [value.decode("latin-1") for value in headers.get(b"host", [])]
        if len(given) != 1 or given[0].lower() not in self.hosts:
            return 403, "this server answers to 127.0.0.1 and localhost alone."
        path = scope["path"]
        token, slash, rest = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()) or not slash:
            return 403, "open the address that sinfusion studio has printed: it ends in a token."
        if (
            len(path) > MOST_PATH
            or "\\" in rest
            or "\0" in rest
            or any(part in (".", "..") for part in rest.split("/"))
        ):
            return 404, "there is nothing here."
        own = f"http://{given[0].lower()}".encode()
        origins = headers.get(b"origin", [])
        if any(origin.lower() != own for origin in origins) or (not origins and scope["method"] not in READING):
            return 403, "another page may not ask this server for anything."
        site = headers.get(b"sec-fetch-site", [b"same-origin"])[0]
        opens_the_page = rest == "" and headers.get(b"sec-fetch-dest") == [b"document"]  # a link to it, with the token
        if site not in (b"same-origin", b"none") and not opens_the_page:
            return 403, "another page may not ask this server for anything."
        return None


async def _refuse(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})
