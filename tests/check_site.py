"""Checks the pages of the built documentation: `make docs` runs this.

    python tests/check_site.py build/site

No page may load a script, style, font or picture from another host, and every link within the site has to
lead to a file and, if it has a fragment, to an element with this id. Exit status 1 if it finds something.
"""

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")


class Page(HTMLParser):
    """`loaded` are the URLs that a browser fetches by itself, `links` those that a reader follows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loaded = set[str](), list[str](), list[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.ids.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif values.get(LOADING.get(tag, ""), ""):
            self.loaded.append(values[LOADING[tag]])


page_of = cache(Page)


def findings(site: Path):
    for path in sorted(site.rglob("*.html")):
        page = page_of(path)
        for url in page.loaded:
            if urlsplit(url).netloc:
                yield f"{path}: loads {url} from another host"
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path}: {url} leads nowhere"
            elif target.suffix == ".html" and unquote(parts.fragment) not in {"", *page_of(target).ids}:
                yield f"{path}: {url} names no element"
    for path in sorted(site.rglob("*.css")):
        for url in IN_STYLE.findall(path.read_text(encoding="utf-8")):
            yield f"{path}: loads {url} from another host"


def main() -> int:
    site = Path(sys.argv[1])
    found = list(findings(site))
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages, every link leads somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
