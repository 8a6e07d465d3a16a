import os
import subprocess
import sys

import pytest

from streamsrv.errors import StoreCorrupt, StoreError, StoreLocked
from streamsrv.store import folder
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import Layout
from streamsrv.store.store import Store

OPS = FileOps()


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path / "data")
    folder.prepare(layout, OPS)
    return layout


def test_the_identity_is_made_once(layout):
    identity = folder.identity_of(layout)
    folder.prepare(layout, OPS)
    assert folder.identity_of(layout) == identity
    assert len(identity.secret) == 32
    assert layout.identity.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in layout.root.iterdir()) == ["segments", "store.toml"]


def test_of_several_workers_one_makes_it(tmp_path):
    class Slow(FileOps):
        """Another worker is done before this one links its draft."""

        def link(self, old, new):
            folder.prepare(Layout(tmp_path), FileOps())
            super().link(old, new)

    folder.prepare(Layout(tmp_path), Slow())
    assert len(folder.identity_of(Layout(tmp_path)).secret) == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["segments", "store.toml"]


def test_a_worker_that_is_slower_than_the_first_commit_joins(tmp_path):
    class Late(FileOps):
        """Another worker has made the store, its manifest too, since this one found no identity."""

        def make_folder(self, path):
            super().make_folder(path)
            if path.name == "segments" and not (tmp_path / "manifest").exists():
                (tmp_path / "manifest").touch()
                folder.Layout(tmp_path).identity.write_text("made")

    folder.prepare(Layout(tmp_path), Late())
    assert Layout(tmp_path).identity.read_text() == "made"


@pytest.mark.parametrize(
    ("old", "new"),
    [("secret", "sacred"), ("store_id = ", "= "), ('secret = "', 'secret = "zz'), ("\nsecret", "\n#")],
)
def test_a_broken_identity_is_told(layout, old, new):
    layout.identity.write_text(layout.identity.read_text().replace(old, new))
    with pytest.raises(StoreCorrupt, match=r"store\.toml"):
        folder.identity_of(layout)


def test_a_short_secret_is_told(layout):
    layout.identity.write_text(folder.Identity("x", b"short").text())
    with pytest.raises(StoreCorrupt, match="32 bytes"):
        folder.identity_of(layout)


def test_every_wrong_character_of_a_value_is_told(layout):
    """Nothing else in the file means anything, so only values count."""
    text, values = layout.identity.read_text(), set()
    for line in text.splitlines()[1:]:
        values.update(range(text.index(line) + line.index("= ") + 2, text.index(line) + len(line)))
    for place in sorted(values):
        other = "7" if text[place] != "7" else "8"
        layout.identity.write_text(text[:place] + other + text[place + 1 :])
        with pytest.raises(StoreError):
            folder.identity_of(layout)
    layout.identity.write_text(text)
    folder.identity_of(layout)


def test_another_version_is_told(layout):
    text = layout.identity.read_text().replace("format_version = 3", "format_version = 4")
    layout.identity.write_text(text)
    with pytest.raises(StoreError, match="version 4"):
        folder.identity_of(layout)


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match="not the folder of a store"):
        folder.identity_of(Layout(tmp_path))


def test_segments_without_identity_are_not_given_another(layout):
    layout.segment(1).touch()
    layout.identity.unlink()
    with pytest.raises(StoreCorrupt, match="without its secret"):
        folder.prepare(layout, OPS)


def test_a_missing_folder_of_segments_is_not_made_again(layout):
    layout.segments.rmdir()
    for read_only in (False, True):
        with pytest.raises(StoreCorrupt, match="no folder of segments"):
            Store.open(layout.root, read_only=read_only)
    assert not layout.segments.exists()


def test_segment_files(layout):
    for name in ("00000012.seg", "00000003.seg", "123456789.seg", "notes.seg", "00000001.tmp"):
        (layout.segments / name).touch()
    assert list(layout.segment_files()) == [3, 12, 123456789]
    assert layout.segment(12).name == "00000012.seg"


def test_a_missing_index(layout):
    folder.ensure_index(layout, OPS)
    layout.segment(1).touch()
    with pytest.raises(StoreCorrupt, match="streamsrv reindex"):
        folder.ensure_index(layout, OPS)
    layout.index.mkdir()
    folder.ensure_index(layout, OPS)


def test_an_exchange_that_was_cut_short_is_undone(layout):
    layout.segment(1).touch()
    layout.old_index.mkdir()
    layout.new_index.mkdir()
    (layout.old_index / "file").touch()
    folder.ensure_index(layout, OPS)
    assert (layout.index / "file").exists()
    assert not layout.old_index.exists()


def test_an_old_index_that_is_alone_is_left_where_it_is(layout):
    """It may be months old."""
    layout.segment(1).touch()
    layout.old_index.mkdir()
    with pytest.raises(StoreCorrupt, match="streamsrv reindex"):
        folder.ensure_index(layout, OPS)
    assert layout.old_index.exists()


def test_an_exchange_that_another_worker_undoes(layout):
    class Late(FileOps):
        def rename(self, old, new):
            FileOps().rename(old, new)
            super().rename(old, new)

    layout.old_index.mkdir()
    layout.new_index.mkdir()
    folder.ensure_index(layout, Late())
    assert layout.index.exists()


def test_one_server(layout):
    with folder.lock(layout, OPS) as held:
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}.*stop it first"):
            folder.lock(layout, OPS)
        held.close()
        folder.lock(layout, OPS).close()
    folder.lock(layout, OPS).close()


def test_one_server_across_processes(layout):
    script = (
        "import sys; from pathlib import Path\n"
        "from streamsrv.store import folder; from streamsrv.store.fileops import FileOps\n"
        "held = folder.lock(folder.Layout(Path(sys.argv[1])), FileOps())\n"
        "print('locked', flush=True); input()"
    )
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", script, str(layout.root)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(StoreLocked, match=f"process {other.pid}"):
            folder.lock(layout, OPS)
        other.kill()
    folder.lock(layout, OPS).close()


def test_use_is_shared_and_reindex_is_not(layout):
    first, second = folder.use(layout), folder.use(layout)
    with pytest.raises(StoreLocked, match="open in another process"):
        folder.use(layout, exclusive=True)
    first.close()
    second.close()
    with folder.use(layout, exclusive=True), pytest.raises(StoreLocked, match="being reindexed"):
        folder.use(layout)
