"""The verb `viewer`: packages of npm, good, broken and hostile, installed, replaced and removed."""

import base64
import fcntl
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile

import pytest
import zstandard

from streamsrv.cli import FAILED, LOCKED, USAGE, main
from streamsrv.tools.package import PackageError, PackageLimits, check_integrity, files_of
from streamsrv.tools.viewer import INTEGRITY, PACKAGE, VERSION, rewritten

PAGE = (
    b'<script>window.PUBLIC_URL="/"</script><link href="/app.css">'
    b'<script src="/app.0123456789abcdef.js"></script>'
    b'<meta content="/assets/a.png"><a href="//other.example/">'
)
CODE = b"var digits = 12345;\n" * 300
GOOD = {
    "package/package.json": json.dumps({"name": PACKAGE, "version": "9.9.9"}).encode(),
    "package/LICENSE": b"MIT",
    "package/dist/index.html": PAGE,
    "package/dist/app.0123456789abcdef.js": b'__webpack_require__.p = "/";\n' + CODE,
    "package/dist/100.bundle.fedcba9876543210.js": CODE,
    "package/dist/app.css": b"@font-face{src:url(/a.woff2)}b{background:url(//x.example/y)}",
    "package/dist/manifest.json": b'{"src": "/assets/a.png"}',
    "package/dist/assets/a.png": bytes(5000),
    "package/dist/app-config.js": b"window.config = {};",
    "package/dist/ort/ort.js": CODE,
    "package/dist/app.js.map": CODE,
    "package/dist/sw.js": CODE,
}


def member(name, body=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(body), kind, link
    return info, io.BytesIO(body)


def packed(folder, *members, name="package.tgz"):
    """A tarball of GOOD and these members; its path and digest."""
    with gzip.open(folder / name, "wb", 1) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for each in (*(member(path, body) for path, body in GOOD.items()), *members):
            archive.addfile(*each)
    return folder / name, integrity_of(folder / name)


def integrity_of(path):
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def install(data, tarball, integrity):
    return main(["viewer", "install", "--data", str(data), "--from", str(tarball), "--integrity", integrity])


def table_of(data):
    return json.loads((data / "viewer" / "viewer.json").read_bytes())


def files_in(data):
    return sorted(str(path.relative_to(data)) for path in data.rglob("*"))


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def installed(data, tmp_path):
    assert install(data, *packed(tmp_path)) == 0
    return data


# -- installing


def test_a_package_is_installed_compressed_and_private(installed):
    table = table_of(installed)
    place = installed / "viewer" / table["folder"]
    assert set(table["files"]) == {
        *("index.html", "app.css", "app.0123456789abcdef.js", "100.bundle.fedcba9876543210.js"),
        *("manifest.json", "assets/a.png", "LICENSE"),
    }
    for name, row in table["files"].items():
        body = (place / name).read_bytes()
        assert row["digest"] == hashlib.sha256(body).hexdigest()[:32]
        if row["codings"]:
            assert gzip.decompress((place / f"{name}.gzip").read_bytes()) == body
            assert zstandard.decompress((place / f"{name}.zstd").read_bytes()) == body
    assert table["files"]["100.bundle.fedcba9876543210.js"]["codings"] == ["zstd", "gzip"]
    assert table["files"]["assets/a.png"]["codings"] == []
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (installed / "viewer").rglob("*")}
    assert modes == {0o600, 0o700}


def test_only_files_that_are_as_they_were_built_count_as_named_by_their_digest(installed):
    named = {name for name, row in table_of(installed)["files"].items() if row["named"]}
    assert named == {"100.bundle.fedcba9876543210.js"}


def test_paths_from_the_root_are_moved():
    page = rewritten("index.html", PAGE)
    assert page == (
        b'<script>window.PUBLIC_URL="/viewer/"</script><link href="/viewer/app.css">'
        b'<script src="/viewer/app.0123456789abcdef.js"></script><meta content="/viewer/assets/a.png">'
        b'<a href="//other.example/">'
    )
    style = rewritten("app.css", GOOD["package/dist/app.css"])
    assert style == b"@font-face{src:url(a.woff2)}b{background:url(//x.example/y)}"
    code = rewritten("a.js", b"__webpack_require__.p = \"/\"; await window.browserImportFunction('/x/y.js');")
    root = b'(self.PUBLIC_URL||new URL(".",self.location).pathname)'
    assert code == (
        b"__webpack_require__.p = %b; await window.browserImportFunction(%b+'x/y.js');" % (root, root)
    )
    with pytest.raises(PackageError, match="cannot be moved"):
        rewritten("index.html", b"<html></html>")


def test_the_next_installation_replaces_the_one_before(installed, tmp_path, capsys):
    before = table_of(installed)["folder"]
    capsys.readouterr()
    (installed / "viewer" / "interrupted").mkdir()
    assert install(installed, *packed(tmp_path, member("package/dist/new.js", CODE))) == 0
    assert f"{PACKAGE} 9.9.9 is installed in {installed}" in capsys.readouterr().out
    table = table_of(installed)
    assert "new.js" in table["files"]
    assert {path.name for path in (installed / "viewer").iterdir()} == {"viewer.json", table["folder"]}
    assert table["folder"] != before


def test_removing(installed, capsys):
    assert main(["viewer", "remove", "--data", str(installed)]) == 0
    assert files_in(installed) == []
    assert main(["viewer", "remove", "--data", str(installed)]) == FAILED
    assert "no viewer is installed" in capsys.readouterr().err


def test_one_installation_at_a_time(installed, tmp_path, capsys):
    before = files_in(installed)
    fd = os.open(installed / "viewer", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        assert install(installed, *packed(tmp_path)) == LOCKED
        assert main(["viewer", "remove", "--data", str(installed)]) == LOCKED
    finally:
        os.close(fd)
    assert "another process installs or removes the viewer" in capsys.readouterr().err
    assert files_in(installed) == before


# -- packages that are refused

HOSTILE = {
    "a path upward": (member("package/dist/../../../evil", b"x"), "no path below"),
    "an absolute path": (member("/tmp/evil", b"x"), "no path below"),
    "another root": (member("other/evil", b"x"), "no path below"),
    "a dot": (member("package/./evil", b"x"), "no path below"),
    "a hidden file": (member("package/.npmrc", b"x"), "no path below"),
    "a backslash": (member("package/a\\..\\b", b"x"), "no path below"),
    "a line feed": (member("package/a\nb", b"x"), "no path below"),
    "a symbolic link": (member("package/dist/a", kind=tarfile.SYMTYPE, link="/etc/passwd"), "link"),
    "a hard link": (member("package/dist/a", kind=tarfile.LNKTYPE, link="package/LICENSE"), "link"),
    "a device": (member("package/dist/a", kind=tarfile.CHRTYPE), "device"),
    "a pipe": (member("package/dist/a", kind=tarfile.FIFOTYPE), "device"),
    "a file twice": (member("package/dist/index.html", b"x"), "twice"),
    "a file that is too large": (member("package/dist/zeros", bytes((128 << 20) + 1)), "at most"),
    "a file that is a folder too": (member("package/dist/app.css/x", b"x"), "exists"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_package_changes_nothing(case, installed, tmp_path, capsys):
    hostile, reason = HOSTILE[case]
    before = files_in(tmp_path)
    code = install(installed, *packed(tmp_path, hostile))
    assert (code, reason in capsys.readouterr().err) == (FAILED, True)
    assert files_in(tmp_path) == before


def test_what_a_package_unpacks_to_is_limited(tmp_path):
    tarball, _ = packed(tmp_path, *(member(f"package/ort/{n}", bytes(1 << 20)) for n in range(8)))
    for limits, reason in (
        (PackageLimits(unpacked=4 << 20), "unpacked bytes"),
        (PackageLimits(files=10), "over 10 files"),
    ):
        with pytest.raises(PackageError, match=reason):
            list(files_of(tarball, limits))
    assert len(list(files_of(tarball))) == len(GOOD) + 8


def test_another_digest_is_refused_before_anything_is_unpacked(data, tmp_path, capsys):
    tarball, _ = packed(tmp_path)
    assert main(["viewer", "install", "--data", str(data), "--from", str(tarball)]) == FAILED
    assert f"package.tgz is not {PACKAGE}@{VERSION}: its SHA-512 digest differs" in capsys.readouterr().err
    assert not data.exists()
    assert install(data, tarball, "sha256-abc") == FAILED
    assert "is not `sha512-`" in capsys.readouterr().err
    assert not data.exists()
    with pytest.raises(PackageError):
        check_integrity(tarball, INTEGRITY, "x")


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_tarball(part, data, tmp_path, capsys):
    tarball, _ = packed(tmp_path)
    whole = tarball.read_bytes()
    tarball.write_bytes(whole[: int(len(whole) * part)])
    assert install(data, tarball, integrity_of(tarball)) == FAILED
    assert "streamsrv: " in capsys.readouterr().err
    assert files_in(data) == ["viewer"]


@pytest.mark.parametrize(
    "body",
    [b"", b"PK\x03\x04 a zip", gzip.compress(b"not tar" * 999), gzip.compress(b"")],
    ids=["empty", "zip", "gzip", "empty gzip"],  # gzip has the time in its head
)
def test_a_file_that_is_no_package(body, data, tmp_path, capsys):
    tarball = tmp_path / "file.tgz"
    tarball.write_bytes(body)
    assert install(data, tarball, integrity_of(tarball)) == FAILED
    assert "file.tgz" in capsys.readouterr().err
    assert install(data, tmp_path / "missing.tgz", integrity_of(tarball)) == FAILED
    assert "there is no file" in capsys.readouterr().err


def test_a_package_of_another_name(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(GOOD, "package/package.json", b'{"name": "left-pad"}')
    assert install(data, *packed(tmp_path)) == FAILED
    assert f"is not a build of {PACKAGE}" in capsys.readouterr().err
    monkeypatch.setitem(GOOD, "package/package.json", b"{")
    assert install(data, *packed(tmp_path)) == FAILED
    assert "is not JSON" in capsys.readouterr().err


def test_a_disk_that_is_full_leaves_the_viewer_as_it_was(installed, tmp_path, capsys, monkeypatch):
    before, real = files_in(installed), os.open

    def full(path, flags, *rest, **more):
        if str(path).endswith("a.png"):
            raise OSError(28, "No space left on device", str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", full)
    assert install(installed, *packed(tmp_path)) == FAILED
    assert "No space left on device" in capsys.readouterr().err
    assert files_in(installed) == before


# -- npm


def test_without_npm(data, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["viewer", "install", "--data", str(data)]) == FAILED
    said = capsys.readouterr().err
    assert f"npm pack {PACKAGE}@{VERSION}" in said
    assert "--from FILE" in said
    assert not data.exists()


def fake_npm(folder, monkeypatch, script):
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o700)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")


def test_npm_fails(data, tmp_path, monkeypatch, capsys):
    fake_npm(tmp_path, monkeypatch, "echo 'npm error code ENOTFOUND' >&2; exit 1")
    assert main(["viewer", "install", "--data", str(data)]) == FAILED
    assert f"npm could not download {PACKAGE}@{VERSION}: code ENOTFOUND" in capsys.readouterr().err
    assert not data.exists()


def test_npm_is_asked_for_the_pinned_version(data, tmp_path, monkeypatch, capsys):
    tarball, integrity = packed(tmp_path)
    fake_npm(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked; cp {tarball} .')
    assert main(["viewer", "install", "--data", str(data), "--integrity", integrity]) == 0
    assert (tmp_path / "asked").read_text().startswith(f"pack {PACKAGE}@{VERSION} ")
    assert table_of(data)["version"] == "9.9.9"
    assert main(["viewer", "install", "--data", str(data)]) == FAILED
    assert "digest differs" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["update"], ["install", "--form", "x"]])
def test_a_wrong_command_line(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["viewer", *words])
    assert caught.value.code == USAGE


def test_the_owner_of_the_store_owns_the_viewer(data, tmp_path):
    """Root may install it for a server that runs as another user."""
    data.mkdir()
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(data, owner, -1)
    assert install(data, *packed(tmp_path)) == 0
    assert {path.stat().st_uid for path in (data / "viewer").rglob("*")} == {owner}
    assert (data / "viewer").stat().st_uid == owner
