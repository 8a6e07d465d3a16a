"""Dumps say everything, in order; a rewritten index says the same, and nothing of what was deleted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from index_examples import element, name, new_instance

from streamsrv.errors import StoreError, StoreLocked
from streamsrv.store.index import environment as index_rewrite
from streamsrv.store.index.environment import DATABASES
from streamsrv.store.index.index import Index
from streamsrv.store.rows import InstanceKey


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(tmp_path / "index")
    opened.add_segment()
    yield opened
    opened.close()


def fill(index: Index, numbers: range = range(60)) -> None:
    keys = [InstanceKey(f"1.{number % 7}", f"1.{number % 7}.1", f"9.{number}") for number in numbers]
    new = [
        new_instance(key, number, text=b'{"a":%d}' % number)
        for number, key in zip(numbers, keys, strict=True)
    ]
    index.commit(new, segment=1, committed_end=0)


def everything(index: Index) -> dict[str, list[tuple[bytes, bytes]]]:
    return {database: list(index.dump(database)) for database in DATABASES}


def test_dump_in_small_batches(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(index)
    whole = everything(index)
    assert {database: len(rows) for database, rows in whole.items()}.items() <= index.statistics().items()
    assert all(rows == sorted(rows) for rows in whole.values())
    for size in (1, 3):
        monkeypatch.setattr(index_rewrite, "PAIRS_A_BATCH", size)
        assert everything(index) == whole


def test_indexes_of_the_same_instances_have_equal_rows(index: Index, tmp_path: Path) -> None:
    """Stored in another order, with others in between that are gone: only serials differ."""
    other = Index.open(tmp_path / "other")
    other.add_segment()
    fill(index)
    fill(other, range(100, 120))
    for part in (range(30, 60), range(30)):
        fill(other, part)
    keys = [row.key for row in other.rows() if int(row.key.instance.split(".")[1]) >= 100]
    other.delete(other.packed_rows(keys), segment=1, committed_end=0, dead_bytes=0)
    one, two = everything(index), everything(other)
    for database in ("variants", "studies", "series", "attributes", "uids"):
        assert one[database] == two[database]
    assert [(key, value[8:]) for key, value in one["instances"]] == [
        (key, value[8:]) for key, value in two["instances"]
    ]
    other.close()


def test_rewrite_forgets(index: Index, tmp_path: Path) -> None:
    secret = {"00100010": name("Unforgettable^Nat"), "00081030": element("LO", "Unforgettable study")}
    key = InstanceKey("1.3", "1.3.1", "8.8")
    fill(index)
    index.commit([new_instance(key, 900, secret, text=b'{"x":"Unforgettable"}')], segment=1, committed_end=0)
    index.delete(index.packed(*key), segment=1, committed_end=0, dead_bytes=0)
    before = everything(index)
    assert b"Unforgettable" in (tmp_path / "index/data.mdb").read_bytes()
    index.rewrite()
    raw = (tmp_path / "index/data.mdb").read_bytes()
    assert b"nforgettable" not in raw
    assert everything(index) == before
    fill(index, range(200, 210))
    assert len(index.rows(limit=100)) == 70
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["data.mdb", "lock.mdb"]


def test_what_an_interrupted_rewrite_left_is_removed(index: Index, tmp_path: Path) -> None:
    fill(index)
    (tmp_path / "index/rewrite").mkdir()
    (tmp_path / "index/rewrite/data.mdb").write_bytes(b"torn")
    index.rewrite()
    assert len(index.rows()) == 60


HOLD = """
import sys
from pathlib import Path
from streamsrv.store.index.index import Index
index = Index.open(Path(sys.argv[1]), read_only=True)
print(len(index.rows()), flush=True)
sys.stdin.read()
index.close()
"""


def test_two_processes_and_no_rewrite_beside_another(index: Index, tmp_path: Path) -> None:
    fill(index)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "index")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"60\n"
        with pytest.raises(StoreLocked, match="no other process"):
            index.rewrite()
        fill(index, range(100, 101))
        other.communicate()
    assert other.returncode == 0
    index.rewrite()
    assert len(index.rows()) == 61


def test_rewrite_in_small_batches(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(index)
    before = everything(index)
    monkeypatch.setattr(index_rewrite, "PAIRS_A_BATCH", 7)
    index.rewrite()
    assert everything(index) == before


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="reindex"):
        Index.open(tmp_path / "nothing", read_only=True)
    Index.open(tmp_path / "index").close()
    (tmp_path / "index/data.mdb").write_bytes(b"nonsense" * 4096)
    with pytest.raises(StoreError, match="reindex"):
        Index.open(tmp_path / "index")


def test_an_index_that_lacks_a_database_is_refused(tmp_path: Path) -> None:
    Index.open(tmp_path / "index").close()
    environment = lmdb.open(str(tmp_path / "index"), max_dbs=20)
    with environment.begin(write=True) as transaction:
        transaction.drop(environment.open_db(b"uids", txn=transaction, dupsort=True))
    environment.close()
    with pytest.raises(StoreError, match=r"lacks a database.*reindex"):
        Index.open(tmp_path / "index")


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Index.open(tmp_path / "index").close()
    monkeypatch.setattr("streamsrv.store.index.environment.TABLE_DIGEST", "changed")
    with pytest.raises(StoreError, match=r"another version.*reindex"):
        Index.open(tmp_path / "index")


def test_a_lock_file_that_is_removed_allows_no_second_writer(index: Index, tmp_path: Path) -> None:
    """LMDB would make another one, and two processes would write at once."""
    fill(index)
    (tmp_path / "index/lock.mdb").unlink()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "index")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "lock.mdb was removed while another process has the index open" in ended.stderr
    with pytest.raises(StoreError, match="removed or replaced"):
        fill(index, range(100, 101))
    assert len(index.rows()) == 60


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
def test_a_file_that_is_replaced_is_not_written_to(index: Index, tmp_path: Path, name: str) -> None:
    fill(index)
    (tmp_path / "index" / name).rename(tmp_path / "aside")
    shutil.copy(tmp_path / "aside", tmp_path / "index" / name)
    with pytest.raises(StoreError, match="removed or replaced"):
        fill(index, range(100, 101))
    (tmp_path / "aside").rename(tmp_path / "index" / name)
    fill(index, range(100, 101))
    assert len(index.rows()) == 61
