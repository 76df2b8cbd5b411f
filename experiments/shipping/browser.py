"""Serves the page of fsdit.app in a process of its own, and drives it in Chromium by Playwright."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsdit.errors import ConfigError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
_START = 120.0  # seconds that the server may take to start
_WAIT = 120_000  # milliseconds for samples, with the compilation of the first


@contextlib.contextmanager
def served(*arguments: str, cwd: Path | None = None) -> Iterator[str]:
    """Serves the page in a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "fsdit.app", f"--port={port}", *arguments)
    with subprocess.Popen(command, cwd=cwd) as process:
        try:
            _wait(address, process)
            yield address
        finally:
            process.terminate()


def _wait(address: str, process: subprocess.Popen) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), direct.open(address, timeout=10):
            return
        time.sleep(0.2)
    raise ConfigError("the page did not start; see its output above")


@contextlib.contextmanager
def browsed(address: str, width: int, height: int = 900) -> Iterator[tuple[Any, list[str]]]:
    """Opens the page in Chromium; yields Playwright's page, and addresses that it asks for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda opened: asked.append(opened.url))
        page.goto(address)
        page.get_by_role("button", name="Generate").wait_for()
        yield page, asked
        browser.close()


def take_example(page: Any, name: str) -> None:
    """Takes an example's supports and waits until they are shown."""
    page.get_by_role("button", name=name).click()
    page.locator("#supports img").nth(4).wait_for()


def generate(page: Any, count: int) -> None:
    """Generates the number of samples that is set and waits until they can be saved."""
    page.get_by_role("button", name="Generate").click()
    page.locator("#samples img").nth(count - 1).wait_for(timeout=_WAIT)
    page.locator("#downloads a").first.wait_for()
