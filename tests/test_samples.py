"""The drawn samples: the tutorial's names, UIDs and attributes, the same bytes every time."""

import argparse
import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest

from streamsrv import samples

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "samples"
FRAME_LENGTH = 979 * 985 * 3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return samples.write_samples(tmp_path_factory.mktemp("samples"))


def test_the_three_names(drawn):
    assert [path.name for path in drawn] == ["red-triangle.dcm", "green-square.dcm", "blue-circle.dcm"]


def test_the_same_bytes_every_time(drawn, tmp_path):
    again = samples.write_samples(tmp_path / "made" / "on demand")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in drawn]


def test_file_meta_information(drawn):
    for path in drawn:
        raw = path.read_bytes()
        assert raw[:132] == bytes(128) + b"DICM"
        instance = pydicom.dcmread(path)
        meta = instance.file_meta
        assert meta.FileMetaInformationVersion == b"\0\1"
        assert meta.MediaStorageSOPClassUID == instance.SOPClassUID
        assert meta.MediaStorageSOPInstanceUID == instance.SOPInstanceUID
        assert meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert meta.ImplementationClassUID == samples.IMPLEMENTATION_CLASS_UID
        assert meta.ImplementationClassUID.is_valid
        assert raw[144 + meta.FileMetaInformationGroupLength :].startswith(b"\x08\0\x05\0CS")


def test_an_odd_frame_and_one_padding_byte(drawn):
    for path in drawn:
        assert FRAME_LENGTH == 2_892_945
        value = pydicom.dcmread(path).PixelData
        assert len(value) == FRAME_LENGTH + 1
        assert value[-1] == 0


@pytest.mark.no_cover
@pytest.mark.parametrize("sample", samples.SAMPLES, ids=lambda sample: sample.title)
def test_two_colours_and_the_shape_of_the_name(sample):
    picture = np.frombuffer(samples.pixels(sample), np.uint8).reshape(979, 985, 3)
    colours = {tuple(int(part) for part in row) for row in np.unique(picture.reshape(-1, 3), axis=0)}
    assert colours == {samples.BACKGROUND, sample.colour}
    mask = (picture == sample.colour).all(axis=2)
    height, width = (int(np.ptp(axis)) + 1 for axis in np.nonzero(mask))
    filled = mask.sum() / (height * width)
    expected = {"Red Triangle": 1 / 2, "Green Square": 1, "Blue Circle": np.pi / 4}[sample.title]
    assert filled == pytest.approx(expected, abs=0.005)


def test_the_verb_prints_the_paths(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    samples.add_arguments(parser)
    assert samples.run(parser.parse_args([str(tmp_path)])) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(tmp_path / sample.file_name) for sample in samples.SAMPLES]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the original sample files are not beside the project")
def test_attributes_equal_those_of_the_original_files(drawn):
    for path in drawn:
        ours, theirs = (pydicom.dcmread(file) for file in (path, SHARED / path.name))
        assert path.stat().st_size - ours.file_meta.FileMetaInformationGroupLength == (
            (SHARED / path.name).stat().st_size - theirs.file_meta.FileMetaInformationGroupLength
        )
        del ours.PixelData, theirs.PixelData
        assert ours == theirs
        assert [element.VR for element in ours] == [element.VR for element in theirs]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the original sample files are not beside the project")
def test_attributes_equal_those_of_the_table(drawn):
    with (SHARED / "dicom-metadata.csv").open(newline="") as table:
        rows = {row["SOPInstanceUID"]: row for row in csv.DictReader(table)}
    for path in drawn:
        instance = pydicom.dcmread(path)
        row = rows[instance.SOPInstanceUID]
        assert path.name == row.pop("fname").rsplit("\\", 1)[1]
        assert list(instance.ImageType) == [
            row.pop("ImageType"),
            row.pop("ImageType1"),
            row.pop("ImageType2"),
        ]
        assert list(instance.PixelSpacing) == [
            float(row.pop("PixelSpacing")),
            float(row.pop("PixelSpacing1")),
        ]
        del row["MultiImageType"], row["MultiPixelSpacing"]
        for keyword, text in row.items():
            value = getattr(instance, keyword)
            assert ("" if value is None else str(value)) == text, keyword
