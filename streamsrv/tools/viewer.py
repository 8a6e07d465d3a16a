"""The verb `viewer`: installs OHIF, a web viewer, in the folder of a store, and removes it.

The package comes from npm, which knows its registry, or from a file. One version is known to work here: its
digest is a constant. The build is for the root of a host, so its paths are rewritten for /viewer/.

    DATA/viewer/NAME/          the files of one installation, text and code also as gzip and zstd
    DATA/viewer/viewer.json    the table of its files

Rules of this file
- All files are on the disk before the table names them. The table is replaced in one step, so a server that
  runs meanwhile serves the viewer before or the viewer after, never a mixture.
- The folder is locked. The next installation removes the files of an interrupted one.
- A file whose contents are rewritten does not count as named by its digest: browsers ask for it each time.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zstandard

from streamsrv.config import add_config_argument, settings_of
from streamsrv.errors import StoreLocked, StreamsrvError
from streamsrv.tools.ownership import hand_over
from streamsrv.tools.package import PackageError, PackedFile, check_integrity, files_of
from streamsrv.web.pages.static import shrinks
from streamsrv.web.pages.viewer import FOLDER, PAGE, TABLE, coded_path
from streamsrv.wire.codings import WORTH_CODING

PACKAGE, VERSION = "@ohif/app", "3.13.2"
SPECIFIER = f"{PACKAGE}@{VERSION}"
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
NPM_SECONDS = 900
ZSTD_LEVEL, GZIP_LEVEL = 12, 6
BUILD, LICENSE = "dist/", "LICENSE"
# A runtime for models, source maps, settings of other hosts, and files that load scripts of other origins.
LEFT_OUT = re.compile(
    r"ort/.*|.*\.map|_headers|_redirects|serve\.json|app-config\.js|google\.js|silent-refresh\.html|sw\.js"
)
# The name has a digest of the contents.
NAMED = re.compile(r"(?:.*[./])?[0-9a-f]{16}\.[a-z0-9]+")
# In workers there is no PUBLIC_URL, but their own URL.
ROOT = b'(self.PUBLIC_URL||new URL(".",self.location).pathname)'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="install | remove", required=True)
    install = actions.add_parser("install", help=f"install {SPECIFIER}, or replace the installed one")
    install.add_argument(
        "--from",
        dest="tarball",
        type=Path,
        metavar="TARBALL",
        help=f"the file that `npm pack {SPECIFIER}` makes, for machines without npm or internet",
    )
    install.add_argument(
        "--integrity",
        default=INTEGRITY,
        metavar="SHA512",
        help=f"the digest of another build of {PACKAGE}, as npm prints it; only {VERSION} is tested",
    )
    remove = actions.add_parser("remove", help="remove the viewer")
    for action in (install, remove):
        add_config_argument(action)
        action.add_argument(
            "--data", metavar="DIR", help="the folder of the store; default: the setting `data`"
        )


def run(args: argparse.Namespace) -> int:
    data = Path(settings_of(args).data)
    if args.action == "remove":
        remove(data)
        print(f"the viewer is removed from {data}")
        return 0
    if args.tarball is not None:
        table = install(data, args.tarball, args.integrity)
    else:
        with tempfile.TemporaryDirectory(prefix="streamsrv-viewer-") as folder:
            table = install(data, packed_by_npm(Path(folder)), args.integrity)
    print(f"{table['package']} {table['version']} is installed in {data}: the server has it at /viewer/")
    return 0


def packed_by_npm(folder: Path) -> Path:
    """Lets npm download the package into `folder`. Raises StreamsrvError with npm's own words."""
    npm = shutil.which("npm")
    if npm is None:
        raise StreamsrvError(
            "npm is not installed, and it downloads the viewer. Install npm, or run "
            f"`npm pack {SPECIFIER}` on another machine, and `streamsrv viewer install --from FILE` here"
        )
    command = [npm, "pack", SPECIFIER, "--ignore-scripts", "--loglevel=error", "--no-update-notifier"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=NPM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StreamsrvError(f"npm has not downloaded {SPECIFIER} in {NPM_SECONDS} seconds") from None
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        lines = done.stderr.decode("utf-8", "replace").split("\n")
        reason = " ".join(line.removeprefix("npm error").removeprefix("npm ERR!").strip() for line in lines)
        raise StreamsrvError(
            f"npm could not download {SPECIFIER}: {reason.strip()[:500] or 'it gives no reason'}"
        )
    return tarballs[0]


def remove(data: Path) -> None:
    """Raises StreamsrvError if no viewer is installed."""
    with locked(data / FOLDER, create=False) as folder:
        (folder / TABLE).unlink(missing_ok=True)
        _sweep(folder, keep=None)
        folder.rmdir()


def install(data: Path, tarball: Path, integrity: str) -> Mapping[str, Any]:
    """Installs the package and returns its table. Raises StreamsrvError and OSError; then everything is as it
    was."""
    if not tarball.is_file():
        raise StreamsrvError(f"there is no file {tarball}")
    check_integrity(tarball, integrity, SPECIFIER if integrity == INTEGRITY else "the expected package")
    with locked(data / FOLDER, create=True) as folder:
        kept = _installed(folder)
        _sweep(folder, keep=kept)
        place = folder / secrets.token_hex(8)
        try:
            table = _unpacked(tarball, place)
            _write(place / TABLE, json.dumps(table).encode())
            hand_over(data, folder)
            os.sync()
            (place / TABLE).rename(folder / TABLE)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        _sync_folder(folder)
        _sweep(folder, keep=place.name)
    return table


def _sync_folder(folder: Path) -> None:
    """Names in the folder are on the disk when this returns."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(folder: Path, *, create: bool) -> Iterator[Path]:
    """Raises StoreLocked if another process installs or removes a viewer here."""
    if create:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StreamsrvError(f"no viewer is installed in {folder.parent}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(f"another process installs or removes the viewer in {folder}") from None
        yield folder
    finally:
        os.close(fd)


def _installed(folder: Path) -> str | None:
    """The name of the folder that the table names."""
    try:
        return str(json.loads((folder / TABLE).read_bytes())["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sweep(folder: Path, keep: str | None) -> None:
    """Removes the installations that no table names."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink() and each.name != keep:
            shutil.rmtree(each)


def _unpacked(tarball: Path, place: Path) -> dict[str, Any]:
    """Unpacks the build into the folder `place`, which it makes. Returns the table. Raises PackageError."""
    place.mkdir(0o700)
    manifest: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        pending = []
        for packed in files_of(tarball):
            if packed.name == "package.json":
                manifest = _manifest(packed)
            name = packed.name.removeprefix(BUILD)
            if name != LICENSE and (name == packed.name or LEFT_OUT.fullmatch(name)):
                continue
            stored = packed.read()
            body = rewritten(name, stored)
            path = place / name
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            _write(path, body)
            rows[name] = {
                "digest": hashlib.sha256(body).hexdigest()[:32],
                "named": body is stored and NAMED.fullmatch(name) is not None,
                "codings": [],
            }
            if shrinks(name) and len(body) >= WORTH_CODING:
                rows[name]["codings"] = list(CODERS)
                pending += [threads.submit(_write_coded, path, body, coding) for coding in CODERS]
        for each in pending:
            each.result()
    if manifest.get("name") != PACKAGE or PAGE not in rows:
        raise PackageError(
            f"{tarball.name} is not a build of {PACKAGE}: it has no {BUILD}{PAGE}, or another name"
        )
    version = str(manifest.get("version", ""))[:40]
    return {"package": PACKAGE, "version": version, "folder": place.name, "files": rows}


def _manifest(packed: PackedFile) -> dict[str, Any]:
    try:
        found = json.loads(packed.read())
    except ValueError:
        raise PackageError("the package.json of the tarball is not JSON") from None
    return found if isinstance(found, dict) else {}


CODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "zstd": lambda body: zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body),
    "gzip": lambda body: gzip.compress(body, GZIP_LEVEL, mtime=0),
}


def _write_coded(path: Path, body: bytes, coding: str) -> None:
    _write(coded_path(path, coding), CODERS[coding](body))


def _write(path: Path, body: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(body)


# The paths of the build


def rewritten(name: str, body: bytes) -> bytes:
    """The contents of a file for /viewer/. They are `body` itself if nothing in them is a path from the root.
    Raises PackageError if the page has not the form that is known."""
    if name == PAGE:
        return _rewritten_page(body)
    if name == "manifest.json":
        return body.replace(b'"/assets/', b'"assets/')
    if name.endswith(".css") and "/" not in name:
        return re.sub(rb"url\((['\"]?)/(?!/)", rb"url(\1", body)
    if name.endswith(".js") and "/" not in name:
        found = body.replace(b'__webpack_require__.p = "/"', b"__webpack_require__.p = " + ROOT)
        return found.replace(b"browserImportFunction('/", b"browserImportFunction(" + ROOT + b"+'")
    return body


def _rewritten_page(body: bytes) -> bytes:
    found, count = re.subn(rb'(window\.PUBLIC_URL=)"/"', rb'\1"/viewer/"', body)
    if not count:
        raise PackageError(
            f"{BUILD}{PAGE} does not set PUBLIC_URL, so this build cannot be moved to /viewer/"
        )
    return re.sub(rb'((?:href|src|content)=")/(?!/)', rb"\1/viewer/", found)


VERBS = {"viewer": (add_arguments, run)}
