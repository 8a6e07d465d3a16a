"""Studies, series and instances as ZIP archives over HTTP (Accept: application/zip)."""

import io
import subprocess
import urllib.error
import urllib.request
import zipfile

import pydicom
import pytest
from live_server import start_server
from pydicom.data import get_testdata_file

NAMES = ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "image_dfl.dcm")


class Archive:
    """A server with one study of two series, in five transfer syntaxes."""

    def __init__(self, server):
        self.server = server
        self.study = pydicom.uid.generate_uid()
        self.files = {}
        for number, name in enumerate(NAMES):
            dataset = pydicom.dcmread(get_testdata_file(name))
            root = self.study[:50]
            series, instance = f"{root}.{number % 2}", f"{root}.9.{number}"
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.study, series
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
            content = io.BytesIO()
            pydicom.dcmwrite(content, dataset, enforce_file_format=True)
            self.files[f"{self.study}/{series}/{instance}.dcm"] = content.getvalue()
            request = urllib.request.Request(
                f"{server.url}/studies", content.getvalue(), {"Content-Type": "application/dicom"}
            )
            assert urllib.request.urlopen(request).status in (200, 202)

    def ask(self, path="", accept="application/zip", **headers):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.server.url}/studies/{self.study}{path}"
        request = urllib.request.Request(url, headers={"Accept": accept, **given})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("zip"), workers=1)
    yield Archive(running)
    running.end()


def test_a_study_is_whole_and_byte_for_byte(archive, tmp_path):
    status, headers, body = archive.ask()
    assert (status, headers["Content-Type"]) == (200, "application/zip")
    assert headers["Content-Length"] == str(len(body))
    assert headers["Content-Disposition"] == f'attachment; filename="{archive.study}.zip"'
    with zipfile.ZipFile(io.BytesIO(body)) as found:
        assert found.testzip() is None
        assert {name: found.read(name) for name in found.namelist()} == archive.files
    path = tmp_path / "study.zip"
    path.write_bytes(body)
    for command in (["unzip", "-tq"], ["7z", "t"]):
        tested = subprocess.run([*command, path], capture_output=True, text=True, check=False)
        assert tested.returncode == 0, tested.stdout + tested.stderr


def test_series_and_instances(archive):
    name = next(iter(archive.files))
    _, series, file = name.split("/")
    for path, count in ((f"/series/{series}", 3), (f"/series/{series}/instances/{file[:-4]}", 1)):
        with zipfile.ZipFile(io.BytesIO(archive.ask(path)[2])) as found:
            assert len(found.namelist()) == count
            assert found.read(name) == archive.files[name]


def test_ranges_and_validators(archive):
    _, headers, body = archive.ask()
    status, part_headers, part = archive.ask(Range="bytes=300-60000")
    assert (status, part) == (206, body[300:60001])
    assert part_headers["Content-Range"] == f"bytes 300-60000/{len(body)}"
    status, _, tail = archive.ask(Range="bytes=-22", If_Range=headers["ETag"])
    assert (status, tail[:4]) == (206, b"PK\5\6")
    assert archive.ask(If_None_Match=headers["ETag"])[0] == 304
    assert archive.ask(accept='multipart/related; type="application/dicom"')[1]["ETag"] != headers["ETag"]


def test_a_link_in_a_page(archive):
    """The parameter of the URL beats what a browser accepts."""
    status, headers, _ = archive.ask("?accept=application/zip", accept="text/html,*/*;q=0.8")
    assert (status, headers["Content-Type"]) == (200, "application/zip")


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "multipart/related"),
        ('application/zip;q=0.5, multipart/related; type="application/dicom"', "multipart/related"),
        ('application/zip, multipart/related; type="application/dicom";q=0.5', "application/zip"),
        ("application/zip; transfer-syntax=*", "application/zip"),
    ],
)
def test_preference(archive, accept, media_type):
    status, headers, _ = archive.ask(accept=accept)
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, media_type)


def test_a_syntax_that_not_all_have_is_refused(archive):
    status, _, body = archive.ask(accept="application/zip; transfer-syntax=1.2.840.10008.1.2.1")
    assert (status, b"transfer syntax" in body) == (406, True)
