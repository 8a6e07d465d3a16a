"""Drives Debian's Chromium over a pair of pipes (Chrome DevTools Protocol): opens pages, types, clicks, takes
pictures. Every wait has a deadline and fails with the words of the page."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

WITHIN = 20.0  # seconds; a loaded machine is slow
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "ArrowRight": 39, "/": 191}


def found():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """One browser with an empty profile, and one page in it. `said` has the errors of the page."""

    def __init__(self, *flags):
        self.said = []
        self._numbers = itertools.count(1)
        self._rest = b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (their_in, self._out), (self._in, their_out) = os.pipe(), os.pipe()
        command = [
            *(found(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
            *("--no-first-run", "--force-color-profile=srgb", f"--user-data-dir={self._profile.name}"),
            *(*flags, "about:blank"),
        ]
        # Chromium reads from descriptor 3 and writes to descriptor 4.
        script = f'exec 3<&{their_in} 4>&{their_out}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        os.set_blocking(self._in, False)
        self._session = None
        pages = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    # The protocol

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _message(self):
        deadline = time.monotonic() + WITHIN
        while b"\0" not in self._rest:
            assert time.monotonic() < deadline, "the browser does not answer"
            try:
                chunk = os.read(self._in, 1 << 20)
            except BlockingIOError:
                time.sleep(0.002)
                continue
            assert chunk, "the browser has ended"
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        if message.get("method") == "Runtime.exceptionThrown":
            self.said.append(message["params"]["exceptionDetails"].get("exception", {}).get("description"))
        elif message.get("method") == "Log.entryAdded":
            self.said.append(message["params"]["entry"]["text"])
        return message

    # The page

    def open(self, url):
        self.call("Page.navigate", url=url)

    def run(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script):
        """The value of the expression, as soon as it is true."""
        deadline = time.monotonic() + WITHIN
        while True:
            value = self.run(
                f"(() => {{ try {{ const value = {script}; return value instanceof Node || value }}"
                f" catch {{ return false }} }})()"
            )
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"{script} stays false:\n{self.text('body')}\n{self.said}")
            time.sleep(0.02)

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText")

    def texts(self, selector):
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.innerText)")

    def click(self, selector, containing=""):
        """Clicks at the middle of the first such element, with the mouse, as soon as it stands still."""
        matching = f"[...document.querySelectorAll({json.dumps(selector)})]"
        one = f"{matching}.find(each => each.innerText.includes({json.dumps(containing)}))"
        middle = (
            f"(each => {{ each.scrollIntoView({{block: 'center'}}); const box = each.getBoundingClientRect();"
            f" return box.width && [box.x + box.width / 2, box.y + box.height / 2] }})({one})"
        )
        place = None
        while place != (place := self.wait(middle)):
            time.sleep(0.02)
        x, y = place
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def mouse(self, kind, x, y):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def write(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key):
        more = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        names = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **names, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    def choose(self, selector, paths):
        """Chooses files in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def size(self, width, height, scale=1):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def prefer(self, scheme):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path):
        taken = self.call("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(taken["data"]))
