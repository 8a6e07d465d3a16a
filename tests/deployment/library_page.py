"""A page with Cornerstone3D and dicom-microscopy-viewer, as an application has them that is not OHIF."""

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CORNERSTONE, SLIDES = "5.14.0", "0.48.24"
# The peers of Cornerstone3D are named here, because npm would add more of them.
PACKAGES = (
    *(f"@cornerstonejs/{name}@{CORNERSTONE}" for name in ("core", "dicom-image-loader", "metadata", "utils")),
    *("@cornerstonejs/calculate-suv@1.1.0", "dicomweb-client@0.11.3", "events@3.3.0", "esbuild@0.28.2"),
)
PAGE = """<!doctype html><meta charset="utf-8">
<style>body {margin: 0} #place {width: 512px; height: 512px}</style><div id="place"></div>
<script src="/static/js/dicomMicroscopyViewer.min.js"></script>
<script type="module" src="/viewer_libraries.js"></script>"""


def npm(folder, *words):
    subprocess.run(
        ["npm", *words, "--silent"], cwd=folder, check=True, timeout=300, stdout=subprocess.DEVNULL
    )


def build(folder):
    """The folder of the page: library.html, its bundles, and the codecs of both libraries."""
    site = folder / "site"
    (folder / "package.json").write_text('{"private": true}')
    (folder / "nothing.js").write_text("export default {};")
    npm(folder, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps", *PACKAGES)
    npm(folder, "pack", f"dicom-microscopy-viewer@{SLIDES}")
    shutil.copy(HERE / "viewer_libraries.js", folder)
    loader = folder / "node_modules" / "@cornerstonejs" / "dicom-image-loader"
    sources = ("viewer_libraries.js", str(loader / "dist" / "esm" / "decodeImageFrameWorker.js"))
    absent = [f"--alias:{name}=./nothing.js" for name in ("fs", "path", "url")]  # modules of Node.js
    command = ["node_modules/.bin/esbuild", *sources, "--bundle", "--format=esm", "--entry-names=[name]"]
    subprocess.run([*command, f"--outdir={site}", "--log-level=warning", *absent], cwd=folder, check=True)
    (site / "wasm").mkdir()
    for codec in loader.parent.glob("codec-*/dist/*.wasm"):
        shutil.copy(codec, site / "wasm")
    (tarball,) = folder.glob("dicom-microscopy-viewer-*.tgz")
    subprocess.run(["tar", "xzf", tarball, "package/dist/dynamic-import"], cwd=folder, check=True)
    # The library looks for its worker below /static/js.
    (site / "static").mkdir()
    (folder / "package" / "dist" / "dynamic-import").rename(site / "static" / "js")
    (site / "library.html").write_text(PAGE)
    return site
