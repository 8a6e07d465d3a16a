"""The bodies that perf/ sends are what they say they are: a measurement of refusals would look very fast."""

import email
import email.policy
import io
import re
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from perf import __main__ as perf_main
from perf import data, pixel_data, report
from perf.__main__ import LONG, NAMES, arguments, repeatable
from perf.report import Claim, Row


def parts_of(body):
    payload = b"".join(body.chunks())
    assert len(payload) == body.length
    head = f"Content-Type: {data.CONTENT_TYPE}\r\n\r\n".encode()
    message = email.message_from_bytes(head + payload, policy=email.policy.HTTP)
    return [part.get_payload(decode=True) for part in message.iter_parts()]


def test_a_ct_study():
    body = data.ct_study(3, 5, pixels=2048)
    instances = [pydicom.dcmread(io.BytesIO(part)) for part in parts_of(body)]
    assert [(i.StudyInstanceUID, i.SeriesInstanceUID, i.SOPInstanceUID) for i in instances] == body.keys
    assert [i.file_meta.MediaStorageSOPInstanceUID for i in instances] == [key.instance for key in body.keys]
    assert [i.InstanceNumber for i in instances] == [0, 1, 2, 3, 4]
    assert len({i.PixelData for i in instances}) == 5
    assert all(len(i.PixelData) == i.Rows * i.Columns * 2 == 2048 for i in instances)


def test_a_ct_instance_has_526_kb():
    (part,) = parts_of(data.ct_study(1, 1))
    assert 526_000 < len(part) < 530_000


def test_ct_slices_compress_as_real_ones_do():
    """Public ones of 512 x 512: 2.9 to 5.4 by JPEG-LS; noise alone would be under 2."""
    instances = [pydicom.dcmread(io.BytesIO(part)) for part in parts_of(pixel_data.ct_slices(7, 6))]
    assert [i.SOPInstanceUID for i in instances] == [key.instance for key in pixel_data.ct_slices(7, 6).keys]
    assert len({i.PixelData for i in instances}) == pixel_data.SLICES
    picture = instances[0].pixel_array
    assert np.array_equal(picture, pixel_data.ct_pictures()[0])
    heart = picture[225:235, 270:290].astype(float) - 1024
    assert abs(heart.mean() - 130) < 5
    assert 8 < heart.std() < 16
    assert 3 < picture.nbytes / len(imagecodecs.jpegls_encode(picture)) < 5


@pytest.mark.parametrize("frames", [1, 3, 1000])
def test_a_multi_frame_instance(frames):
    body = data.multi_frame(4, frames, 21_000)
    (part,) = parts_of(body)
    instance = pydicom.dcmread(io.BytesIO(part))
    assert (instance.StudyInstanceUID, instance.SeriesInstanceUID, instance.SOPInstanceUID) == body.keys[0]
    found = list(generate_frames(instance.PixelData, number_of_frames=frames))
    assert [len(frame) for frame in found] == [21_000] * frames
    assert len(set(found)) == frames


def test_studies_differ():
    assert not set(data.ct_study(1, 3).keys) & set(data.ct_study(2, 3).keys)


def test_a_claim_holds_within_its_limits():
    assert Claim("", 0.5, "x", at_least=0.5).holds
    assert not Claim("", 0.49, "x", at_least=0.5).holds
    assert Claim("", 50, "MB", at_most=50).holds
    assert not Claim("", 51, "MB", at_most=50).holds


@pytest.mark.parametrize("make", [pixel_data.native_loop, pixel_data.jpeg_slide, pixel_data.long_loop])
def test_pixels_that_can_be_decoded(make):
    (part,) = parts_of(make(9, 20))
    instance = pydicom.dcmread(io.BytesIO(part))
    assert int(instance.NumberOfFrames) == 20
    frames = instance.pixel_array
    assert frames.shape[:3] == (20, instance.Rows, instance.Columns)
    assert frames[3].std() > 10


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["study", "--folder", "/somewhere", "--quick"], ["study", "--quick"]),
        (["--folder=/somewhere", "study"], ["study"]),
        (["study"], ["study"]),
    ],
)
def test_results_keep_no_folder_of_the_machine(words, kept):
    assert repeatable(words) == kept


def test_the_documentation_names_every_measure():
    text = (Path(__file__).parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    table = text[text.index("| measure | question |") : text.index("Claims are figures")]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(NAMES)


def test_what_takes_long_runs_only_if_it_is_named():
    assert arguments([]).measures == [name for name in NAMES if name not in LONG]
    assert arguments(["scale"]).measures == ["scale"]
    with pytest.raises(SystemExit):
        arguments(["everything"])


def test_what_breaks_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def breaks(size):
        yield Row("a", "streamsrv", 1.0, "ms")
        raise ZeroDivisionError("nothing was asked")

    def works(size):
        yield Claim("b", 2, "x", at_least=1)

    monkeypatch.setattr(perf_main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(perf_main, "MEASURES", {"study": breaks, "large": works})
    assert perf_main.main(["study", "large", "--name", "try", "--folder", str(tmp_path)]) == 1
    found = report.Results.load(tmp_path / "results" / "try.json")
    assert [(row.measure, row.subject, row.note) for row in found.rows] == [
        ("a", "streamsrv", ""),
        ("study", "not finished", "ZeroDivisionError: nothing was asked"),
    ]
    assert [claim.text for claim in found.claims] == ["b"]
    assert (tmp_path / "results" / "try.txt").read_text().endswith("holds  b: 2 x (wanted >= 1)\n")
    assert "streamsrv" in (tmp_path / "results" / "try.svg").read_text()
    assert "ZeroDivisionError" in capsys.readouterr().err
