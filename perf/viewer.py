"""A CT in OHIF in Chromium: the time from the navigation to the first image, and the frames after it.

Both services stand behind one nginx, which also has the files of the viewer, with one configuration for both.
Each round opens a study that the browser has not seen; the code of the viewer is in its cache. The browser
takes most of the time and of the two cores, and the same for both services.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from perf import bodies
from perf.results import NGINX, Row
from perf.run import Run, forget, rows_of
from perf.servers import PYTHONPATH, Service, free_port, running
from tests.chromium import Chromium, found

STUDY = 700
SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin"
WITHIN = 120.0  # seconds of one study
QUIET = 1.5  # seconds without a frame, after which no more are expected
FLAGS = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
SERVER = """
    server {
        listen 127.0.0.1:PORT;
        location /viewer/ { alias FILES/; try_files $uri /viewer/index.html; }
        location = /viewer/app-config.js { alias FOLDER/app-config.js; }
        location /dicom/ { proxy_pass http://127.0.0.1:BEHIND/; }
    }
"""
SOURCE = {
    "friendlyName": "service",
    "name": "service",
    "qidoRoot": "/dicom",
    "wadoRoot": "/dicom",
    "imageRendering": "wadors",
    "thumbnailRendering": "wadors",
    "enableStudyLazyLoad": True,
    "omitQuotationForMultipartRequest": True,
}
CONFIG = {
    "routerBasename": "/viewer",
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "defaultDataSourceName": "service",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "service",
            "configuration": SOURCE,
        }
    ],
}
# Milliseconds since the navigation at which the first picture was painted.
WATCH = """
performance.setResourceTimingBufferSize(5000);
document.addEventListener("CORNERSTONE_STACK_NEW_IMAGE", () => { window.loaded = true }, true);
document.addEventListener("CORNERSTONE_IMAGE_RENDERED", () => {
  if (window.loaded) window.painted ??= performance.now();
}, true);
"""
LOADED = """((data, frames) => [window.painted, data[0]?.startTime, frames.length, frames[0]?.startTime,
  Math.max(...frames.map(each => each.responseEnd)), performance.now()])(
  ...["/dicom/", "/frames/"].map(part => performance.getEntriesByType("resource")
    .filter(each => each.name.includes(part) && each.responseEnd)
    .sort((one, other) => one.startTime - other.startTime)))"""
MEASURES = (
    "first image of a CT of {} slices in OHIF",
    "first image after the first search",
    "a frame of it, in OHIF",
)


def viewer(run: Run) -> Iterator[Row]:
    """No rows without Chromium, npm and nginx."""
    if not all((found(), shutil.which("npm"), shutil.which(NGINX, path=SYSTEM_PATH))):
        return
    files = _installed(run.folder / "viewer")
    count = run.size.instances
    with run.both("served") as both, _hosted(run.folder, files, both) as origins:
        times: list[dict[str, list[float]]] = [{each.name: [] for each in both} for _ in MEASURES]
        with closing(Chromium(*FLAGS)) as browser:
            browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            for turn in range(run.size.rounds + 1):  # the first one loads the code
                body = bodies.ct_study(STUDY + turn, count)
                run.store(body, both)
                for each in both:
                    found_times = _opened(browser, origins[each.name], body.study)
                    if turn:
                        for kept, one in zip(times, found_times, strict=True):
                            kept[each.name].append(one)
                    forget(each, body.study)
    for measure, values in zip(MEASURES, times, strict=True):
        yield from rows_of(measure.format(count), values)


def _opened(browser: Chromium, origin: str, study: str) -> tuple[float, float, float]:
    """Milliseconds from the navigation to the first image; from the first search to it; and of each frame,
    from the first request to the last byte."""
    browser.open("about:blank")
    browser.open(f"{origin}/viewer/viewer?StudyInstanceUIDs={study}")
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        time.sleep(0.25)
        painted, searched, frames, begun, ended, now = browser.run(LOADED)
        if painted and frames and now - ended > QUIET * 1e3:
            return float(painted), float(painted - searched), float(ended - begun) / frames
    raise RuntimeError(f"{origin} shows no image: {browser.said}")


def _installed(folder: Path) -> Path:
    """The files of the viewer, which npm downloads."""
    command = [sys.executable, "-m", "streamsrv", "viewer", "install", "--data", str(folder)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    place = folder / "viewer"
    return place / str(json.loads((place / "viewer.json").read_bytes())["folder"])


@contextmanager
def _hosted(folder: Path, files: Path, both: Sequence[Service]) -> Iterator[dict[str, str]]:
    """The origin of each service with the viewer before it."""
    origins, blocks = {}, []
    for each in both:
        port = free_port()
        origins[each.name] = f"http://{each.host}:{port}"
        text = SERVER.replace("PORT", str(port)).replace("FILES", str(files)).replace("FOLDER", str(folder))
        blocks.append(text.replace("BEHIND", f"{each.port}{each.prefix}"))
    (folder / "app-config.js").write_text(f"window.config = {json.dumps(CONFIG)};")
    text = Path(__file__).with_name("viewer.conf").read_text()
    values = {
        "FOLDER": str(folder),
        "USER": "user root" if os.geteuid() == 0 else "",
        "SERVERS": "".join(blocks),
    }
    for word, value in values.items():
        text = text.replace(word, value)
    path = folder / "viewer.conf"
    path.write_text(text)
    nginx = shutil.which(NGINX, path=SYSTEM_PATH)
    assert nginx is not None
    service = Service(NGINX, port, "", folder=folder)
    with running(
        service, [nginx, "-p", str(folder), "-e", "stderr", "-c", str(path)], folder, "/viewer/index.html"
    ):
        yield origins
