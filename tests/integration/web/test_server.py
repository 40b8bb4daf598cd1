"""What the server gives, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.cli import main
from launcher.events.run_state import RunState
from launcher.observe.layouts import layout_of
from launcher.web.access import is_loopback
from launcher.web.reader import RunReader, process_letters
from tests.integration.web.recorded_page import add_step, page_run
from tests.integration.web.served import Served
from tests.unit import view_events


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    run = page_run(tmp_path_factory.mktemp("runs"), "grpo")
    with Served(run) as page:
        yield page, run


def messages(url: str, count: int) -> Iterator[dict[str, Any]]:
    """The first server-sent messages."""
    with httpx.stream("GET", url, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])
                count -= 1
                if not count:
                    return


def test_everything_comes_from_here(served: tuple[Served, Path]) -> None:
    page, _ = served
    answer = httpx.get(page.url)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("http-equiv", "")
    for name in ("page.css", "page.js", "draw.js", "layout.js", "panels.js", "icon.svg"):
        assert httpx.get(f"{page.url}static/{name}").status_code == 200
        assert "://" not in httpx.get(f"{page.url}static/{name}").text.replace("http://www.w3.org/2000/svg", "")


def test_changes_are_told_as_they_happen(served: tuple[Served, Path]) -> None:
    page, run = served
    stream = messages(f"{page.url}api/run/grpo", 2)
    first = next(stream)
    assert (first["name"], first["word"], len(first["steps"]["step"])) == ("grpo", "running", 30)
    assert first["steps"]["is_new"] and first["processes"] == "r" * 16
    assert [node["hostname"] for node in first["layout"]["nodes"]] == ["gpu-000", "gpu-001"]
    assert [bar["phase"] for bar in first["waterfall"]][:2] == ["queue", "nodes"]
    add_step(run, 31, 0.75)
    second = next(stream)
    assert (second["steps"]["step"], second["steps"]["reward"], second["steps"]["is_new"]) == ([31], [0.75], False)
    assert "layout" not in second
    stream.close()


@pytest.mark.parametrize(
    "address",
    [
        "api/run/other",
        "api/run/..%2Fgrpo",
        "api/run/grpo/log?id=../../../../etc/passwd",
        "api/run/grpo/log?id=1/../../../../../../etc/passwd",
        "api/run/grpo/log?id=1/secret",
        "api/run/grpo/log?id=",
        "api/run/grpo/log?id=1/trainer-0000&lines=-5",
        "static/..%2Fserver.py",
        "static/../server.py",
        "api/sweep",
    ],
)
def test_only_logs_of_the_run_can_be_read(served: tuple[Served, Path], address: str) -> None:
    page, run = served
    link = run / "attempts/1/logs/secret.log"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    answer = httpx.get(f"{page.url}{address}")
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_logs(served: tuple[Served, Path]) -> None:
    page, _ = served
    listed = {log["id"]: log["role"] for log in httpx.get(f"{page.url}api/run/grpo/logs").json()}
    assert listed["1/trainer-0000"] == "trainer" and listed["1/inference-0"] == "inference"
    text = httpx.get(f"{page.url}api/run/grpo/log?id=1/trainer-0000&lines=2").text
    assert text == "line 998 <b>of a log</b>\nline 999 <b>of a log</b>"


def test_another_name_for_loopback_is_refused(served: tuple[Served, Path]) -> None:
    page, _ = served
    for host, code in (("evil.example", 403), ("127.0.0.1.evil.example:80", 403), ("localhost:1", 200), ("[::1]", 200)):
        assert httpx.get(page.url, headers={"host": host}).status_code == code
    assert httpx.post(page.url).status_code == 405


def test_a_token_opens_the_page_once_and_then_a_cookie(tmp_path: Path) -> None:
    run = page_run(tmp_path, "grpo")
    with Served(run, "--host", "0.0.0.0") as page:
        token = page.url.partition("token=")[2]
        assert len(token) >= 32
        base = f"http://127.0.0.1:{page.port}"
        with httpx.Client(base_url=base) as browser:
            for address in ("/", "/api/about", "/static/page.js", "/?token=wrong", "/?token="):
                assert browser.get(address).status_code == 401
            answer = browser.get(f"/?token={token}")
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            assert "httponly" in answer.headers["set-cookie"].lower()
            assert "samesite=strict" in answer.headers["set-cookie"].lower()
            assert browser.get("/api/about").json()["run"] == "grpo"


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("gpu-01", False),
    ],
)
def test_what_is_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_a_port_that_is_taken(served: tuple[Served, Path], capsys: pytest.CaptureFixture[str]) -> None:
    page, run = served
    assert main(["ui", str(run), "--port", str(page.port)]) == 1
    assert (
        f"`--port` ({page.port}) on 127.0.0.1 cannot be listened on: Address already in use" in capsys.readouterr().err
    )


def test_colours_of_processes(tmp_path: Path) -> None:
    run = page_run(tmp_path, "grpo", more=[])
    layout, state, at = layout_of(run), RunState(), view_events.T0 + 80
    assert process_letters(layout, state) == "w" * 16
    for event in view_events.startup(ranks=8, replicas=8):
        view_events.apply(state, event)
    assert process_letters(layout, state) == "r" * 16
    view_events.apply(state, {"time": at, "event": "replica", "replica": 2, "state": "lost"})
    assert process_letters(layout, state) == "r" * 10 + "f" + "r" * 5
    view_events.apply(state, {"time": at, "event": "process", "name": "inference-2", "state": "started"})
    assert process_letters(layout, state) == "r" * 10 + "s" + "r" * 5
    for event in view_events.engine_killed(90):
        view_events.apply(state, event)
    assert process_letters(layout, state) == "e" + "v" + "e" * 6 + "f" + "e" * 7
    view_events.apply(state, {"time": at + 20, "event": "attempt", "attempt": 2})
    view_events.apply(state, {"time": at + 21, "event": "node_lost", "node_rank": 1})
    assert process_letters(layout, state) == "w" * 8 + "l" * 8


def test_a_page_of_many_nodes_is_small_and_quick(tmp_path: Path) -> None:
    run = page_run(tmp_path, "huge", nodes=256, inference_nodes=64, steps=40)
    reader = RunReader(run)
    reader.update()
    assert len(reader.data()["processes"]) == 2048
    assert len(json.dumps(reader.data())) < 100_000
    assert len(reader.data()["waterfall"]) < 12


def test_after_a_restart_from_a_checkpoint_all_steps_are_sent_again(tmp_path: Path) -> None:
    from launcher.web.server import _steps

    run = page_run(tmp_path, "grpo", steps=10)
    reader = RunReader(run)
    reader.update()
    known, first = _steps(reader, [-1, -1])
    assert (known, first["is_new"]) == ([10, 10], True)
    add_step(run, 6, 0.5)
    reader.update()
    known, again = _steps(reader, known)
    assert (known, again["is_new"], again["step"][-1]) == ([6, 6], True, 6)
