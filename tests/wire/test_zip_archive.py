"""The records of ZIP archives, read by zipfile."""

import io
import zipfile
import zlib

import pytest

from streamsrv.wire import zip_archive
from streamsrv.wire.zip_archive import Entry


def written(path, sizes, modified=1_700_000_000):
    """An archive of holes: files of zeros of these lengths."""
    directory, at = [], 0
    with path.open("wb") as file:
        for number, length in enumerate(sizes):
            crc = zlib.crc32(bytes(length)) if length < 1_000_000 else 0
            entry = Entry(f"1.2/3/{number}.dcm", crc, length, at, modified)
            head = zip_archive.head(entry)
            file.write(head)
            at += len(head) + length
            file.seek(at)
            directory.append(zip_archive.directory_entry(entry))
        listing = b"".join(directory)
        file.write(listing + zip_archive.end(len(directory), len(listing), at))
    return path


@pytest.mark.parametrize("sizes", [[], [0], [10, 0, 3_000]])
def test_small(tmp_path, sizes):
    with zipfile.ZipFile(written(tmp_path / "a.zip", sizes)) as archive:
        assert archive.testzip() is None
        assert [info.file_size for info in archive.infolist()] == sizes
        for info in archive.infolist():
            assert (info.compress_type, info.date_time) == (zipfile.ZIP_STORED, (2023, 11, 14, 22, 13, 20))
            assert archive.read(info) == bytes(info.file_size)


@pytest.mark.parametrize(
    "sizes",
    [[0xFFFFFFFE, 7], [0xFFFFFFFF, 7], [5_000_000_000, 7], [7, 3_000_000_000, 3_000_000_000, 9]],
)
def test_lengths_and_offsets_over_4_gb(tmp_path, sizes):
    with zipfile.ZipFile(written(tmp_path / "a.zip", sizes)) as archive:
        assert [info.file_size for info in archive.infolist()] == sizes
        assert archive.read(archive.infolist()[-1]) == bytes(sizes[-1])
        for info in archive.infolist():
            with archive.open(info) as file:  # compares the head with the directory
                assert file.read(1) == b"\0"


@pytest.mark.no_cover
@pytest.mark.parametrize("count", [65_534, 65_535, 70_000])
def test_more_entries_than_16_bits(tmp_path, count):
    with zipfile.ZipFile(written(tmp_path / "a.zip", [0] * count)) as archive:
        assert len(archive.infolist()) == count


@pytest.mark.parametrize(
    ("modified", "found"),
    [
        (0, (1980, 1, 1, 0, 0, 0)),
        (1 << 40, (2107, 12, 31, 23, 59, 58)),
        (951_827_696, (2000, 2, 29, 12, 34, 56)),
    ],
)
def test_dates(tmp_path, modified, found):
    with zipfile.ZipFile(written(tmp_path / "a.zip", [1], modified)) as archive:
        assert archive.infolist()[0].date_time == found


def test_the_same_as_zipfile_writes(tmp_path):
    """But for the program that made it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("1.2/3/0.dcm", (2023, 11, 14, 22, 13, 20))
        info.external_attr = 0o100644 << 16
        archive.writestr(info, bytes(10))
    found, expected = written(tmp_path / "a.zip", [10]).read_bytes(), file.getvalue()
    differing = [at for at, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
    assert differing == [expected.index(b"PK\1\2") + 4]
