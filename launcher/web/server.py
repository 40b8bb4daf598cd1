"""Serves the page: files of this package, data of a run directory as JSON, and changes as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from launcher.common.codec import to_json
from launcher.events.reader import attempts
from launcher.observe.find import is_run
from launcher.observe.logs import Choice, LogReader, job_logs, logs_of
from launcher.web.access import Access
from launcher.web.reader import RunReader
from launcher.web.sweeps import SweepReader

STATIC = Path(__file__).with_name("static")
FILES = {path.name: path for path in STATIC.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")}
POLL_S = 0.5
SWEEP_POLL_S = 2.0
KEEP_ALIVE_S = 15.0
TAIL_LINES = 300
MOST_TAIL_LINES = 5000


def make_app(directory: Path, *, token: str | None, is_local: bool, is_ending: Callable[[], bool]) -> Access:
    """The application for one run directory, or for a directory of several.

    Args:
        is_ending: called often; once it is true, pages that are open are left.
    """
    page = _Page(directory, is_ending)
    routes = [
        Route("/", page.index),
        Route("/static/{name}", page.static),
        Route("/api/about", page.about),
        Route("/api/sweep", page.sweep_stream),
        Route("/api/run/{run}", page.run_stream),
        Route("/api/run/{run}/logs", page.logs),
        Route("/api/run/{run}/log", page.log),
    ]
    return Access(Starlette(routes=routes), token=token, is_local=is_local)


class _Page:
    """The routes. Files are read in threads, so that a slow filesystem holds up no other request."""

    def __init__(self, directory: Path, is_ending: Callable[[], bool]) -> None:
        self._directory = directory
        self._is_ending = is_ending
        self._sweep = None if is_run(directory) else SweepReader(directory)
        self._readers: dict[Path, RunReader] = {}
        self._lock = asyncio.Lock()

    async def index(self, _request: Request) -> Response:
        return FileResponse(FILES["index.html"], headers={"Cache-Control": "no-cache"})

    async def static(self, request: Request) -> Response:
        path = FILES.get(request.path_params["name"])
        return PlainTextResponse("no such file\n", 404) if path is None else FileResponse(path)

    async def about(self, _request: Request) -> Response:
        run = self._directory.name if self._sweep is None else None
        return JSONResponse({"run": run, "directory": str(self._directory)})

    async def sweep_stream(self, request: Request) -> Response:
        sweep = self._sweep
        if sweep is None:
            return PlainTextResponse("this is one run\n", 404)

        async def changes() -> AsyncIterator[str]:
            last, read_at = "", 0.0
            while not self._is_ending() and not await request.is_disconnected():
                if time.monotonic() - read_at >= SWEEP_POLL_S:
                    text = _json(await asyncio.to_thread(sweep.data))
                    read_at = time.monotonic()
                    if text != last:
                        last = text
                        yield f"data: {text}\n\n"
                await asyncio.sleep(POLL_S)

        return _stream(changes())

    async def run_stream(self, request: Request) -> Response:
        run = await self._find(request)
        if run is None:
            return PlainTextResponse("no such run\n", 404)

        async def changes() -> AsyncIterator[str]:
            reader = await self._reader(run)
            sent, attempt, known, last = -1, -1, [-1, -1], time.monotonic()
            while not self._is_ending() and not await request.is_disconnected():
                async with self._lock:
                    await asyncio.to_thread(reader.update)
                if reader.number != sent:
                    message = reader.data()
                    if message["attempt"] != attempt:
                        message["layout"] = reader.layout()
                    known, message["steps"] = _steps(reader, known)
                    sent, attempt, last = reader.number, message["attempt"], time.monotonic()
                    yield f"data: {_json(message)}\n\n"
                elif time.monotonic() - last > KEEP_ALIVE_S:
                    last = time.monotonic()
                    yield ": \n\n"
                await asyncio.sleep(POLL_S)

        return _stream(changes())

    async def logs(self, request: Request) -> Response:
        run = await self._find(request)
        if run is None:
            return PlainTextResponse("no such run\n", 404)
        found = await asyncio.to_thread(_logs, run)
        return JSONResponse(
            [{"id": key, "attempt": key.partition("/")[0], "role": role} for key, (_, role) in found.items()]
        )

    async def log(self, request: Request) -> Response:
        """The last lines of one log; only names that :meth:`logs` lists are ever opened."""
        run = await self._find(request)
        lines = request.query_params.get("lines", str(TAIL_LINES))
        if run is None or not lines.isdecimal():
            return PlainTextResponse("no such log\n", 404)
        text = await asyncio.to_thread(_tail, run, request.query_params.get("id", ""), int(lines))
        return PlainTextResponse("no such log\n", 404) if text is None else PlainTextResponse(text)

    async def _find(self, request: Request) -> Path | None:
        name = request.path_params["run"]
        if self._sweep is None:
            return self._directory if name == self._directory.name else None
        return (await asyncio.to_thread(self._sweep.runs)).get(name)

    async def _reader(self, run: Path) -> RunReader:
        async with self._lock:
            if run not in self._readers:
                self._readers[run] = await asyncio.to_thread(RunReader, run)
                await asyncio.to_thread(self._readers[run].update)
                self._readers[run].number += 1
            return self._readers[run]


def _steps(reader: RunReader, known: list[int]) -> tuple[list[int], dict[str, Any]]:
    """The steps that a page does not have yet; all of them when some were done again.

    Args:
        known: how many the page has, and the number of the last of them.
    """
    steps = reader.state.steps
    count, last = known
    is_continued = 0 < count <= len(steps) and steps[count - 1].step == last
    begin = count if is_continued else 0
    known = [len(steps), steps[-1].step if steps else -1]
    return known, {"is_new": not is_continued, **reader.steps(begin)}


def _stream(changes: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(changes, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _logs(run: Path) -> dict[str, tuple[Path, str]]:
    """Path and role of each log by ``ATTEMPT/NAME``."""
    found = {
        f"{attempt}/{log.name}": (log.path, log.role)
        for attempt in attempts(run)
        for log in logs_of(run, attempt, Choice())
    }
    return {**found, **{f"job/{log.name}": (log.path, log.role) for log in job_logs(run)}}


def _tail(run: Path, key: str, lines: int) -> str | None:
    path, _ = _logs(run).get(key, (None, ""))
    # A link that a program of the run left among the logs must not open other files of this user.
    if path is None or not path.resolve().is_relative_to(run.resolve()):
        return None
    reader = LogReader(path, min(lines, MOST_TAIL_LINES))
    return "\n".join([*reader.read(), *reader.close()])


def _json(value: Any) -> str:
    """One line; what is not finite becomes null."""
    return to_json(value).decode()
