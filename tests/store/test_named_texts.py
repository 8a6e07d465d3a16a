"""Documents at both places: files of a folder, and rows of a database. Then what only one of them has."""

import contextlib
import os
import threading

import pytest

from streamsrv.errors import StoreError
from streamsrv.store import DocumentDamaged, FolderDocuments, LeaseLost, NamedText, open_documents
from streamsrv.store.postgresql import connections, migrate, open_index
from streamsrv.store.postgresql import documents as rows
from streamsrv.store.postgresql.documents import DatabaseDocuments


@pytest.fixture(scope="module")
def schema(database_server):
    """The URL of a database with tables."""
    url = database_server.url("of_documents")
    open_index(url).close()
    return url


@pytest.fixture(params=["folder", "database"])
def place(request, tmp_path):
    """A function that opens the same documents again, as another process does."""
    with contextlib.ExitStack() as opened:
        url = request.getfixturevalue("schema") if request.param == "database" else ""
        kind = tmp_path.name  # of this test alone

        def again():
            made = open_documents(kind, tmp_path, url, "s3://bucket" if url else "")
            return opened.enter_context(contextlib.closing(made))

        yield again


def write(documents, **texts):
    with documents.changing() as change:
        for name, text in texts.items():
            change.write(name.replace("_", "."), text)


def test_documents_are_read_as_they_were_written(place):
    one, two = place(), place()
    assert (one.exist(), one.names(), list(one.all()), one.read("a.json")) == (True, [], [], None)
    write(one, b_json=b"1", a_json=b"\0\xff", a_state=b"")
    assert two.names() == ["a.json", "a.state", "b.json"]
    assert list(two.all("a.")) == [NamedText("a.json", b"\0\xff"), NamedText("a.state", b"")]
    assert list(two.all("", ".json")) == [NamedText("a.json", b"\0\xff"), NamedText("b.json", b"1")]
    assert two.names("b", ".state") == []
    write(two, b_json=b"2")
    assert one.read("b.json") == b"2"


def test_documents_grow_get_other_names_and_go(place):
    one, two = place(), place()
    for line in (b"1\n", b"2\n"):
        with one.changing() as change:
            change.append("a.dead", line)
    write(one, a_again=b"old")
    assert two.read("a.dead") == b"1\n2\n"
    with two.changing() as change:
        change.rename("a.dead", "a.again")
    assert (one.read("a.dead"), one.read("a.again")) == (None, b"1\n2\n")
    with one.changing() as change:
        change.append("a.dead", b"3\n")  # as one that never was
        change.remove("a.again")
        change.remove("a.again")
    assert (two.names(), two.read("a.dead")) == (["a.dead"], b"3\n")


def test_changes_are_made_one_after_the_other(place):
    """None of them is lost, and a reader does not wait."""
    opened = [place() for _ in range(4)]
    write(opened[0], number=b"0")

    def count(documents):
        for _ in range(5):
            with documents.changing() as change:
                number = int(documents.read("number"))
                change.write("number", b"%d" % (number + 1))

    threads = [threading.Thread(target=count, args=(each,)) for each in opened]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert opened[0].read("number") == b"20"
    with opened[0].changing():
        assert opened[1].read("number") == b"20"


def test_an_error_ends_a_change(place):
    one = place()
    with pytest.raises(ZeroDivisionError), one.changing():
        raise ZeroDivisionError
    write(one, a=b"1")
    assert one.read("a") == b"1"


def test_one_process_has_the_lease(place):
    one, two = place(), place()
    with one.leased() as mine, two.leased() as none:
        assert none is None
        assert mine.holds()
        assert (two.holder() == "") is (two.folder is not None)
        with one.changing(mine) as change:
            change.write("a", b"1")
        assert one.names() == ["a"]
    assert one.holder() == ""
    with two.leased() as mine:
        assert mine.holds()


def test_both_places_have_the_time(place):
    assert abs(place().now() - FolderDocuments(None).now()) < 30


# --- the database ---


@pytest.fixture
def documents(schema, tmp_path):
    with contextlib.closing(DatabaseDocuments(schema, tmp_path.name)) as made:
        yield made


def test_a_change_counts_whole_or_not_at_all(documents):
    with contextlib.suppress(ZeroDivisionError), documents.changing() as change:
        change.write("a", b"1")
        raise ZeroDivisionError
    assert documents.names() == []


def test_changes_since_a_version(documents):
    write(documents, a=b"1", b=b"2")
    version, texts = documents.read_several(["a", "c"])
    assert texts == {"a": b"1", "c": None}
    assert documents.changed_since(version) == (version, {})
    with documents.changing() as change:
        change.remove("a")
        change.remove("c")
    write(documents, b=b"3")
    later = documents.changed_since(version)
    assert later.texts == {"a": None, "b": b"3"}
    assert documents.changed_since(later.version).texts == {}


def test_a_document_that_was_removed_is_forgotten_after_an_hour(documents, database_server):
    write(documents, a=b"1")
    with documents.changing() as change:
        change.remove("a")
    older = "UPDATE of_documents.documents SET changed = now() - interval '2 hours' WHERE body IS NULL"
    database_server.sql(older)
    write(documents, b=b"1")
    assert set(documents.changed_since(0).texts) == {"b"}


def test_a_lease_that_was_not_renewed_is_lost(documents, schema, tmp_path, database_server, monkeypatch):
    """As that of a node that was stopped, and wakes up."""
    with documents.leased() as mine, contextlib.closing(DatabaseDocuments(schema, tmp_path.name)) as two:
        clock = rows.boot_seconds()
        assert mine.holds()
        database_server.sql(f"UPDATE of_documents.leases SET until = now() WHERE name = '{tmp_path.name}'")
        with two.leased() as theirs:
            with pytest.raises(LeaseLost), documents.changing(mine) as change:
                change.write("a", b"1")
            assert documents.names() == []
            monkeypatch.setattr(rows, "boot_seconds", lambda: clock + rows.FRESH)
            assert (mine.holds(), mine.holds()) == (False, False)
            with two.changing(theirs) as change:
                change.write("a", b"2")
    assert documents.read("a") == b"2"


def test_a_lease_ends_by_the_clock_of_its_process(documents, monkeypatch):
    with documents.leased() as mine:
        clock = rows.boot_seconds()
        monkeypatch.setattr(rows, "boot_seconds", lambda: clock + rows.DOCUMENTS_LEASE + 1)
        monkeypatch.setattr(documents, "ask", None)  # the database is not asked
        assert not mine.holds()
        monkeypatch.undo()


def test_a_database_without_a_store(database_server, tmp_path):
    url = database_server.url("no_documents")
    with contextlib.closing(DatabaseDocuments(url, "access")) as made:
        assert (made.exist(), made.names(), list(made.all())) == (False, [], [])
        with pytest.raises(StoreError, match="start a node"), made.changing():
            pass
        open_index(url).close()
        assert made.exist()
        write(made, a=b"1")
        assert made.read("a") == b"1"


def test_changes_of_one_process_leave_connections_for_reading(schema, monkeypatch):
    """A change may read while others wait for their turn."""
    monkeypatch.setattr(connections, "MOST", 2)
    monkeypatch.setattr(connections, "WAITING", 0.2)
    with contextlib.closing(DatabaseDocuments(schema, "tries")) as documents:
        write(documents, number=b"0")
        errors = []

        def count():
            try:
                with documents.changing() as change:
                    number = int(documents.read("number"))
                    change.write("number", b"%d" % (number + 1))
            except StoreError as error:
                errors.append(error)

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (errors, documents.read("number")) == ([], b"4")


def test_the_tables_of_documents_are_made_by_a_migration(database_server):
    url = database_server.url("older_layout")
    open_index(url).close()
    database_server.sql(
        "SET search_path = older_layout; DROP TABLE documents, document_kinds, leases, tombstones, removals; "
        "ALTER TABLE cluster DROP COLUMN filling; ALTER TABLE objects DROP COLUMN moved; "
        "UPDATE head SET layout = 1"
    )
    with contextlib.closing(DatabaseDocuments(url, "access")) as made:
        with pytest.raises(StoreError, match="migrate-index"):
            made.names()
        assert migrate(url) == (1, 2)
        write(made, a=b"1")
        assert made.names() == ["a"]


# --- the folder ---


def test_a_file_that_is_not_ours_is_damage(tmp_path):
    documents = FolderDocuments(tmp_path)
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkdir(tmp_path / "folder")
    (tmp_path / ".lease").touch()
    (tmp_path / "a.draft").touch()
    found = dict(documents.all())
    assert sorted(found) == ["folder", "link"]
    assert all(isinstance(each, DocumentDamaged) for each in found.values())
