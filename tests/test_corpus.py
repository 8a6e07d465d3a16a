"""pydicom's own test files go in over HTTP and come out: bytes, datasets, frames, bulk data.

The oracle is pydicom: what it reads from the file as it lies on disk has to be what it reads from what the
server sends. Files that pydicom itself cannot read, or that lack a UID, have to be refused.
"""

from __future__ import annotations

import base64
import email
import email.message
import io
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pydicom
import pytest
from live_server import start_server
from pydicom.encaps import generate_frames

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
LARGEST = 8 << 20  # bytes of a file; larger ones only repeat what the smaller ones show


def corpus() -> list[Path]:
    roots = [Path(pydicom.__file__).parent / "data"]
    try:
        import data_store

        roots += [Path(folder) / "data" for folder in data_store.__path__]
    except ImportError:
        pass
    paths = (path for root in roots for path in root.rglob("*") if path.is_file())
    return sorted(path for path in paths if path.stat().st_size < LARGEST and begins_like_part_10(path))


def begins_like_part_10(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory):
    server = start_server(tmp_path_factory.mktemp("corpus"))
    yield server
    server.end()


def call(url: str, accept: str = "", body: bytes | None = None) -> tuple[int, str, bytes]:
    request = urllib.request.Request(url, body)
    if accept:
        request.add_header("Accept", accept)
    if body is not None:
        request.add_header("Content-Type", "application/dicom")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"] or "", answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"] or "", error.read()


def parts_of(content_type: str, body: bytes) -> list[email.message.Message]:
    """By the standard library's own parser."""
    message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    payload = message.get_payload()
    assert isinstance(payload, list)
    return payload


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def storable(content: bytes) -> bool:
    try:
        dataset = read(content)
        return all(re.fullmatch(r"[0-9.]{1,64}", uid(getattr(dataset, name, ""))) for name in UIDS)
    except Exception:  # pydicom raises whatever it meets
        return False


def normalized(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Without what a change of encoding may change: group lengths and trailing padding."""
    kept = pydicom.Dataset()
    for element in dataset:
        if element.tag.element == 0 or element.tag == 0xFFFCFFFC:
            continue
        kept[element.tag] = element
    return kept


def same_values(ours: pydicom.Dataset, theirs: pydicom.Dataset) -> list[str]:
    """Tags whose values differ. A value of UN may have got a VR, and numbers are compared as numbers."""
    ours, theirs = normalized(ours), normalized(theirs)
    wrong = [str(tag) for tag in set(ours.keys()) ^ set(theirs.keys())]
    for element in theirs:
        if element.tag not in ours:
            continue
        other = ours[element.tag]
        if element.VR == "SQ":
            pairs = zip(other.value, element.value, strict=True)
            wrong += [f"{element.tag}/{inner}" for one, two in pairs for inner in same_values(one, two)]
        elif other.value != element.value and not (other.is_empty and element.is_empty):
            wrong.append(f"{element.tag} {other.value!r:.60} {element.value!r:.60}")
    return wrong


def native_frames(dataset: pydicom.Dataset) -> list[bytes] | None:
    """The frames as little endian, or None where a frame's place is not a matter of arithmetic alone."""
    if dataset.BitsAllocated % 8 or "PixelData" not in dataset:
        return None
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else dataset.SamplesPerPixel
    length = dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated // 8
    value = dataset.PixelData
    if dataset.file_meta.TransferSyntaxUID == BIG and dataset["PixelData"].VR == "OW":
        value = np.frombuffer(value, f">u{max(dataset.BitsAllocated // 8, 2)}").byteswap().tobytes()
    return [value[at : at + length] for at in range(0, length * frames_of(dataset), length)]


def frames_of(dataset: pydicom.Dataset) -> int:
    try:
        return int(dataset.NumberOfFrames or 1)
    except (AttributeError, ValueError):
        return 1


def test_the_corpus_is_there() -> None:
    assert len(corpus()) > 80


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.name)
def test_a_file_goes_in_and_comes_out(running, path: Path) -> None:
    content = path.read_bytes()
    status, _, answer = call(f"{running.url}/studies", body=content)
    if not storable(content):
        assert status == 409, answer
        return
    if status == 409:
        (failed,) = json.loads(answer)["00081198"]["Value"]
        if failed["00081197"]["Value"] != [45070]:  # the corpus holds some instances twice
            comments = [item["00000902"]["Value"][0] for item in failed["00741048"]["Value"]]
            check_cut_off(content, " ".join(comments))
        return
    assert status in (200, 202), answer
    dataset = read(content)
    stored = str(dataset.file_meta.TransferSyntaxUID)
    url = f"{running.url}/studies/{uid(dataset.StudyInstanceUID)}/series/{uid(dataset.SeriesInstanceUID)}"
    url += f"/instances/{uid(dataset.SOPInstanceUID)}"
    check_instance(url, content, dataset, stored)
    check_metadata(url, dataset)
    if "PixelData" in dataset:
        check_frames(url, dataset, stored)
    assert call(url, body=None)[0] == 200


def check_cut_off(content: bytes, comment: str) -> None:
    """pydicom reads what is left of a file that was cut off; we refuse it, and name the element."""
    found = re.search(
        r"longer than its container \(at tag [0-9A-F]{8}, byte ([0-9]+) of the instance\)", comment
    )
    assert found, comment
    assert int(found[1]) < len(content)
    assert is_dataset(content[: int(found[1])])


def is_dataset(head: bytes) -> bool:
    """What stands before the element is a dataset in itself, by pydicom."""
    return "SOPInstanceUID" in read(head)


def uid(value: str) -> str:
    return str(value).strip(" \0")


def check_instance(url: str, content: bytes, dataset: pydicom.Dataset, stored: str) -> None:
    status, content_type, sent = call(url, "application/dicom; transfer-syntax=*")
    assert status == 200
    if stored in (IMPLICIT, BIG):
        assert content_type == f"application/dicom; transfer-syntax={EXPLICIT}"
        ours = read(sent)
        assert ours.file_meta.TransferSyntaxUID == EXPLICIT
        if stored == IMPLICIT:  # big endian words come out swapped; test_explicit compares those
            assert same_values(ours, dataset) == []
    else:
        assert content_type == f"application/dicom; transfer-syntax={stored}"
        assert sent == content
    if stored == DEFLATED:
        status, _, sent = call(url, f"application/dicom; transfer-syntax={EXPLICIT}")
        assert status == 200
        assert same_values(read(sent), dataset) == []
    status, content_type, body = call(url, 'multipart/related; type="application/dicom"; transfer-syntax=*')
    (part,) = parts_of(content_type, body)
    assert status == 200
    assert part.get_content_type() == "application/dicom"
    assert part["Content-Location"] == url


def check_metadata(url: str, dataset: pydicom.Dataset) -> None:
    """Every bulk value answers, and no attribute is missing or added."""
    status, _, body = call(f"{url}/metadata", "application/dicom+json")
    assert status == 200
    (metadata,) = json.loads(body)
    for tag, bulk in bulk_values(metadata):
        status, _, value = call(bulk, "application/octet-stream" if tag != "7FE00010" else "*/*")
        assert status == 200, bulk
        assert value
    ours = {tag for tag in metadata if tag not in ("00081190", "00083002")}
    theirs = {
        f"{element.tag:08X}"
        for element in dataset
        if element.tag.element and f"{element.tag:08X}" not in ("00081190", "00083002")
    }
    assert ours == theirs


def bulk_values(metadata: dict) -> list[tuple[str, str]]:
    found = []
    for tag, element in metadata.items():
        if "BulkDataURI" in element:
            found.append((tag, element["BulkDataURI"]))
        elif "InlineBinary" in element:
            base64.b64decode(element["InlineBinary"], validate=True)
        for item in element.get("Value", ()):
            if element["vr"] == "SQ":
                found += bulk_values(item)
    return found


def check_frames(url: str, dataset: pydicom.Dataset, stored: str) -> None:
    frames = expected_frames(dataset, stored)
    if frames is None:
        return
    numbers = range(1, len(frames) + 1)
    accept = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    for number in (1, len(frames)):
        status, content_type, frame = call(f"{url}/frames/{number}", accept)
        assert status == 200
        (part,) = parts_of(content_type, frame)
        assert part.get_payload(decode=True) == frames[number - 1]
    listed = ",".join(map(str, list(numbers)[:20]))
    status, content_type, body = call(f"{url}/frames/{listed}", accept)
    assert status == 200
    assert [part.get_payload(decode=True) for part in parts_of(content_type, body)] == frames[:20]
    assert call(f"{url}/frames/{len(frames) + 1}")[0] == 404


def expected_frames(dataset: pydicom.Dataset, stored: str) -> list[bytes] | None:
    if not pydicom.uid.UID(stored).is_encapsulated:
        return native_frames(dataset)
    try:
        return list(generate_frames(dataset.PixelData, number_of_frames=frames_of(dataset)))
    except Exception:  # pydicom cannot tell the frames apart: nothing to compare with
        return None
