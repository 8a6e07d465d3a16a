"""A window of Chromium with OHIF in it, and a web server that hosts viewers on an origin of its own."""

import base64
import http.server
import io
import json
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from chromium import Chromium
from PIL import Image

WITHIN = 60.0  # seconds; the first page of the viewer parses 17 MB of code
VIEWPORT = "cornerstone.getRenderingEngines()[0].getViewports()[0]"
# The colours of the canvas in the middle of each block, row by row.
PAINTED = f"""((side, block) => {{
  const viewport = {VIEWPORT}, image = viewport.getImageData().imageData;
  viewport.render();
  const pen = viewport.getCanvas().getContext("2d"), found = [];
  for (let y = block / 2; y < side; y += block) {{
    for (let x = block / 2; x < side; x += block) {{
      const place = viewport.worldToCanvas(image.indexToWorld([x, y, 0]));
      const [left, top] = place.map(each => Math.round(each * devicePixelRatio));
      found.push([...pen.getImageData(left, top, 1, 1).data].slice(0, 3));
    }}
  }}
  return found;
}})"""


class Viewer(Chromium):
    """OHIF in a window of fixed size. The window is kept, so code is loaded from its cache."""

    def __init__(self):
        graphics = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
        super().__init__(*graphics, "--ignore-certificate-errors")
        self.size(1400, 900)

    def until(self, condition):
        """The result of `condition`, as soon as it is true."""
        end = time.monotonic() + WITHIN
        while not (found := condition()):
            assert time.monotonic() < end, f"{self.text('body')}\n{self.said}"
            time.sleep(0.1)
        return found

    def shows(self, script):
        """The value of an expression, as soon as it is true."""
        guarded = f"(async () => {{ try {{ return await {script} }} catch {{ return null }} }})()"
        return self.until(lambda: self.run(guarded))

    def box(self, selector):
        """Left, top, width and height on the page."""
        rectangle = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return self.shows(f"(({{x, y, width, height}}) => width && [x, y, width, height])({rectangle})")

    def says(self, *texts):
        self.shows(f"{json.dumps(texts)}.every(text => document.body.innerText.includes(text))")

    def open_study(self, server, study, place="viewer"):
        self.said.clear()
        self.open(f"{server.origin}/viewer/{place}?StudyInstanceUIDs={study}")

    def errors(self):
        return [text for text in self.said if "Content Security Policy" in text or "Uncaught" in text]

    def pixels(self):
        """The page as it is painted: rows, columns, red green blue."""
        taken = self.call("Page.captureScreenshot", format="png")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")).astype(int)

    def image(self, part):
        """The values of the image whose identifier has this part. The viewport shows it then."""
        return np.array(
            self.shows(
                f"(async viewport => {{ const ids = viewport.getImageIds();"
                f" await viewport.setImageIdIndex(ids.findIndex(id => id.includes({json.dumps(part)})));"
                f" return Array.from(viewport.getImageData().scalarData) }})({VIEWPORT})"
            )
        )

    def around_the_middle(self):
        """The colours of four places around the middle of the first canvas: 4, 3."""
        x, y, width, height = self.box("canvas")
        pixels, row, column = self.pixels(), round(y + height / 2), round(x + width / 2)
        return np.array([pixels[row + down, column + right] for down in (-30, 30) for right in (-30, 30)])

    def painted(self, side, block):
        """Red, green and blue in the middle of each block of the image on display: rows, columns, 3."""
        count = side // block
        return np.array(self.run(f"{PAINTED}({side}, {block})")).reshape(count, count, 3)


def files_of(ohif):
    """The folder of the files that the verb `viewer install` has unpacked for the server in `ohif`."""
    place = ohif / "data" / "viewer"
    return place / json.loads((place / "viewer.json").read_bytes())["folder"]


class OwnHost(http.server.SimpleHTTPRequestHandler):
    """A web server of files, with deep links of the viewer."""

    def send_head(self):
        if self.path.startswith("/viewer/") and not Path(self.translate_path(self.path)).is_file():
            self.path = "/viewer/index.html"
        return super().send_head()

    def log_message(self, *_):
        pass


@contextmanager
def hosted(folder):
    """The origin of a host of the files in a folder."""
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(OwnHost, directory=folder))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{host.server_port}"
    finally:
        host.shutdown()
        host.server_close()
