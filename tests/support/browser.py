"""A real browser without a screen: Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.waiting import PATIENCE, wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
#: That flag: commands come in on descriptor 3, answers go out on 4.
PIPES = ("/bin/sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null')


class Browser:
    """One page of a browser that has its own empty profile.  Skips the test where there is none."""

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip("needs Chromium: apt-get install chromium")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._numbers = itertools.count(1)
        self._answers = b""
        self._process = subprocess.Popen(
            [*PIPES, program, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            targets = self._call("Target.getTargets")["targetInfos"]
            (page,) = (target["targetId"] for target in targets if target["type"] == "page")
            attached = self._call("Target.attachToTarget", targetId=page, flatten=True)
            self._session: str = attached["sessionId"]
            self.call("Page.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and remove its profile."""
        with self._process as process:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        self._profile.cleanup()

    def open(self, url: str) -> None:
        """Load a page."""
        loaded = self.call("Page.navigate", url=url)
        assert "errorText" not in loaded, f"{url}: {loaded['errorText']}"
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Return when *expression* is true in the page."""
        wait_until(lambda: self.evaluate(expression), why=f"it was never true: {expression}")

    def text(self, selector: str) -> str:
        """The visible text of an element, ``""`` for none."""
        text = self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        assert isinstance(text, str)
        return text

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the page another size, in CSS pixels, and the colours that its user likes."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Save what is seen, as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """A command to the page."""
        return self._call(method, self._session, **params)

    def _call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        number = next(self._numbers)
        command: dict[str, object] = {"id": number, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        self._process.stdin.write(json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while (answer := self._next(deadline, method)).get("id") != number:
            pass  # an event
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self, deadline: float, method: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\0" not in self._answers:
            left = max(deadline - time.monotonic(), 0.0)
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            assert ready, f"{method}: no answer in {PATIENCE} s"
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            assert data, f"{method}: the browser has ended"
            self._answers += data
        message, _, self._answers = self._answers.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed
