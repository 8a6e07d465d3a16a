"""Grants: their files, and the workers that remember them."""

import fcntl
import json
import math
import os
import threading
import time

import pytest
from access_world import files_of

from streamsrv.cli import FAILED, USAGE, main
from streamsrv.query.rules import rule_of
from streamsrv.web.access.grants import (
    KEY,
    MOST,
    Grant,
    GrantDamaged,
    KnownGrants,
    digest_of,
    file_of,
    grants_in,
    is_name,
    new_key,
)
from streamsrv.web.access.principal import Right

RULE = rule_of(["InstitutionName=A*"], ["1.2.3", "1.2.4"])
RIGHTS = Right.SEARCH | Right.READ


def grant_of(secret="secret", name="ann", rights=RIGHTS, rule=RULE, until=math.inf):
    return Grant(KEY, name, digest_of(secret), rights, rule, 1000.5, until, {"by": "x"})


@pytest.fixture
def grants(tmp_path):
    return grants_in(tmp_path)


def write(grants, *several):
    with grants.changing() as change:
        for grant in several:
            change.write(grant)


@pytest.mark.parametrize("until", [math.inf, 2000.25])
@pytest.mark.parametrize("rule", [None, RULE, rule_of([])])
def test_a_grant_is_read_as_it_was_written(grants, rule, until):
    grant = grant_of(rule=rule, until=until)
    write(grants, grant)
    assert list(grants.all(KEY)) == [grant]
    assert list(grants.all("share")) == []


@pytest.mark.parametrize("at", [0, 30, 90, -30])
def test_a_changed_byte_is_found(grants, at):
    write(grants, grant_of())
    path = files_of(grants)[0]
    text = bytearray(path.read_bytes())
    text[at] ^= 1
    path.write_bytes(text)
    with pytest.raises(GrantDamaged, match=path.name):
        grants.find(KEY, digest_of("secret"))


def test_a_right_that_is_added_by_hand_grants_nothing(grants):
    write(grants, grant_of())
    path = files_of(grants)[0]
    row = json.loads(path.read_text())
    row["rights"].append("delete")
    path.write_text(json.dumps(row))
    with pytest.raises(GrantDamaged, match="checksum"):
        KnownGrants(grants).find(KEY, digest_of("secret"))


def test_a_file_under_another_name_grants_nothing(grants):
    write(grants, grant_of())
    path = files_of(grants)[0]
    path.rename(grants.documents.path_of(file_of(KEY, digest_of("mine"))))
    with pytest.raises(GrantDamaged, match="another file"):
        KnownGrants(grants).find(KEY, digest_of("mine"))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/hostname")])
def test_what_is_no_file_grants_nothing(grants, make):
    write(grants)
    path = grants.documents.path_of(file_of(KEY, digest_of("mine")))
    make(path)
    with pytest.raises(GrantDamaged):
        KnownGrants(grants).find(KEY, digest_of("mine"))


def test_a_grant_is_on_the_disk_before_it_has_its_name(grants, monkeypatch):
    """And its name before the verb, or the sign-in, says so."""
    done = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.path.realpath(f"/proc/self/fd/{fd}")), sync(fd))
    )
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append("rename"), rename(old, new)))
    write(grants, grant_of())
    (path,) = files_of(grants)
    assert done == [str(path.with_suffix(".draft")), "rename", str(grants.documents.folder)]


def test_a_change_locks_the_folder(grants):
    with grants.changing():
        fd = os.open(grants.documents.folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_a_link_to_a_grant_grants_nothing(grants, tmp_path):
    """Its target may be where others write."""
    mine = grant_of("mine")
    write(grants, mine)
    path = grants.documents.path_of(file_of(KEY, mine.digest))
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    with pytest.raises(GrantDamaged, match="symbolic link"):
        KnownGrants(grants).find(KEY, mine.digest)


def test_names_go_into_logs_and_basic():
    assert all(map(is_name, ("a", "PACS 2", "Müller", "日本", "a/b", "..", "x" * 64)))
    assert not any(map(is_name, ("", " a", "a ", "a:b", "a\nb", "a\x7f", "\u202e", "\udcff", "x" * 65)))


class TestKnown:
    @pytest.fixture
    def known(self, grants):
        write(grants, grant_of())
        return KnownGrants(grants, lambda: time.time() + 60)  # every file is old

    def find(self, known):
        return known.find(KEY, digest_of("secret"))

    def test_an_unknown_secret_is_looked_up_each_time(self, known, grants):
        assert known.find(KEY, digest_of("other")) is None
        write(grants, grant_of("other", "bob"))
        assert known.find(KEY, digest_of("other")).name == "bob"
        assert not known.refresh()

    def test_a_grant_that_stays_changes_nothing(self, known, grants):
        assert self.find(known).name == "ann"
        write(grants, grant_of())  # the same again
        assert not known.refresh()

    def test_a_removed_grant_is_noticed(self, known, grants):
        self.find(known)
        os.unlink(files_of(grants)[0])
        assert known.refresh()
        assert self.find(known) is None

    def test_a_changed_grant_is_noticed(self, known, grants):
        self.find(known)
        write(grants, grant_of(rights=Right.SEARCH))
        assert known.refresh()
        assert self.find(known).rights == Right.SEARCH
        assert not known.refresh()

    def test_a_grant_that_has_ended_is_watched_no_more(self, grants):
        write(grants, grant_of(until=2000.0))
        known = KnownGrants(grants, lambda: 2000.5)
        assert self.find(known).until == 2000.0
        assert not known.refresh()
        files_of(grants)[0].unlink()
        assert not known.refresh()
        assert self.find(known) is None

    def test_a_damaged_grant_is_noticed(self, known, grants):
        self.find(known)
        files_of(grants)[0].write_bytes(b"{}")
        assert known.refresh()

    def test_two_changes_within_a_tick_are_noticed(self, grants, monkeypatch):
        """A file system gives both the same times, and perhaps the same inode number."""
        write(grants, grant_of(rights=Right.READ))
        known = KnownGrants(grants)
        self.find(known)
        path = files_of(grants)[0]
        found = os.stat(path)
        with path.open("r+b") as file:
            text = file.read().replace(b"read", b"READ")  # no rights of this name: the checksum is another
            file.seek(0)
            file.write(text)
        real = os.stat
        monkeypatch.setattr(os, "stat", lambda each, **more: found if each == path else real(each, **more))
        assert known.refresh()

    def test_a_grant_that_is_forgotten_is_a_change(self, grants, monkeypatch):
        several = [grant_of(str(number), str(number)) for number in range(3)]
        write(grants, *several)
        monkeypatch.setattr("streamsrv.web.access.grants.MOST", 2)
        assert MOST > 2
        known = KnownGrants(grants)
        for grant in several[:2]:
            known.find(KEY, grant.digest)
        assert not known.refresh()
        known.find(KEY, several[2].digest)
        assert known.refresh()


class TestVerb:
    @pytest.fixture
    def run(self, tmp_path, capsys):
        def run(*words, code=0):
            capsys.readouterr()
            assert main(["key", *words, "--data", str(tmp_path)]) == code
            return capsys.readouterr()

        return run

    def test_add_prints_the_key_and_nothing_else(self, run, grants):
        said = run(
            "add", "ann", "--rights", "search,read", "--where", "InstitutionName=A*", "--study", "1.2.3"
        )
        key = said.out.removesuffix("\n")
        assert (len(key), said.err) == (len(new_key()), "")
        grant = grants.named(KEY, "ann")
        assert grant.digest == digest_of(key)
        assert grant.rights == Right.SEARCH | Right.READ
        assert grant.rule == rule_of(["InstitutionName=A*"], ["1.2.3"])
        assert grant.until == math.inf

    def test_list_shows_all_but_the_secret(self, run):
        key = run("add", "ann", "--rights", "read", "--expires", "7d").out[:-1]
        run("add", "bob", "--rights", "store", "--study", "1.2.3")
        listed = json.loads(run("list", "--json").out)
        assert [(each["name"], each["rights"]) for each in listed] == [("ann", "read"), ("bob", "store")]
        assert listed[1]["rule"] == [{"StudyInstanceUID": "1.2.3"}]
        assert (listed[0]["expires"] == "never", listed[1]["expires"]) == (False, "never")
        said = run("list").out
        assert key not in said
        assert digest_of(key) not in said

    def test_change_keeps_the_rest(self, run, grants):
        run("add", "ann", "--rights", "read", "--study", "1.2.3", "--expires", "7d")
        before = grants.named(KEY, "ann")
        run("change", "ann", "--rights", "read,delete")
        assert grants.named(KEY, "ann") == before._replace(rights=Right.READ | Right.DELETE)
        run("change", "ann", "--all-studies", "--expires", "never")
        after = grants.named(KEY, "ann")
        assert (after.rule, after.until, after.digest) == (None, math.inf, before.digest)

    def test_revoke(self, run, grants):
        run("add", "ann", "--rights", "read")
        run("revoke", "ann")
        assert files_of(grants) == []
        assert "no key 'ann'" in run("revoke", "ann", code=FAILED).err

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (("ann", "--rights", "read,everything"), "'everything' is no right"),
            (("ann", "--rights", "read", "--expires", "soon"), "neither a period"),
            (("ann", "--rights", "read", "--expires", "2001-01-01"), "in the past"),
            (("ann",), "--rights"),
        ],
    )
    def test_wrong_words_are_refused(self, run, grants, capsys, words, sentence):
        with pytest.raises(SystemExit) as refused:
            run("add", *words)
        assert refused.value.code == USAGE
        assert sentence in capsys.readouterr().err
        assert files_of(grants) == []

    def test_a_wrong_name_or_rule_is_refused(self, run, grants):
        assert "no name for a key" in run("add", "a:b", "--rights", "read", code=USAGE).err
        rule = ("--where", "PatientName=X")
        assert "PatientName" in run("add", "ann", "--rights", "read", *rule, code=FAILED).err
        assert files_of(grants) == []

    def test_a_name_is_given_once(self, run):
        run("add", "ann", "--rights", "read")
        assert "already" in run("add", "ann", "--rights", "read", code=FAILED).err

    def test_a_name_is_given_once_to_two_at_the_same_time(self, tmp_path, grants):
        codes = []
        words = ["key", "add", "ann", "--rights", "read", "--data", str(tmp_path)]
        threads = [threading.Thread(target=lambda: codes.append(main(words))) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert sorted(codes) == [0, *[FAILED] * 5]
        assert len(files_of(grants)) == 1

    def test_a_draft_of_a_killed_process_grants_nothing_and_goes(self, run, grants):
        run("add", "ann", "--rights", "read")
        draft = grants.documents.folder / f"key-{digest_of('x')}.draft"
        draft.write_text(grant_of("x").text()[:100])
        assert json.loads(run("list", "--json").out)[0]["name"] == "ann"
        run("add", "bob", "--rights", "read")
        assert not draft.exists()

    def test_a_damaged_file_is_named_and_the_others_are_listed(self, run, grants):
        run("add", "ann", "--rights", "read")
        path = grants.documents.path_of(file_of(KEY, digest_of("x")))
        path.write_text("{")
        said = run("list", code=FAILED)
        assert "ann" in said.out
        assert str(path) in said.err

    def test_a_folder_that_is_no_store_gets_no_key(self, run, tmp_path):
        (tmp_path / "letter.txt").write_text("mine")
        assert "neither" in run("add", "ann", "--rights", "read", code=FAILED).err

    def test_copy_brings_keys_and_links_and_replaces_none(self, run, grants, tmp_path, tmp_path_factory):
        folder = tmp_path_factory.mktemp("other")
        other = grants_in(folder)
        link, session = (grant_of(kind, kind)._replace(kind=kind) for kind in ("share", "session"))
        write(other, grant_of(), link, session)
        assert run("copy", str(tmp_path), code=FAILED).err.endswith("has no keys\n")
        for _ in range(2):
            assert run("copy", str(folder)).out == "2 keys and share links were copied\n"
        assert list(grants.all()) == [grant_of(), link]
        write(other, grant_of("new", "bob"), grant_of("another", "ann"))
        assert "another key 'ann'" in run("copy", str(folder), code=FAILED).err
        assert list(grants.all()) == [grant_of(), link]
        run("revoke", "ann")
        for path in files_of(other, KEY)[:1]:
            path.write_bytes(b"{}")
        assert str(path) in run("copy", str(folder), code=FAILED).err
        assert len(grants.names()) == 3

    def test_permissions_of_others_are_taken_away(self, run, grants):
        run("add", "ann", "--rights", "read")
        grants.documents.folder.chmod(0o755)
        run("add", "bob", "--rights", "read")
        assert grants.documents.folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in files_of(grants)} == {0o600}
