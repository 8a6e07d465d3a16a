"""Pictures as they are stored, in a real browser: Chromium draws a page with `<img>` and says what it sees.

Each tile is compared with the same tile as PNG, which is always drawn here.
"""

import json
import re
import shutil
import subprocess

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
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--force-color-profile=srgb", "--virtual-time-budget=60000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN)
    found = re.search(r"<p>(.*?)</p>", done.stdout)
    assert found is not None, done.stdout[-500:] + done.stderr[-2000:]
    return json.loads(found[1])


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
