"""WADO-URI over HTTP: the same objects and pictures as DICOMweb, named by query parameters (PS3.18 9)."""

import io
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from live_server import start_server
from PIL import Image
from pydicom.data import get_testdata_file
from report_world import findings, report
from retrieve_world import part10

CT = "CT_small.dcm"
REPORT = "report"
LOOP = "examples_ybr_color.dcm"  # 30 frames, RLE
JPEG_2000 = "JPEG2000.dcm"


@dataclass
class Served:
    origin: str
    datasets: dict

    def url(self, name, **parameters):
        """`None` leaves a parameter out."""
        given = {"requestType": "WADO"}
        if name:
            one = self.datasets[name]
            uids = (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
            given |= dict(zip(("studyUID", "seriesUID", "objectUID"), uids, strict=True))
        given = {key: value for key, value in (given | parameters).items() if value is not None}
        return f"{self.origin}/wado?{urllib.parse.urlencode(given)}"

    def etag(self, name, **parameters):
        with urllib.request.urlopen(self.url(name, **parameters)) as answer:
            return answer.headers["ETag"]

    def get(self, name="", **parameters):
        """Status, media type and body."""
        url = self.url(name, **parameters)
        request = urllib.request.Request(url, headers={"Accept": "text/html,*/*;q=0.5"})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()

    def picture(self, name, **parameters):
        status, media_type, body = self.get(name, contentType="image/png", **parameters)
        assert (status, media_type) == (200, "image/png"), body
        return np.asarray(Image.open(io.BytesIO(body)))

    def rendered(self, name, query):
        """The picture that DICOMweb makes."""
        one = self.datasets[name]
        below = (
            f"studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
        )
        with urllib.request.urlopen(f"{self.origin}/v2/{below}/{query}") as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())))

    def refused(self, name, status, word, **parameters):
        found, _, body = self.get(name, **parameters)
        assert (found, word in body.decode()) == (status, True), (found, body)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("wado"), workers=1)
    datasets = {}
    files = {name: Path(get_testdata_file(name)).read_bytes() for name in (CT, LOOP, JPEG_2000)}
    files[REPORT] = part10(report(content=[findings()]))
    for name, content in files.items():
        datasets[name] = pydicom.dcmread(io.BytesIO(content))
        request = urllib.request.Request(
            f"{running.url}/studies", content, {"Content-Type": "application/dicom"}
        )
        urllib.request.urlopen(request).close()
    yield Served(running.origin, datasets)
    running.end()


def test_an_image_is_a_jpeg_by_default(served):
    status, media_type, body = served.get(CT)
    assert (status, media_type, Image.open(io.BytesIO(body)).size) == (200, "image/jpeg", (128, 128))


def test_an_image_of_many_frames_is_an_object_unless_a_frame_is_named(served):
    assert served.get(LOOP)[1].startswith("application/dicom;")
    status, media_type, body = served.get(LOOP, frameNumber="2")
    assert (status, media_type, Image.open(io.BytesIO(body)).format) == (200, "image/jpeg", "JPEG")


def test_a_report_is_a_page_whose_links_have_a_version(served):
    status, media_type, body = served.get(REPORT)
    assert (status, media_type) == (200, "text/html; charset=utf-8")
    assert f'href="{served.origin}/v2/studies/1.2.9/'.encode() in body
    assert served.get(REPORT, contentType="text/plain")[1] == "text/plain; charset=utf-8"
    one = served.datasets[REPORT]
    below = f"studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    with urllib.request.urlopen(f"{served.origin}/v2/{below}/rendered") as answer:
        policies = answer.headers.get_all("Content-Security-Policy")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.read() == body
    assert "sandbox" in policies
    assert any("default-src 'none'" in policy for policy in policies)


@pytest.mark.parametrize(
    ("given", "syntax"),
    [({}, "1.2.840.10008.1.2.1"), ({"transferSyntax": "1.2.840.10008.1.2.4.90"}, "1.2.840.10008.1.2.4.90")],
)
@pytest.mark.parametrize("name", [CT, JPEG_2000])
def test_an_object_in_a_transfer_syntax(served, name, given, syntax):
    """Explicit VR Little Endian unless another is named (9.4.1)."""
    status, media_type, body = served.get(name, contentType="application/dicom", frameNumber="1", **given)
    assert (status, media_type.partition(";")[0]) == (200, "application/dicom")
    found = pydicom.dcmread(io.BytesIO(body))
    assert found.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(found.pixel_array, served.datasets[name].pixel_array)


@pytest.mark.parametrize(
    ("given", "query"),
    [
        ({}, ""),
        ({"rows": "64", "columns": "32"}, "viewport=32,64"),
        ({"rows": "64"}, "viewport=64,64"),
        ({"columns": "200"}, "viewport=200,200"),
        ({"region": "0.25,0.5,0.75,1"}, "viewport=64,64,32,64,64,64"),
        ({"region": "0,0,0.5,0.25", "columns": "32"}, "viewport=32,16,0,0,64,32"),
        ({"windowCenter": "1100", "windowWidth": "3.5e2"}, "window=1100,350,linear"),
        ({"annotation": "patient,technique"}, "annotation=patient,technique"),
    ],
)
def test_a_picture_is_the_same_as_the_rendered_instance(served, given, query):
    assert np.array_equal(
        served.picture(CT, **given), served.rendered(CT, f"rendered?accept=image/png&{query}")
    )


def test_a_frame_is_the_same_as_the_rendered_frame(served):
    assert np.array_equal(
        served.picture(LOOP, frameNumber="7"), served.rendered(LOOP, "frames/7/rendered?accept=image/png")
    )


def test_each_frame_has_its_own_etag(served):
    """So a range of one frame is never joined to another frame."""
    given = [{"frameNumber": number, "contentType": "image/jpeg"} for number in ("1", "2", None)]
    etags = [served.etag(LOOP, **one) for one in given]
    assert len({*etags, served.etag(LOOP, frameNumber="1", contentType="image/jpeg", rows="9")}) == 4


def test_quality_and_a_list_of_types(served):
    small, large = (len(served.get(CT, imageQuality=quality)[2]) for quality in ("5", "95"))
    assert small < large
    assert served.get(CT, contentType="image/png;q=0.5, image/jpeg")[1] == "image/jpeg"
    assert served.get(CT, contentType="image/jp2, image/png")[1] in ("image/jp2", "image/png")
    assert served.get(LOOP, contentType="image/gif")[1] == "image/gif"


@pytest.mark.parametrize(
    ("status", "word", "given"),
    [
        (400, "requestType", {"requestType": "wado2"}),
        (400, "studyUID", {"studyUID": None}),
        (400, "seriesUID", {"seriesUID": "1.2.x"}),
        (400, "objectUID", {"objectUID": None}),
        (404, "", {"objectUID": "1.2.3"}),
        (404, "", {"seriesUID": "1.2.3"}),
        (404, "", {"frameNumber": "2"}),
        (400, "frameNumber", {"frameNumber": "1,1"}),
        (400, "windowWidth", {"windowCenter": "1"}),
        (400, "windowCenter", {"windowCenter": "1,2", "windowWidth": "3"}),
        (400, "rows", {"rows": "0"}),
        (400, "region", {"region": "0,0,1"}),
        (400, "region", {"region": "0.5,0,0.5,1"}),
        (400, "region", {"region": "0,0,2,1"}),
        (400, "imageQuality", {"imageQuality": "best"}),
        (400, "imageQuality", {"imageQuality": "101"}),
        (400, "windowWidth", {"windowCenter": "1", "windowWidth": "0"}),
        (400, "rows", {"rows": "99999999"}),
        (400, "contentType", {"contentType": ";"}),
        (406, "", {"contentType": "image/x-none"}),
        (406, "single part", {"contentType": 'multipart/related; type="image/png"'}),
        (406, "single part", {"contentType": "application/dicom;q=0"}),
        (406, "", {"contentType": "application/dicom", "transferSyntax": "1.2.840.10008.1.2.2"}),
        (400, "transferSyntax", {"contentType": "application/dicom", "transferSyntax": "jpeg"}),
        (400, "anonymize", {"anonymize": "no"}),
        (406, "de-identify", {"anonymize": "yes", "contentType": "application/dicom"}),
        (406, "presentation", {"presentationUID": "1.2"}),
    ],
)
def test_what_cannot_be_answered_is_refused(served, status, word, given):
    served.refused(CT, status, word, **given)


def test_an_answer_is_one_part(served):
    """Also if the client accepts anything, for an instance of many frames."""
    for types in ("image/jpeg, */*;q=0.1", 'image/jpeg, multipart/related; type="image/jpeg"'):
        assert served.get(LOOP, contentType=types)[1] == "image/jpeg"


def test_a_type_may_have_a_transfer_syntax(served):
    asked = "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90"
    assert served.get(CT, contentType=asked)[1] == asked


def test_text_is_utf_8(served):
    assert served.get(REPORT, charset="utf-8")[0] == served.get(CT, charset="iso-8859-1")[0] == 200
    served.refused(REPORT, 406, "utf-8", charset="iso-8859-1")


def test_it_is_described(served):
    with urllib.request.urlopen(f"{served.origin}/v2/openapi.json") as answer:
        described = json.load(answer)["paths"]["/wado"]["get"]
    names = {parameter["name"] for parameter in described["parameters"]}
    assert {"requestType", "studyUID", "seriesUID", "objectUID", "contentType"} <= names
