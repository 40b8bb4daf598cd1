"""The page in a real browser, on recorded runs that go on while it is looked at."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.integration.web.recorded_page import add_step, page_run
from tests.integration.web.served import Served
from tests.unit import view_events
from tests.unit.view_events import T0

pytestmark = pytest.mark.browser
DEADLINE_S = 60
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000")


class Browser:
    """Chromium with one page open."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, theme: str = "light") -> None:
        """Opens an address, with the colours that the person's system is set to."""
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(url)

    def all(self, selector: str) -> list[WebElement]:
        """All elements that a CSS selector finds."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text of the first of them."""
        return str(self.driver.execute_script("return document.querySelector(arguments[0])?.textContent", selector))

    def wait(self, predicate: Callable[[], bool], what: str) -> None:
        """Waits until the page shows something."""
        deadline = time.monotonic() + DEADLINE_S
        while not predicate():
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}; {self.complaints()}"
            time.sleep(0.1)

    def colour(self, selector: str) -> str:
        """Its background."""
        script = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
        return str(self.driver.execute_script(script, selector))

    def complaints(self) -> list[str]:
        """What the browser has logged: errors of scripts, refused or missing files. The page is left."""
        found = [entry["message"] for entry in self.driver.get_log("browser")]
        # An open page would go on asking a server that has ended, and complain during the next test.
        self.driver.get("about:blank")
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    # Where tests must count, a machine without a browser is a failure, never a skip.
    if None in programs and not os.environ.get("CI"):
        pytest.skip("chromium and chromedriver are not installed: .ci/system-packages")
    options = webdriver.ChromeOptions()
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.binary_location = str(programs[0])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    yield Browser(driver)
    driver.quit()


def test_a_run_is_shown_and_goes_on(browser: Browser, tmp_path: Path) -> None:
    run = page_run(tmp_path, "grpo")
    with Served(run) as page:
        browser.open(page.url)
        browser.wait(lambda: len(browser.all(".gpu")) == 16, "the GPUs")
        assert browser.text("#name") == "grpo" and browser.text("#word") == "running"
        assert len(browser.all(".gpu.trainer-r")) == len(browser.all(".gpu.inference-r")) == 8
        assert browser.colour(".gpu.trainer-r") != browser.colour(".gpu.inference-r")
        assert len(browser.all("#reward path.curve")) == 1
        assert browser.text("#glance").startswith("step 30 of 40")
        assert len(browser.all(".lags .who")) == 8 and "30" in browser.text(".lags .at")
        assert "54.0 s to the first step" in browser.text("#startup-note")
        browser.wait(lambda: "line 999 <b>of a log</b>" in browser.text("#log"), "the log, as text")
        assert not browser.all("#log b")
        browser.driver.execute_script(
            "const c = document.getElementById('log-choice'); c.value = '1/inference-0'; c.onchange()"
        )
        browser.wait(lambda: browser.text("#log") == "an engine speaks", "the other log")

        add_step(run, 31, 0.99)
        browser.wait(lambda: browser.text("#glance").startswith("step 31 of 40"), "the new step")
        view_events.write(
            run, [{"time": time.time(), "event": "replica", "replica": 3, "state": "lost", "reason": "x"}]
        )
        browser.wait(lambda: len(browser.all(".gpu.inference-f")) == 1, "the lost replica")
        assert "inference-3 is lost: x" in browser.text("#timeline")
        assert "7/8 replicas ready" in browser.text("#layout-note")
        light = browser.colour("body")
        browser.open(page.url, "dark")
        browser.wait(lambda: len(browser.all(".gpu")) == 16, "the page again")
        assert browser.colour("body") != light
        assert browser.complaints() == []


def test_a_failed_run_begins_with_its_cause(browser: Browser, tmp_path: Path) -> None:
    run = page_run(tmp_path, "grpo", more=view_events.engine_killed(130))
    with Served(run) as page:
        browser.open(page.url)
        browser.wait(lambda: browser.text("#word") == "failed", "the end")
        assert "signal 9 (SIGKILL)" in browser.text("#failure h2")
        assert "INFO 37% done" in browser.text("#failure pre")
        assert len(browser.all(".gpu.inference-f")) == len(browser.all(".gpu.trainer-v")) == 1
        assert browser.complaints() == []


@pytest.mark.parametrize("outcome", ["completed", "cancelled", "stopped"])
def test_what_ended_in_order_is_not_red(browser: Browser, tmp_path: Path, outcome: str) -> None:
    end = [
        {"time": T0 + 130, "event": "process", "state": "ended", "name": f"inference-{replica}", "role": "inference"}
        | {"rank": replica, "node_rank": 1, "exit_code": 0}
        for replica in range(8)
    ]
    end.append({"time": T0 + 132, "event": "finished", "outcome": outcome, "seconds": 132.0})
    run = page_run(tmp_path, "grpo", more=end)
    with Served(run) as page:
        browser.open(page.url)
        browser.wait(lambda: browser.text("#word") == outcome, "the end")
        browser.wait(lambda: len(browser.all(".lags .who i")) == 8, "the replicas")
        red = browser.driver.execute_script(
            "const probe = document.createElement('i'); probe.style.background = 'var(--bad)';"
            "document.body.append(probe); return getComputedStyle(probe).backgroundColor"
        )
        assert browser.colour(".lags .who i") != red
        assert "bad" not in str(browser.all("#word")[0].get_attribute("class"))
        assert len(browser.all(".gpu.trainer-e")) == len(browser.all(".gpu.inference-e")) == 8
        if directory := os.environ.get("LAUNCHER_TEST_SCREENSHOTS"):
            browser.driver.save_screenshot(str(Path(directory) / f"{outcome}.png"))
        assert browser.complaints() == []


def test_many_nodes_fit_on_the_page(browser: Browser, tmp_path: Path) -> None:
    run = page_run(tmp_path, "huge", nodes=512, inference_nodes=128, steps=5)
    with Served(run) as page:
        browser.open(page.url)
        browser.wait(lambda: len(browser.all("#layout canvas")) == 1, "the drawing")
        assert "512 nodes" in browser.text("#layout-note") and "1024/1024 replicas ready" in browser.text(
            "#layout-note"
        )
        assert browser.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.complaints() == []


def test_a_sweep_leads_to_its_runs(browser: Browser, tmp_path: Path) -> None:
    records = []
    for index, lr in enumerate(("1e-5", "3e-5", "<i>1e-4</i>")):
        more = view_events.ending(130) if index == 0 else []
        # Where they really are: beside the sweep, whose ledger knows them.
        run = page_run(tmp_path / "runs", f"grpo-{index}", steps=30 + index, more=more, ago=100 - index)
        about = {"time": T0, "run": f"id{index}"}
        records.append({**about, "record": "run", "overrides": [f"trainer.lr={lr}", "experiment=tiny"]})
        records.append({**about, "record": "intent", "run_dir": str(run), "cluster": "slurm"})
    page_run(tmp_path / "runs", "another")
    sweep = tmp_path / "runs" / "sweeps" / "lr"
    sweep.mkdir(parents=True)
    (sweep / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with Served(sweep) as page:
        browser.open(page.url)
        browser.wait(lambda: len(browser.all("#sweep-table tbody tr")) == 3, "the table")
        assert "3 runs  ·  1 completed  ·  2 not over" in browser.text("#glance")
        assert "trainer.lr" in browser.text("#sweep-table thead") and "experiment" not in browser.text("#sweep-table")
        assert "<i>1e-4</i>" in browser.text("#sweep-table tbody tr:last-child")
        assert len(browser.all("#sweep-chart path.curve")) == 3
        browser.all("#sweep-table a")[1].click()
        browser.wait(lambda: browser.text("#name") == "grpo-1" and len(browser.all(".gpu")) == 16, "one of its runs")
        browser.all("#back")[0].click()
        browser.wait(lambda: len(browser.all("#sweep-table tbody tr")) == 3, "the table again")
        assert browser.complaints() == []
