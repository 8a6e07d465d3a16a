"""Checks the files of a release: `make release` runs this in a checkout.

    python tests/check_release.py dist

- CHANGELOG.md has this version, with its date, as the newest one.
- The source archive has the files under version control, and the wheel those of the two packages. All have
  the time of that date.
- The list of components (CycloneDX) has every dependency of the wheel with version and licence. It has no
  path of the machine that made it.

Exit status 1 if it finds something.
"""

import datetime
import email
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"streamsrv/": "", "codecs/framecodecs/": "codecs/"}  # folder -> its prefix that the wheel has not
MADE = "PKG-INFO"  # by the builder
VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
SECTION = re.compile(r"^## (\S+)(?: \((\d{4}-\d{2}-\d{2})\))?$", re.MULTILINE)


def findings(root: Path, folder: Path):
    (version,) = VERSION.findall((root / "streamsrv" / "__init__.py").read_text(encoding="utf-8"))
    yield from of_changelog(root, version)
    names = [f"streamsrv-{version}{end}" for end in ("-py3-none-any.whl", ".tar.gz", ".cdx.json")]
    found = sorted(path.name for path in folder.iterdir())
    if found != sorted(names):
        yield f"{folder} has {', '.join(found)} instead of {', '.join(names)}"
        return
    wheel, source, components = (folder / name for name in names)
    yield from of_source(root, source, f"streamsrv-{version}/")
    yield from of_wheel(root, wheel, f"streamsrv-{version}.dist-info/")
    yield from of_components(components, version, requirements(wheel, version))


def of_changelog(root: Path, version: str):
    sections = SECTION.findall((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if sections[0] != ("Unreleased", ""):
        yield "CHANGELOG.md does not begin with an empty or filled section Unreleased"
    if len(sections) < 2 or sections[1][0] != version or not sections[1][1]:
        yield f"CHANGELOG.md has no section `## {version} (YYYY-MM-DD)` after Unreleased"


def released(root: Path) -> int:
    """Seconds since 1970 at the beginning of the newest dated section."""
    dates = [date for _, date in SECTION.findall((root / "CHANGELOG.md").read_text(encoding="utf-8")) if date]
    return int(datetime.datetime.fromisoformat(f"{dates[0]}T00:00:00+00:00").timestamp())


def tracked(root: Path) -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    return set(filter(None, done.stdout.split("\0")))


def differences(name: str, expected: set[str], found: set[str]):
    for each in sorted(expected - found):
        yield f"{name} lacks {each}"
    for each in sorted(found - expected):
        yield f"{name} has {each}, which is not under version control"


def of_source(root: Path, path: Path, prefix: str):
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    found = {member.name.removeprefix(prefix) for member in members}
    yield from differences(path.name, tracked(root) | {MADE}, found)
    if {member.mtime for member in members} != {released(root)}:
        yield f"{path.name} has other times than that of CHANGELOG.md: was SOURCE_DATE_EPOCH set?"


def of_wheel(root: Path, path: Path, information: str):
    expected = {
        name.removeprefix(prefix)
        for name in tracked(root)
        for start, prefix in PACKAGES.items()
        if name.startswith(start)
    }
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    found = {member.filename for member in members if not member.filename.startswith(information)}
    yield from differences(path.name, expected, found)
    date = datetime.datetime.fromtimestamp(released(root), datetime.UTC).timetuple()[:6]
    if {member.date_time for member in members} != {date}:
        yield f"{path.name} has other times than that of CHANGELOG.md: was SOURCE_DATE_EPOCH set?"
    if f"{information}licenses/LICENSE" not in {member.filename for member in members}:
        yield f"{path.name} lacks the licence"


def requirements(wheel: Path, version: str) -> set[str]:
    """The names of the packages that the wheel installs on this machine without extras."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"streamsrv-{version}.dist-info/METADATA"))
    wanted = map(Requirement, metadata.get_all("Requires-Dist", ()))
    return {
        canonicalize_name(each.name)
        for each in wanted
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def of_components(path: Path, version: str, required: set[str]):
    text = path.read_text(encoding="utf-8")
    listed = json.loads(text)
    main = listed["metadata"]["component"]
    if (listed["bomFormat"], main["name"], main.get("version")) != ("CycloneDX", "streamsrv", version):
        yield f"{path.name} does not describe streamsrv {version}"
    names = {canonicalize_name(each["name"]) for each in listed["components"]}
    for name in sorted(required - names):
        yield f"{path.name} lacks {name}"
    for name in sorted({"pip", "streamsrv", "pytest"} & names):
        yield f"{path.name} lists {name}, which is no dependency: was the environment fresh?"
    for each in listed["components"]:
        for field in ("version", "licenses", "purl"):
            if not each.get(field):
                yield f"{path.name}: {each['name']} has no {field}"
    if "file:" in text or str(Path.home()) in text:
        yield f"{path.name} has a path of this machine"


def main() -> int:
    folder = Path(sys.argv[1])
    found = list(findings(ROOT, folder))
    print("\n".join(found) or f"{', '.join(sorted(path.name for path in folder.iterdir()))}: as it should be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
