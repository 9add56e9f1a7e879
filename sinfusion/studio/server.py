"""The studio's server: what the page asks for, answered by the workspace, the workers and the training.

serve(Path("sinfusion-studio"), port=0, show=print)      # until Ctrl-C
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ..errors import SinfusionError
from ..files import discard, sole_writer
from .options import checked
from .safety import App, Guard
from .training import Training
from .workers import Jobs, Worker, check_upload
from .workspace import RECORDS, UPLOAD, Facts, Missing, Workspace, id_of

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
MOST_UPLOAD = 2 << 30  # bytes
MOST_ASKED = 1 << 16  # bytes of a request in JSON
MOST_PAINTED = 4 * 1024 * 1024  # bytes of a painting
LEAST_FREE = 1 << 30  # bytes of the disk that uploads leave
UPLOADS_AT_ONCE = 2
LABEL_LENGTH = 60
VIEWS = {"clips": ("poster.png", "view.mp4", "view.png"), "results": ("poster.png", "result.mp4", "result.png")}
PREVIEWS = ("predictor", "projector", "interpolator", "image")  # models with a picture of what they can
GRACE_SECONDS = 3  # that open requests have at the end


class Studio:
    """What the server keeps while it runs."""

    def __init__(self, folder: Path):
        self.workspace = Workspace(folder)
        self.log = self.workspace.folder / "studio.log"  # what the workers print
        self.log.write_bytes(b"")
        self.maker, self.player = Worker(self.log), Worker(self.log)
        self.jobs = Jobs(self.maker)
        self.training = Training(self.workspace.folder / "training.log")
        self.uploads = 0  # that come in or are checked
        self.session = ""  # of the page that plays
        self.played: Facts = {}  # the run that is played

    def app(self) -> Starlette:
        """The application, without its guard."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            warming = asyncio.create_task(self.maker.begin())  # a first result should not wait for it
            try:
                yield
            finally:
                warming.cancel()
                await self.close()

        routes = [
            Route("/", _page),
            Route("/{name}", _page),
            Route("/api/state", self._answering(self.state)),
            Route("/api/clips", self._answering(self.upload), methods=["PUT"]),
            Route("/api/{kind}/{id}/{name}", self._answering(self.file)),
            Route("/api/{kind}/{id}", self._answering(self.remove), methods=["DELETE"]),
            Route("/api/jobs", self._answering(self.make), methods=["POST"]),
            Route("/api/paintings", self._answering(self.paint), methods=["POST"]),
            Route("/api/jobs/{id}/cancel", self._answering(self.cancel), methods=["POST"]),
            Route("/api/train", self._answering(self.train), methods=["POST"]),
            Route("/api/stop", self._answering(self.stop), methods=["POST"]),
            Route("/api/play", self._answering(self.play), methods=["POST"]),
            Route("/api/next", self._answering(self.next), methods=["POST"]),
            Route("/api/keep", self._answering(self.keep), methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    async def close(self) -> None:
        """End the workers; stop the training, saved."""
        await self.jobs.close()
        self.maker.kill()
        self.player.kill()
        await self.training.close()

    def _answering(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The handler; what is wrong with a request becomes a sentence."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Refused as refused:
                return JSONResponse({"error": self._without_paths(str(refused))}, refused.status)
            except Missing as missing:
                return JSONResponse({"error": str(missing)}, 404)
            except SinfusionError as error:
                return JSONResponse({"error": self._without_paths(str(error))}, 400)
            except ClientDisconnect:
                return Response(status_code=400)

        return answer

    def _without_paths(self, sentence: str) -> str:
        """A sentence without where the studio's folder is."""
        return sentence.replace(f"{self.workspace.folder}{os.sep}", "")

    # What there is ---------------------------------------------------------------------------------------------------

    async def state(self, _: Request) -> Response:
        """All that the page shows."""
        training, folder = self.training, self.training.folder
        runs = self.workspace.describe("runs")
        for run in runs:
            run["busy"] = run["busy"] or (training.active and folder is not None and folder.name == run["name"])
        jobs = [dict(job) for job in self.jobs.jobs.values()][::-1]
        for job in jobs:
            job["error"] = self._without_paths(job.get("error", ""))
        now = {
            "active": training.active,
            "run": None if folder is None else id_of(folder.name),
            "starting": training.active and folder is not None and not (folder / "run.json").exists(),
            "error": self._without_paths(training.error),
            "note": training.note,
        }
        clips, results = self.workspace.describe("clips"), self.workspace.describe("results")
        return JSONResponse({"clips": clips, "runs": runs, "results": results, "jobs": jobs, "training": now})

    async def file(self, request: Request) -> Response:
        """A picture, a video or an archive."""
        kind, id, name = (request.path_params[part] for part in ("kind", "id", "name"))
        workspace = self.workspace
        if kind == "runs" and name == "frame.png":
            return Response(workspace.first_frame(id), media_type="image/png")
        if kind == "runs" and name in PREVIEWS:
            return FileResponse(workspace.file(kind, id, name, "preview.png"), media_type="image/png")
        if name in VIEWS.get(kind, ()):
            return FileResponse(workspace.file(kind, id, name))
        if kind == "results" and name in ("download.mp4", "download.png", "download.zip", "download.gif"):
            return await self._download(id, name.removeprefix("download"))
        raise Missing("there is nothing here.")

    async def _download(self, id: str, ending: str) -> Response:
        folder = self.workspace.path("results", id)
        if ending == ".gif" and not (folder / "result.gif").exists():
            if not (folder / "result.mp4").exists():
                raise Missing("an image has no GIF; take the PNG.")
            job = self.jobs.add({"verb": "gif", "label": "GIF", "quiet": True}, {"verb": "gif", "result": str(folder)})
            made = await self.jobs.wait(job)
            if made["state"] != "done":
                raise SinfusionError(made.get("error", "the GIF was cancelled."))
        path = self.workspace.file("results", id, "frames.zip" if ending == ".zip" else f"result{ending}")
        return FileResponse(path, filename=f"{folder.name}{ending}")

    async def remove(self, request: Request) -> Response:
        """Remove a clip or a result; runs are never removed from here."""
        kind = request.path_params["kind"]
        if kind not in ("clips", "results"):
            raise Refused(403, "runs are not removed from here; remove their folder.")
        self.workspace.remove(kind, request.path_params["id"])
        return JSONResponse({})

    # Uploads ---------------------------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        """Take a file in under a name of ours; it counts once it could be decoded."""
        label, ending = _label(request.query_params.get("name", ""))
        announced = request.headers.get("content-length", "")
        if not announced.isdigit():
            raise Refused(411, "an upload must say how long it is.")
        self._check_room(int(announced), label)
        if self.uploads >= UPLOADS_AT_ONCE:
            raise Refused(429, f"{UPLOADS_AT_ONCE} uploads come in already; wait for them.")
        self.uploads += 1
        folder = self.workspace.folder / "clips" / f"{UPLOAD}{secrets.token_hex(8)}"
        try:
            folder.mkdir()
            source = folder / f"source{ending}"
            await self._receive(request, source, label, int(announced))
            found = await check_upload(source, folder, label, self.log)
            (folder / RECORDS["clips"]).write_text(json.dumps({"label": label, "added": time.time(), **found}))
            final = self.workspace.new("clips")
            os.rename(folder, final)
        finally:
            self.uploads -= 1
            discard(folder)
        return JSONResponse({"id": id_of(final.name), **found}, 201)

    def _check_room(self, size: int, label: str) -> None:
        """Refuse what is too large to take."""
        if size > MOST_UPLOAD:
            raise Refused(413, f"{label} is larger than {MOST_UPLOAD / 1e6:.0f} MB; cut it to a few seconds first.")
        if shutil.disk_usage(self.workspace.folder).free - size < LEAST_FREE:
            raise Refused(507, "the disk is nearly full; make room first.")

    async def _receive(self, request: Request, path: Path, label: str, announced: int) -> None:
        """Write the body of a request to a file, as it comes."""
        received = 0
        with path.open("wb") as file:
            async for part in request.stream():
                received += len(part)
                if received > min(announced, MOST_UPLOAD):
                    raise Refused(413, f"{label} is longer than it said.")
                file.write(part)
        if received != announced:
            raise SinfusionError(f"{label} has not come in whole; try again.")

    # Jobs ------------------------------------------------------------------------------------------------------------

    async def make(self, request: Request) -> Response:
        """Begin to make something of a clip or a run, or to measure a result."""
        asked = await _asked(request, "verb", "kind", "id", "options")
        if asked["verb"] == "measure":
            return self._measure(asked["id"])
        return self._begin(asked["verb"], asked["kind"], asked["id"], asked["options"])

    async def paint(self, request: Request) -> Response:
        """Begin an edit or an inpainting: RGBA bytes, whose alpha says what may change; the rest in the address."""
        query = dict(request.query_params)
        verb, kind, id = (query.pop(name, "") for name in ("verb", "kind", "id"))
        options: dict[str, Any] = {"painted": [_number(query.pop("width", "")), _number(query.pop("height", ""))]}
        options |= {name: _number(value) for name, value in query.items()}
        if verb not in ("inpaint", "edit"):
            raise SinfusionError("a painting is for inpaint or edit.")
        return self._begin(verb, kind, id, options, await _body(request, MOST_PAINTED))

    def _begin(self, verb: str, kind: str, id: str, given: Any, body: bytes = b"") -> Response:
        options = checked(f"{verb} of {kind}", given or {})
        if options.get("painted") and not body:
            raise SinfusionError(f"{verb} needs a painting.")
        source, label = self._source(kind, id)
        facts = {"verb": verb, "of": kind.removesuffix("s"), "source": id, "label": label,
                 "max_side": options.get("max_side"), "seed": options["seed"], "added": time.time()}  # fmt: skip
        folder = self.workspace.new("results")
        request = {
            "verb": verb,
            "of": facts["of"],
            "source": str(source),
            "result": str(folder),
            "facts": facts,
            **options,
        }
        shown = {name: facts[name] for name in ("verb", "label", "of", "source")} | {"result": id_of(folder.name)}
        job = self.jobs.add(shown, request, body)
        return JSONResponse({"job": job, "result": id_of(folder.name)}, 202)

    def _measure(self, id: str) -> Response:
        folder = self.workspace.path("results", id)
        about = next(result for result in self.workspace.describe("results") if result["id"] == id)
        source, label = self._source(f"{about['of']}s", about["source"])
        request = {"verb": "measure", "of": about["of"], "source": str(source), "result": str(folder),
                   "max_side": about.get("max_side")}  # fmt: skip
        return JSONResponse({"job": self.jobs.add({"verb": "measure", "label": label}, request)}, 202)

    def _source(self, kind: str, id: str) -> tuple[Path, str]:
        """The file of a clip or the folder of a run, and what it is called."""
        folder = self.workspace.path(kind, id) if kind in ("clips", "runs") else None
        about = next((one for one in self.workspace.describe(kind) if one["id"] == id), None) if folder else None
        if folder is None or about is None:
            raise Missing("there is no such clip or run; load the page anew.")
        if kind == "runs":
            return folder, about["label"]
        names = [name for name in os.listdir(folder) if re.fullmatch(r"source(\.[a-z0-9]{1,5})?", name)]
        return self.workspace.file(kind, id, *names[:1] or ["source"]), about["label"]

    async def cancel(self, request: Request) -> Response:
        """End a job."""
        self.jobs.cancel(request.path_params["id"])
        return JSONResponse({})

    # Training --------------------------------------------------------------------------------------------------------

    async def train(self, request: Request) -> Response:
        """Train on a clip, or train a run further."""
        asked = await _asked(request, "kind", "id", "options")
        source, label = self._source(asked["kind"], asked["id"])
        if asked["kind"] == "clips":
            options = checked("train", asked["options"] or {})
            folder = self.workspace.new("runs")
            self.workspace.remember(folder.name, label, asked["id"])
            words = [str(source), "--out", str(folder), "--minutes", f"{options['minutes']:g}"]
        else:
            minutes = checked("train further", asked["options"] or {})["minutes"]
            folder, about = source, next(run for run in self.workspace.describe("runs") if run["id"] == asked["id"])
            words = [str(folder)]
            if about["finished"]:
                words += ["--minutes", f"{2 if minutes is None else minutes:g}"]
        await self._train(folder, words)
        return JSONResponse({"run": id_of(folder.name)}, 202)

    async def _train(self, folder: Path, words: list[str]) -> None:
        if any(run["busy"] for run in self.workspace.describe("runs")):
            raise Refused(409, "a training goes on already; stop it first, it can be resumed later.")
        try:
            await self.training.begin(folder, *words)
        except SinfusionError as error:
            raise Refused(409, str(error)) from error

    async def stop(self, request: Request) -> Response:
        """Stop the training of a run, saved."""
        asked = await _asked(request, "id")
        training = self.training
        if training.active and training.folder is not None and id_of(training.folder.name) == asked["id"]:
            training.stop(training.folder)
        else:
            training.stop(self.workspace.path("runs", asked["id"]))
        return JSONResponse({})

    # Playing ---------------------------------------------------------------------------------------------------------

    async def play(self, request: Request) -> Response:
        """Be ready to play a run; a page that played before does no longer."""
        asked = await _asked(request, "id", "options")
        options = checked("play", asked["options"] or {})
        folder, label = self._source("runs", asked["id"])
        await self.player.ask({"verb": "play", "source": str(folder), **options})
        self.session = secrets.token_hex(8)
        self.played = {"of": "run", "source": asked["id"], "label": label}
        return JSONResponse({"session": self.session})

    async def next(self, request: Request) -> Response:
        """The frame after another one, a PNG; what is known of it is in headers."""
        asked = await _asked(request, "session", "after", "settings")
        after = checked("next", {"after": asked["after"]})["after"]
        settings = checked("settings", asked["settings"] or {})
        self._check_session(asked["session"])
        answer, image = await self.player.ask({"verb": "next", "after": after, "settings": settings})
        headers = {f"x-{name}": str(value) for name, value in answer.items()}
        return Response(image, media_type="image/png", headers=headers)

    async def keep(self, request: Request) -> Response:
        """Make the frames up to one a result."""
        asked = await _asked(request, "session", "frame")
        frame = checked("keep", {"frame": asked["frame"]})["frame"]
        self._check_session(asked["session"])
        folder = self.workspace.new("results")
        facts = {"verb": "play", "added": time.time(), **self.played}
        await self.player.ask({"verb": "keep", "frame": frame, "result": str(folder), "facts": facts})
        return JSONResponse({"result": id_of(folder.name)}, 201)

    def _check_session(self, session: Any) -> None:
        if not self.session or session != self.session:
            raise Refused(409, "another page plays now; press play to play here.")


class Refused(SinfusionError):
    """A request that is refused with a status of its own."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


async def _page(request: Request) -> Response:
    """A file of the page."""
    name = request.path_params.get("name", "index.html")
    if name not in PAGE_TYPES:
        return JSONResponse({"error": "there is nothing here."}, 404)
    return Response((PAGE / name).read_bytes(), media_type=PAGE_TYPES[name])


async def _body(request: Request, most: int) -> bytes:
    """The body of a request, if it is not longer than that."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, f"this request is longer than {most} bytes.")
        parts.append(part)
    return b"".join(parts)


async def _asked(request: Request, *names: str) -> Facts:
    """What a request in JSON asks for, by these names; None for those that it leaves out."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "a request must be JSON.")
    try:
        asked = json.loads(await _body(request, MOST_ASKED))
    except (ValueError, RecursionError):
        raise SinfusionError("a request must be JSON.") from None
    if not isinstance(asked, dict) or set(asked) - set(names):
        raise SinfusionError(f"a request like this has {', '.join(names)} and nothing else.")
    for name in {"verb", "kind", "id", "session"} & set(names):
        if not isinstance(asked.get(name, ""), str):
            raise SinfusionError(f"{name} must be a word.")
    return {name: asked.get(name, "" if name in ("verb", "kind", "id", "session") else None) for name in names}


def _number(word: str) -> Any:
    """The number that a word of an address is; any other word as it is, which no option takes."""
    if re.fullmatch(r"\d{1,12}", word):
        return int(word)
    return float(word) if re.fullmatch(r"\d{0,6}\.\d{1,9}", word) else word


def _label(name: str) -> tuple[str, str]:
    """What an upload is called on the page, and the ending of the file that it is kept in."""
    name = re.split(r"[/\\]", name)[-1]
    label = "".join(letter for letter in name if letter.isprintable()).strip()[-LABEL_LENGTH:] or "clip"
    ending = re.search(r"\.[a-z0-9]{1,5}$", label.lower())
    return label, ending[0] if ending else ""


# Serving -------------------------------------------------------------------------------------------------------------


def guarded(studio: Studio, token: str, port: int) -> App:
    """The application of a studio behind its guard."""
    return Guard(studio.app(), token, port)


def serve(folder: Path, port: int = 0, show: Callable[[str], object] = print) -> None:
    """Serve a studio until a signal ends it. port: 0 for any that is free. show: called with the address.

    Raises SinfusionError where the folder is in use by another server, or the port is taken.
    """
    with sole_writer(folder), _listening(port) as listener:
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        config = uvicorn.Config(
            guarded(Studio(folder), token, port), log_level="error", access_log=False, server_header=False,
            proxy_headers=False, ws="none", loop="asyncio", http="h11", limit_concurrency=64,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )  # fmt: skip
        show(f"http://127.0.0.1:{port}/{token}/")
        server = uvicorn.Server(config)
        hang_up = signal.getsignal(signal.SIGHUP)  # which uvicorn leaves alone
        if hang_up is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, server.handle_exit)
        try:
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGHUP, hang_up)


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """A socket of this machine alone."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(64)  # from now on the address can be opened
        except OSError as error:
            raise SinfusionError(f"port {port} cannot be used ({error.strerror}); choose another --port.") from error
        yield listener
