"""Metadata and bulk data over HTTP: in as JSON and XML with bulk parts, out in every representation."""

import http.client
import zlib
from urllib.parse import urlsplit

import orjson
import pytest
import zstandard
from live_server import start_server
from xml_models import check_model, json_of, parsed

STUDY, SERIES = "1.2.3", "1.2.3.4"
SERIES_PATH = f"/studies/{STUDY}/series/{SERIES}"
PIXELS = b"\1\2\3\4\5\6"
XML = 'multipart/related; type="application/dicom+xml"'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("metadata"), workers=1)
    for number, kind in ((1, "json"), (2, "xml")):
        status, _, payload = ask(running, "/studies", "POST", *stored_body(running, number, kind))
        assert status == 200, payload
    yield running
    running.end()


def ask(running, path, method="GET", body=None, headers=()):
    place = urlsplit(running.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    try:
        connection.request(method, place.path + path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def metadata(number):
    def ui(value):
        return {"vr": "UI", "Value": [value]}

    def us(value):
        return {"vr": "US", "Value": [value]}

    return {
        "00080016": ui("1.2.840.10008.5.1.4.1.1.7"),
        "00080018": ui(f"1.2.3.4.{number}"),
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jane"}]},
        "00100020": {"vr": "LO", "Value": ["P1"]},
        "00104000": {"vr": "LT", "Value": ["a long comment " * 200]},
        "0020000D": ui(STUDY),
        "0020000E": ui(SERIES),
        "00280002": us(1),
        "00280004": {"vr": "CS", "Value": ["MONOCHROME2"]},
        "00280010": us(2),
        "00280011": us(3),
        "00280100": us(8),
        "00420011": {"vr": "OB", "BulkDataURI": "doc"},
        "7FE00010": {"vr": "OW", "BulkDataURI": "pixels"},
    }


def stored_body(running, number, kind):
    described = orjson.dumps([metadata(number)])
    if kind == "xml":
        described = model_of(metadata(number))
    parts = [
        (f"application/dicom+{kind}", "", described),
        ("application/octet-stream", "doc", b"%PDF" * 500),
        ("application/octet-stream", "pixels", PIXELS),
    ]
    body = b"".join(
        f"\r\n--edge\r\nContent-Type: {media}\r\nContent-Location: {place}\r\n\r\n".encode() + content
        for media, place, content in parts
    )
    content_type = f'multipart/related; type="application/dicom+{kind}"; boundary=edge'
    return body + b"\r\n--edge--\r\n", {"Content-Type": content_type, "Accept": "application/dicom+json"}


def model_of(dataset):
    """Written by hand, so that nothing of ours reads what ours has written."""
    attributes = []
    for tag, element in dataset.items():
        if "BulkDataURI" in element:
            content = f'<BulkData uri="{element["BulkDataURI"]}"/>'
        elif element["vr"] == "PN":
            family, given = element["Value"][0]["Alphabetic"].split("^")
            components = f"<FamilyName>{family}</FamilyName><GivenName>{given}</GivenName>"
            content = f'<PersonName number="1"><Alphabetic>{components}</Alphabetic></PersonName>'
        else:
            content = f'<Value number="1">{element["Value"][0]}</Value>'
        attributes.append(f'<DicomAttribute tag="{tag}" vr="{element["vr"]}">{content}</DicomAttribute>')
    namespace = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
    return f'<NativeDicomModel xmlns="{namespace}">{"".join(attributes)}</NativeDicomModel>'.encode()


def parts_of(headers, payload):
    boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
    pieces = (b"\r\n" + payload).split(b"\r\n--" + boundary)[1:-1]
    return [piece.partition(b"\r\n\r\n")[::2] for piece in pieces]


def test_what_came_as_json_and_as_xml_is_the_same(served):
    _, _, payload = ask(served, f"{SERIES_PATH}/metadata")
    one, two = orjson.loads(payload)
    text = orjson.dumps(one).replace(b"1.2.3.4.1", b"1.2.3.4.2")
    assert orjson.loads(text) == two
    assert one["00100010"] == metadata(1)["00100010"]


@pytest.mark.parametrize("level", [f"/studies/{STUDY}", SERIES_PATH, f"{SERIES_PATH}/instances/1.2.3.4.2"])
def test_xml_metadata(served, level):
    asked = orjson.loads(ask(served, f"{level}/metadata")[2])
    status, headers, payload = ask(served, f"{level}/metadata", headers={"Accept": XML})
    assert status == 200
    assert headers["content-type"].startswith('multipart/related; type="application/dicom+xml"; boundary=')
    models = [parsed(document) for _, document in parts_of(headers, payload)]
    for model in models:
        check_model(model)
    assert [json_of(model) for model in models] == asked


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_compressed_metadata(served, coding):
    _, plain, whole = ask(served, f"{SERIES_PATH}/metadata")
    sent = {"Accept-Encoding": coding}
    for _ in range(2):
        status, headers, payload = ask(served, f"{SERIES_PATH}/metadata", headers=sent)
        assert (status, headers["content-encoding"]) == (200, coding)
        assert headers["vary"] == plain["vary"] == "Accept, Accept-Encoding"
        assert headers["etag"] != plain["etag"]
        assert int(headers["content-length"]) == len(payload) < len(whole)
        assert undone(payload, coding) == whole
    sent["If-None-Match"] = headers["etag"]
    assert ask(served, f"{SERIES_PATH}/metadata", headers=sent)[0] == 304
    status, head, payload = ask(
        served, f"{SERIES_PATH}/metadata", "HEAD", headers={"Accept-Encoding": coding}
    )
    assert (status, payload) == (200, b"")
    assert head["content-length"] == headers["content-length"]


def undone(payload, coding):
    if coding == "gzip":
        return zlib.decompress(payload, 31)
    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


def test_lean_metadata(served):
    path = f"{SERIES_PATH}/metadata?includefield=PatientName,00280010&includefield=Nonsense"
    status, headers, payload = ask(served, path)
    assert status == 200
    assert "Nonsense" in headers["warning"]
    uids = ["00080016", "00080018", "0020000D", "0020000E"]
    assert [sorted(each) for each in orjson.loads(payload)] == [sorted([*uids, "00100010", "00280010"])] * 2


def test_all_bulk_and_pixel_data(served):
    for kind, contents in (("bulkdata", [b"%PDF" * 500, PIXELS]), ("pixeldata", [PIXELS])):
        status, headers, payload = ask(served, f"/studies/{STUDY}/{kind}")
        assert status == 200
        assert int(headers["content-length"]) == len(payload)
        found = parts_of(headers, payload)
        assert [part for _, part in found] == contents * 2
        assert all(b"Content-Location: http://" in head for head, _ in found)
        assert ask(served, f"/studies/{STUDY}/{kind}", "HEAD")[1]["content-length"] == str(len(payload))


def test_the_response_in_xml(served):
    body, headers = stored_body(served, 1, "json")
    status, answered, payload = ask(
        served, "/studies", "POST", body, headers | {"Accept": "application/dicom+xml"}
    )
    assert (status, answered["content-type"]) == (409, "application/dicom+xml")
    root = parsed(payload)
    check_model(root)
    assert json_of(root)["00081198"]["Value"][0]["00081197"]["Value"] == [45070]


def test_a_response_that_nobody_takes_is_refused_before_anything_is_stored(served):
    body, headers = stored_body(served, 9, "json")
    status, _, payload = ask(served, "/studies", "POST", body, headers | {"Accept": "image/png"})
    assert status == 406
    assert b"application/dicom+json" in payload
    assert ask(served, f"{SERIES_PATH}/instances/1.2.3.4.9")[0] == 404


@pytest.mark.parametrize("patient", [None, {"vr": "LO"}])
def test_a_patient_without_id_is_stored_with_a_warning(served, patient):
    described = metadata(9) | {"00080018": {"vr": "UI", "Value": ["1.2.3.4.9"]}, "00100020": patient}
    if patient is None:
        del described["00100020"]
    body = b"--e\r\nContent-Type: application/dicom+json\r\n\r\n%b\r\n--e--" % orjson.dumps(
        [{key: element for key, element in described.items() if "BulkDataURI" not in element}]
    )
    headers = {"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=e'}
    try:
        status, _, payload = ask(served, "/studies", "POST", body, headers)
        (stored,) = orjson.loads(payload)["00081199"]["Value"]
        assert status == 202
        assert stored["00081196"]["Value"] == [1]
        comments = [item["00000902"]["Value"] for item in stored["00741048"]["Value"]]
        assert comments == [["(0010,0020) is absent or empty"]]
    finally:
        assert ask(served, f"{SERIES_PATH}/instances/1.2.3.4.9", "DELETE")[0] == 204
