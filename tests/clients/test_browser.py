"""Pictures as they are stored, in a real browser: Chromium draws a page with `<img>` and says what it sees.

Each tile is compared with the same tile as PNG, which is always drawn here.
"""

import http.server
import json
import re
import shutil
import subprocess
import threading
from urllib.parse import urlencode

import clinic as world
import pytest
from clinic import SLIDE, SLIDE_SERIES, SLIDE_STUDY, ask

WITHIN = 90  # seconds; a loaded machine starts browsers slowly
PAGE = """<!doctype html><body><script>
const urls = URLS;
const seen = url => new Promise((resolve, reject) => {
  const image = new Image();
  image.crossOrigin = "anonymous";
  image.onerror = () => reject(url);
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", {colorSpace: "srgb"});
    context.drawImage(image, 0, 0);
    resolve([canvas.width, canvas.height, ...context.getImageData(0, 0, canvas.width, canvas.height).data]);
  };
  image.src = url;
});
Promise.all(urls.map(seen)).then(JSON.stringify, String).then(text => {
  const element = document.createElement("p");
  element.textContent = text;
  document.body.append(element);
});
</script>"""


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


def seen_by(chromium, folder, urls):
    """For each URL: width, height, then red, green, blue and opacity of each pixel."""
    page = folder / "page.html"
    page.write_text(PAGE.replace("URLS", json.dumps(urls)))
    return json.loads(text_of(chromium, folder, page.as_uri()))


def text_of(chromium, folder, url):
    """The paragraph that the scripts of a page have written."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--force-color-profile=srgb", "--virtual-time-budget=60000", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN)
    found = re.search(r"<p>(.*?)</p>", done.stdout)
    assert found is not None, done.stdout[-500:] + done.stderr[-2000:]
    return found[1]


class Isolated(http.server.BaseHTTPRequestHandler):
    """A page with COEP. Its script writes whether each `<img>` of the query was shown."""

    page = b"""<!doctype html><body><script>
    const urls = new URLSearchParams(location.search).getAll("img");
    const shown = url => new Promise(resolve => {
      const image = new Image();
      image.onload = () => resolve("shown");
      image.onerror = () => resolve("refused");
      image.src = url;
    });
    Promise.all(urls.map(shown)).then(words => {
      document.body.append(Object.assign(document.createElement("p"), {textContent: words.join(" ")}));
    });
    </script>"""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_):
        pass


@pytest.fixture
def pages():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Isolated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_an_isolated_page_of_a_listed_origin_shows_pictures(
    chromium, clinic, server_factory, pages, tmp_path
):
    """Its `<img>` without crossorigin sends no Origin."""
    server = server_factory("--cors-origins", f"http://127.0.0.1:{pages}")
    world.store(f"{server.url}/studies", [world.file_of(world.palette())])
    path = f"/studies/{world.OTHER_STUDY}/series/{world.PALETTE_SERIES}/instances/{world.PALETTE}/rendered"
    query = urlencode([("img", origin.url + path) for origin in (server, clinic)])
    assert text_of(chromium, tmp_path, f"http://127.0.0.1:{pages}/?{query}") == "shown shown"
    assert text_of(chromium, tmp_path, f"http://localhost:{pages}/?{query}") == "refused shown"


def test_a_browser_shows_stored_tiles_as_they_are_drawn(chromium, clinic, tmp_path):
    frames = [
        f"{clinic.url}/studies/{SLIDE_STUDY}/series/{SLIDE_SERIES}/instances/{SLIDE}/frames/{n}/rendered"
        for n in (1, 2, 3, 4)
    ]
    for url, tile in zip(frames, world.tiles(1, 4), strict=True):
        assert ask(f"{url}?iccprofile=no", Accept="image/jpeg").body.rstrip(b"\0") == tile.rstrip(b"\0")
    asked = [f"{url}?accept={kind}&iccprofile=no" for url in frames for kind in ("image/jpeg", "image/png")]
    seen = seen_by(chromium, tmp_path, asked)
    for stored, drawn in zip(seen[::2], seen[1::2], strict=True):
        assert stored[:2] == drawn[:2] == [world.TILE, world.TILE]
        differences = [abs(one - other) for one, other in zip(stored[2:], drawn[2:], strict=True)]
        assert max(differences) <= 3
        assert sum(differences) / len(differences) < 1
    assert seen[0] != seen[2]
