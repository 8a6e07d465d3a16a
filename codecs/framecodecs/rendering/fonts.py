"""Finds font files for annotations. It imports no library: the process that starts the others calls it.

A font is the path of a file. For a collection, `#` and the number of a face may follow; without it the face
for simplified Chinese is taken if there is one.

Strategy of `find_fonts`: look into the usual folders of fontconfig for files whose names are known. It takes
one general font with letters of many scripts, one of Chinese, Japanese and Korean (CJK), and one for each of
some other scripts. An installed package with a CJK font has priority, because a user chose it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

MAGIC = (b"\0\1\0\0", b"OTTO", b"ttcf", b"true")
MOST_FILES = 20_000  # that are looked at; a full installation of Noto has 2,000
PACKAGE, PACKAGED = "manimgx_fonts_cjk", "NotoSansCJK-VF.otf.ttc"
GENERAL = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "FreeSans.ttf", "LiberationSans-Regular.ttf")
CJK = (
    PACKAGED,
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansCJKjp-Regular.otf",
    "NotoSansCJKkr-Regular.otf",
    "NotoSansCJKtc-Regular.otf",
    "SourceHanSans.ttc",
    "SourceHanSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf",
    "SourceHanSans-Regular.otf",
    "NotoSansSC-Regular.otf",
    "NotoSansJP-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "uming.ttc",
)
SCRIPTS = ("Arabic", "Hebrew", "Thai", "Devanagari", "Bengali", "Tamil")
OTHERS = tuple((f"NotoSans{script}-Regular.ttf",) for script in SCRIPTS)


class NoFont(ValueError):
    """A path that is no font file; the text is the end of a sentence."""


def font_folders() -> list[Path]:
    """The folders in which fontconfig looks by default."""
    home = Path(os.path.expanduser("~"))
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    return [data / "fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


def find_fonts(folders: Iterable[Path] | None = None) -> tuple[str, ...]:
    """The fonts that are there, the preferred one first."""
    there = _files(font_folders() if folders is None else folders)
    packaged = _packaged()
    if packaged is not None:
        there[PACKAGED] = packaged
    preferred = (next(filter(there.__contains__, names), None) for names in (GENERAL, CJK, *OTHERS))
    return tuple(str(there[name]) for name in preferred if name is not None)


def has_cjk(fonts: Sequence[str]) -> bool:
    """Whether one of the fonts that `find_fonts` returned has Chinese, Japanese or Korean letters."""
    return any(Path(path_of(font)[0]).name in CJK for font in fonts)


def _files(folders: Iterable[Path]) -> dict[str, Path]:
    wanted = frozenset((*GENERAL, *CJK, *(name for names in OTHERS for name in names)))
    found, seen = dict[str, Path](), 0
    for folder in folders:
        for place, below, names in os.walk(folder):
            below.sort()
            seen += len(names)
            for name in wanted.intersection(names):
                found.setdefault(name, Path(place) / name)
            if seen > MOST_FILES:
                return found
    return found


def _packaged() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    return next((path for place in places or () if (path := Path(place) / PACKAGED).is_file()), None)


def path_of(font: str) -> tuple[str, int | None]:
    """The path of a font, and the number of its face if it names one."""
    path, mark, number = font.rpartition("#")
    return (path, int(number)) if mark and number.isdecimal() and number.isascii() else (font, None)


def check_font(font: str) -> None:
    """Raises NoFont."""
    path, _ = path_of(font)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise NoFont(f"cannot be read: {error.strerror}") from error
    if start not in MAGIC:
        raise NoFont("is no TrueType or OpenType font")
