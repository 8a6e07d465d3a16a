"""curl as it comes, with `Accept: */*`. The parts of its answers are read by the standard library's parser of
mail."""

import email
import io
import subprocess

import clinic as world
import numpy as np
import pytest
from clinic import CT_SERIES, CT_STUDY, SLIDE, SLIDE_SERIES, SLIDE_STUDY
from PIL import Image
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

SLIDE_PATH = f"/studies/{SLIDE_STUDY}/series/{SLIDE_SERIES}/instances/{SLIDE}"
OCTETS = "application/octet-stream"
EXPLICIT = f"{OCTETS}; transfer-syntax={ExplicitVRLittleEndian}"


def curl(url, *options):
    """The header fields of the answer, with lower-case names, and its body."""
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "60", "--include", *options, url]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    head, _, body = said.partition(b"\r\n\r\n")
    return email.message_from_bytes(head.partition(b"\r\n")[2]), body


def parts(headers, body):
    """(Content-Type, Content-Location, payload) of each part."""
    mail = b"Content-Type: %b\r\n\r\n" % headers["Content-Type"].encode()
    message = email.message_from_bytes(mail + body)
    assert message.preamble in (None, "")
    return [
        (part["Content-Type"], part["Content-Location"], raw(part, body)) for part in message.get_payload()
    ]


def raw(part, body):
    """The payload as it is on the wire: the parser of mail is made for text."""
    place = f"Content-Location: {part['Content-Location']}\r\n\r\n".encode()
    after = body.partition(place)[2]
    return after.partition(b"\r\n--" + body[2:].partition(b"\r\n")[0])[0]


def is_tile(pixels, tile):
    picture = np.frombuffer(pixels, np.uint8).reshape(world.TILE, world.TILE, 3)
    return np.abs(picture - np.asarray(Image.open(io.BytesIO(tile)), np.int16)).max() <= 3


def test_frames_are_decoded(clinic):
    url = clinic.url + SLIDE_PATH
    found = parts(*curl(f"{url}/frames/2,1"))
    assert [head[:2] for head in found] == [(EXPLICIT, f"{url}/frames/{number}") for number in (2, 1)]
    tiles = world.tiles(1, 4)
    assert is_tile(found[0][2], tiles[1])
    assert is_tile(found[1][2], tiles[0])


def test_stored_frames_are_asked_for(clinic):
    accept = f'Accept: multipart/related; type="{OCTETS}"; transfer-syntax=*'
    ((label, _, frame),) = parts(*curl(f"{clinic.url}{SLIDE_PATH}/frames/2", "--header", accept))
    assert (label, frame) == (f"image/jpeg; transfer-syntax={JPEGBaseline8Bit}", world.tiles(1, 4)[1])


def test_instances_are_explicit(clinic):
    found = parts(*curl(f"{clinic.url}/studies/{SLIDE_STUDY}"))
    assert len(found) == 2
    for label, _, payload in found:
        assert label == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"
        assert dcmread(io.BytesIO(payload)).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@pytest.mark.parametrize("below", ["/bulkdata", ""])
def test_bulk_data_with_pixel_data(clinic, below):
    """Every BulkDataURI of the metadata has a part, and pydicom takes their values."""
    url = f"{clinic.url}/studies/{SLIDE_STUDY}"
    found = parts(*curl(url + below, "--header", f'Accept: multipart/related; type="{OCTETS}"'))
    values = {location: payload for _, location, payload in found}
    assert {label for label, _, _ in found} == {EXPLICIT}
    uris = []
    for instance in world.ask(f"{url}/metadata").json():
        made = world.Dataset.from_json(instance, lambda tag, vr, uri: uris.append(uri) or values[uri])
        pixels, frame = made.PixelData, 3 * world.TILE**2
        assert len(pixels) == frame * made.NumberOfFrames
        if made.SOPInstanceUID == SLIDE:
            assert is_tile(pixels[2 * frame : 3 * frame], world.tiles(1, 4)[2])
    assert sorted(uris) == sorted(values)


def test_a_file_is_found_at_the_location_of_the_response(server, tmp_path):
    path = tmp_path / "1.dcm"
    path.write_bytes(world.file_of(world.ct(1)))
    sent = ("--data-binary", f"@{path}", "--header", "Content-Type: application/dicom")
    headers, _ = curl(f"{server.url}/studies", *sent)
    below = f"/studies/{CT_STUDY}/series/{CT_SERIES}/instances/{CT_SERIES}.1"
    assert headers["Location"] == server.url + below
    headers, body = curl(headers["Location"], "--header", "Accept: application/dicom; transfer-syntax=*")
    assert body == path.read_bytes()
