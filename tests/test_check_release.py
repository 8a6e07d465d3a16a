"""check_release finds the faults for which `make release` fails."""

import gzip
import io
import json
import subprocess
import tarfile
import tomllib
import zipfile

import check_release
import pytest
from check_release import ROOT

from streamsrv import __version__

TREE = {
    "streamsrv/__init__.py": '__version__ = "0.1.0"\n',
    "streamsrv/web/pages/static/page.js": "1",
    "codecs/framecodecs/__init__.py": "",
    "tests/test_a.py": "",
    "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n## 0.1.0 (2026-11-30)\n",
}
TIME = 1795996800
DATE = (2026, 11, 30, 0, 0, 0)
METADATA = 'Metadata-Version: 2.4\nRequires-Dist: a_b>=1\nRequires-Dist: c; extra == "dev"\n'
WHEEL = {
    "streamsrv/__init__.py": "",
    "streamsrv/web/pages/static/page.js": "1",
    "framecodecs/__init__.py": "",
    "streamsrv-0.1.0.dist-info/METADATA": METADATA,
    "streamsrv-0.1.0.dist-info/licenses/LICENSE": "",
}
DEPENDENCY = {
    "name": "a-b",
    "version": "1.0",
    "purl": "pkg:pypi/a-b@1.0",
    "licenses": [{"expression": "MIT"}],
}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    for name, text in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for arguments in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def release(
    folder, *, wheel=WHEEL, source=(*TREE, "PKG-INFO"), components=(DEPENDENCY,), time=TIME, date=DATE
):
    """The three files of a release, in a new folder."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "streamsrv-0.1.0-py3-none-any.whl", "w") as archive:
        for name, text in wheel.items():
            archive.writestr(zipfile.ZipInfo(name, date), text)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in source:
            member = tarfile.TarInfo(f"streamsrv-0.1.0/{name}")
            member.mtime = time
            archive.addfile(member)
    (folder / "streamsrv-0.1.0.tar.gz").write_bytes(gzip.compress(packed.getvalue()))
    main = {"name": "streamsrv", "version": "0.1.0"}
    listed = {"bomFormat": "CycloneDX", "metadata": {"component": main}, "components": components}
    (folder / "streamsrv-0.1.0.cdx.json").write_text(json.dumps(listed))
    return folder


def test_a_good_release_has_no_finding(root, tmp_path):
    assert list(check_release.findings(root, release(tmp_path / "dist"))) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"wheel": WHEEL | {"tests/test_a.py": ""}}, "whl has tests/test_a.py"),
        (
            {"wheel": {n: t for n, t in WHEEL.items() if "page.js" not in n}},
            "lacks streamsrv/web/pages/static",
        ),
        ({"wheel": {n: t for n, t in WHEEL.items() if "LICENSE" not in n}}, "lacks the licence"),
        ({"date": (2020, 2, 2, 0, 0, 0)}, "whl has other times"),
        ({"source": TREE}, "lacks PKG-INFO"),
        ({"source": (*TREE, "PKG-INFO", "streamsrv/.draft")}, "gz has streamsrv/.draft"),
        ({"time": TIME + 1}, "gz has other times"),
        ({"components": ()}, "lacks a-b"),
        ({"components": (DEPENDENCY, DEPENDENCY | {"name": "pip"})}, "lists pip"),
        ({"components": (DEPENDENCY | {"licenses": []},)}, "a-b has no licenses"),
        ({"components": (DEPENDENCY | {"purl": "file:///x"},)}, "a path of this machine"),
    ],
)
def test_each_fault_of_a_file_is_found(root, tmp_path, change, finding):
    (found,) = check_release.findings(root, release(tmp_path / "dist", **change))
    assert finding in found


def test_other_files_are_found(root, tmp_path):
    folder = release(tmp_path / "dist")
    (folder / "streamsrv-0.0.9.tar.gz").write_bytes(b"")
    (found,) = check_release.findings(root, folder)
    assert "streamsrv-0.0.9.tar.gz" in found


@pytest.mark.parametrize(
    "sections", ["## Unreleased\n## 0.1.0\n## 0.0.9 (2026-11-30)\n", "## 0.1.0 (2026-11-30)\n"]
)
def test_a_changelog_without_the_date_of_this_version_is_found(root, sections):
    (root / "CHANGELOG.md").write_text(sections)
    assert list(check_release.of_changelog(root, "0.1.0"))


def test_this_version_has_a_dated_section():
    assert list(check_release.of_changelog(ROOT, __version__)) == []
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
