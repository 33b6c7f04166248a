"""Headless Chromium over its DevTools pipe: no driver, no further package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page; everything that it complains of is kept in ``complaints``."""

    def __init__(self, profile: Path) -> None:
        program = find()
        assert program is not None, "the caller looks first"
        self.complaints: list[str] = []
        self.requests: list[str] = []
        their_in, self.out = os.pipe()
        self.inn, their_out = os.pipe()

        def pipes() -> None:  # Chromium reads on 3 and writes on 4
            spare_in, spare_out = os.dup(their_in), os.dup(their_out)
            os.dup2(spare_in, 3)
            os.dup2(spare_out, 4)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        self.process = subprocess.Popen(
            [program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(their_in)
        os.close(their_out)
        self.buffer, self.last, self.session = b"", 0, None
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in pages if one["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self.last:
                assert "error" not in got, got
                return got["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.inn, 1 << 16)
            assert part, "Chromium has gone"
            self.buffer += part
        one, self.buffer = self.buffer.split(b"\0", 1)
        got = json.loads(one)
        method, params = got.get("method"), got.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return got

    def open(self, path: Path, *, width: int, dark: bool = False, height: int = 900) -> float:
        """Load a page at a width; seconds until it has loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        start = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass
        return time.monotonic() - start

    def evaluate(self, expression: str) -> Any:
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        got = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(got["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self.out)
        os.close(self.inn)


OVERFLOW = """
(() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > wide) found.push("the page scrolls sideways");
  for (const e of document.querySelectorAll("main *")) {
    const box = e.getBoundingClientRect();
    if (!box.width || !box.height || e.closest(".scroll") || e.closest("svg")) continue;
    if (!e.checkVisibility({contentVisibilityAuto: true})) continue;
    if (box.right > wide + 1 || box.left < -1) found.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 30)}`);
  }
  return found;
})()
"""
"""What sticks out of the page; tables scroll in a box of their own."""

OVERLAP = """
(() => {
  const found = [], texts = [];
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, parent = node.parentElement;
    if (!node.textContent.trim() || !parent.checkVisibility({visibilityProperty: true})) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1 && box.height > 1) texts.push([box, node.textContent.trim()]);
  }
  texts.sort((a, b) => a[0].top - b[0].top);
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length && texts[j][0].top < texts[i][0].bottom - 2; j++) {
      const [a, b] = [texts[i][0], texts[j][0]];
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 && Math.min(a.bottom, b.bottom) - b.top > 3)
        found.push(texts[i][1].slice(0, 40) + " | " + texts[j][1].slice(0, 40));
    }
  return found;
})()
"""
"""Pieces of text that lie on one another."""
