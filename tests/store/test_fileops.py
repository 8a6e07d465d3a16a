import errno
import os

import pytest

from streamsrv.store.fileops import COPY_WINDOW, MAX_BUFFERS, RWF_DONTCACHE, FileOps, copy_all, write_all


class ShortFileOps(FileOps):
    """A disk that takes few bytes at a time."""

    def __init__(self, step):
        self.step = step
        self.calls = 0

    def write(self, fd, pieces, offset, *, keep=True):
        self.calls += 1
        joined = b"".join(pieces[:MAX_BUFFERS])[: self.step]
        return os.pwrite(fd, joined, offset)

    def copy(self, source, source_offset, target, target_offset, length):
        return super().copy(source, source_offset, target, target_offset, min(length, self.step))


@pytest.fixture
def file(tmp_path):
    fd = FileOps().create(tmp_path / "file")
    yield fd
    os.close(fd)


def content(fd):
    return os.pread(fd, 1 << 24, 0)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_short_writes_are_continued(file, step):
    pieces = [b"abc", memoryview(b"defgh"), b"", bytearray(b"i")]
    ops = ShortFileOps(step)
    assert write_all(ops, file, pieces, 5) == 9
    assert content(file) == bytes(5) + b"abcdefghi"
    assert ops.calls == -(-9 // step)


def test_what_is_not_to_be_kept_is_written_all_the_same(file):
    assert write_all(FileOps(), file, [b"abc", b"defgh"], 5, keep=False) == 8
    assert content(file) == bytes(5) + b"abcdefgh"


def test_a_kernel_that_keeps_everything(file, monkeypatch):
    write, flags = os.pwritev, []

    def older(fd, pieces, offset, *given):
        flags.append(given)
        if given:
            raise OSError(refusal, os.strerror(refusal))
        return write(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", older)
    refusal = errno.EOPNOTSUPP
    assert write_all(FileOps(), file, [b"abc"], 0, keep=False) == 3
    assert content(file) == b"abc"
    assert flags == [(RWF_DONTCACHE,), ()]
    refusal = errno.ENOSPC
    with pytest.raises(OSError, match="space"):
        write_all(FileOps(), file, [b"abc"], 0, keep=False)
    assert len(flags) == 3


def test_more_pieces_than_one_call_takes(file):
    pieces = [b"%4d" % number for number in range(MAX_BUFFERS * 2 + 5)]
    assert write_all(FileOps(), file, pieces, 0) == len(pieces) * 4
    assert content(file) == b"".join(pieces)


def test_nothing_to_write(file):
    ops = ShortFileOps(10)
    assert write_all(ops, file, [b"", b""], 0) == 0
    assert ops.calls == 0


def test_a_disk_that_takes_nothing_is_an_error(file):
    with pytest.raises(OSError, match="moved no bytes"):
        write_all(ShortFileOps(0), file, [b"abc"], 0)


def test_copy(file, tmp_path):
    write_all(FileOps(), file, [b"0123456789"], 0)
    target = FileOps().create(tmp_path / "target")
    copy_all(ShortFileOps(3), file, 2, target, 4, 7)
    assert content(target) == bytes(4) + b"2345678"
    os.close(target)


def test_copy_without_the_kernel(file, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "other device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    body = os.urandom(COPY_WINDOW * 2 + 17)
    write_all(FileOps(), file, [body], 0)
    target = FileOps().create(tmp_path / "target")
    copy_all(FileOps(), file, 0, target, 0, len(body))
    assert content(target) == body
    os.close(target)


def test_copy_error_is_told(file, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with pytest.raises(OSError, match="broken"):
        FileOps().copy(file, 0, file, 0, 5)


def test_files_are_private_and_made_once(tmp_path):
    ops = FileOps()
    os.close(ops.create(tmp_path / "a"))
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        ops.create(tmp_path / "a")
    ops.make_folder(tmp_path / "f" / "g")
    assert (tmp_path / "f" / "g").stat().st_mode & 0o077 == 0


def test_names(tmp_path):
    ops = FileOps()
    fd = ops.create(tmp_path / "a")
    write_all(ops, fd, [b"12345"], 0)
    ops.truncate(fd, 3)
    ops.sync(fd)
    os.close(fd)
    ops.link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileExistsError):
        ops.link(tmp_path / "a", tmp_path / "b")
    ops.rename(tmp_path / "a", tmp_path / "c")
    ops.unlink(tmp_path / "b")
    ops.sync_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    fd = ops.open(tmp_path / "c")
    assert content(fd) == b"123"
    os.close(fd)
    ops.make_folder(tmp_path / "f")
    ops.remove_folder(tmp_path / "f")
    ops.remove_folder(tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_space(tmp_path):
    free, total = FileOps().space(tmp_path)
    assert 0 < free <= total
