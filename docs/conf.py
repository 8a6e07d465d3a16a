"""The documentation as a site: `make docs` builds it with Sphinx in build/site.

The source folder is the checkout. So links of a page to README.md or a file of conf/ work on the site as they
do in the repository. The theme has no fonts or scripts of other hosts.
"""

import re
from pathlib import Path

from streamsrv import __version__

project = "streamsrv"
author = "the authors of streamsrv"
version = release = __version__
language = "en"

extensions = ["myst_parser"]
include_patterns = ["docs/**.md", "README.md", "SECURITY.md", "README.zh.md", "CHANGELOG.md", "perf/table.md"]
exclude_patterns = [".*", "build", "dist", "data", "**/__pycache__"]
root_doc = "docs/index"

myst_heading_anchors = 4  # links name headings as GitHub does
suppress_warnings = [
    "toc.not_included",  # test_docs.py has a rule of its own: docs/index.md links every page
    "misc.highlighting_failure",  # answers in the tutorial have `...` for omitted lines
]

html_theme = "furo"
html_title = "streamsrv"
html_show_sphinx = html_show_copyright = html_copy_source = html_use_index = False
nitpicky = True
highlight_language = "none"

SECTION = re.compile(r"^## (.+)\n((?:(?!^## ).*\n?)*)", re.MULTILINE)
LINK = re.compile(r"^- \[[^\]]*\]\(([^)]+)\.md\)", re.MULTILINE)


def add_navigation(app, page, source):
    """The sidebar is made from the lists of docs/index.md: a caption for each heading, an entry for each link
    at the beginning of a list item."""
    if page == root_doc:
        for heading, text in SECTION.findall(source[0]):
            entries = "\n".join(LINK.findall(text))
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"


def set_language(app, page, template, context, doctree):
    """A page in Chinese says so, for screen readers, fonts and search engines."""
    if page.startswith("docs/zh/") or page == "README.zh":
        context["language"] = "zh-CN"


def write_entrance(app, error):
    """/index.html of the site leads to its first page."""
    target = f"{root_doc}.html"
    text = f'<!doctype html><meta http-equiv="refresh" content="0; url={target}"><a href="{target}">Docs</a>'
    Path(app.outdir, "index.html").write_text(text, encoding="utf-8")


def setup(app):
    app.connect("source-read", add_navigation)
    app.connect("html-page-context", set_language)
    app.connect("build-finished", write_entrance)
    return {"parallel_read_safe": True}
