"""The grants of a database as one worker knows them, with a database of the test."""

import asyncio
import math

import pytest
from web_world import settings_of

from streamsrv.errors import GrantPending, IndexUnreachable, KeysMissing, Unauthorized
from streamsrv.store import ChangedTexts
from streamsrv.web.access import shared_grants
from streamsrv.web.access.access import Access
from streamsrv.web.access.browser.sessions import SESSION, SOURCE
from streamsrv.web.access.grants import KEY, Grant, GrantDamaged, Grants, digest_of
from streamsrv.web.access.principal import NO_RIGHTS, Right
from streamsrv.web.access.shared_grants import MOST_AGE, PAUSE, REFRESH, REREAD, WAIT, SharedGrants
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller

CALLER = Caller("https://pacs.example", "192.0.2.1", "192.0.2.1")


class Table:
    """The documents of a database."""

    where, folder = "the access of the database", None

    def __init__(self):
        self.texts, self.versions, self.version = {}, {}, 0
        self.asked, self.away = [], False
        self.watched = self

    def write(self, grant, text=None):
        self.version += 1
        self.texts[grant.file] = grant.text().encode() if text is None else text
        self.versions[grant.file] = self.version

    def remove(self, grant):
        self.version += 1
        self.texts[grant.file], self.versions[grant.file] = None, self.version

    def read_several(self, names):
        self._ask(sorted(names))
        return ChangedTexts(self.version, {name: self.texts.get(name) for name in names})

    def changed_since(self, version):
        self._ask(version)
        found = {name: text for name, text in self.texts.items() if self.versions[name] > version}
        return ChangedTexts(self.version, found)

    def _ask(self, question):
        self.asked.append(question)
        if self.away:
            raise IndexUnreachable("it is away")


class World:
    def __init__(self):
        self.now, self.changes, self.table = 1000.0, 0, Table()
        self.known = SharedGrants(Grants(self.table), self.table, self.changed, lambda: self.now)

    def changed(self):
        self.changes += 1

    async def find(self, grant):
        """As a request that waits."""
        try:
            return self.known.find(grant.kind, grant.digest)
        except GrantPending:
            await self.known.fetched()
            return self.known.find(grant.kind, grant.digest)

    async def refresh(self, seconds=0.4):
        self.now += seconds
        changed = self.known.refresh()
        while self.known._tasks:
            await asyncio.sleep(0.001)
        return changed


@pytest.fixture
def world():
    made = World()
    yield made
    made.known.close()


def key_of(name="ann", rights=Right.READ, **more):
    return Grant(KEY, name, digest_of(name), rights, None, 1.0, **more)


async def test_a_grant_is_looked_up_once(world):
    ann, bob = key_of(), key_of("bob")
    world.table.write(ann)
    assert await asyncio.gather(*(world.find(each) for each in (ann, bob, ann))) == [ann, None, ann]
    assert [await world.find(ann) for _ in range(3)] == [ann] * 3
    assert len(world.table.asked) <= 2
    world.table.write(bob)
    assert await world.find(bob) is None  # until the next refresh
    await world.refresh()
    assert await world.find(bob) == bob


async def test_requests_share_the_next_look_up(world):
    several = [key_of(str(number)) for number in range(50)]
    assert await asyncio.gather(*map(world.find, several)) == [None] * 50
    assert sum(map(len, world.table.asked)) == 50
    assert len(world.table.asked) <= 2


async def test_a_grant_that_is_revoked_or_changed_is_noticed(world):
    ann = key_of()
    world.table.write(ann)
    await world.find(ann)
    await world.refresh()
    assert world.changes == 0
    world.table.write(ann)  # the same again
    await world.refresh()
    assert world.changes == 0
    world.table.write(ann._replace(rights=NO_RIGHTS))
    await world.refresh()
    assert (world.changes, (await world.find(ann)).rights) == (1, NO_RIGHTS)
    world.table.remove(ann)
    await world.refresh()
    assert (world.changes, await world.find(ann)) == (2, None)


async def test_a_session_comes_with_the_grants_that_it_depends_on(world):
    key = key_of()
    source = {SOURCE: {"kind": KEY, "digest": key.digest}}
    share = key_of("share", extra=source)._replace(kind="share")
    session = key_of("s", extra={SOURCE: {"kind": "share", "digest": share.digest}})._replace(kind=SESSION)
    for each in (key, share, session):
        world.table.write(each)
    await world.find(session)
    assert [world.known.find(each.kind, each.digest) for each in (key, share)] == [key, share]


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_change_that_comes_with_another_look_up_is_noticed(world, revoked):
    key = key_of()
    source = {SOURCE: {"kind": KEY, "digest": key.digest}}
    session = key_of("s", extra=source)._replace(kind=SESSION)
    world.table.write(key)
    await world.find(key)
    if revoked:
        world.table.remove(key)
    else:
        world.table.write(key._replace(rights=NO_RIGHTS))
    world.table.write(session)
    await world.find(session)
    assert world.changes == 1
    assert world.known.find(KEY, key.digest) == (None if revoked else key._replace(rights=NO_RIGHTS))
    await world.refresh()
    assert world.changes == 1


async def test_a_change_during_a_long_look_up_is_noticed(world):
    """It has read its version, and the former text; meanwhile others have asked for changes twice."""
    ann, bob = key_of(), key_of("bob")
    world.table.write(bob)
    world.table.write(ann)
    await world.find(bob)
    old = world.table.read_several([ann.file])
    began = world.now
    world.table.remove(ann)
    await world.refresh()
    loop, polled = asyncio.get_running_loop(), world.table.changed_since

    def during(version):
        loop.call_soon_threadsafe(world.known._keep, old, began)
        loop.call_soon_threadsafe(done.set)
        return polled(version)

    done = asyncio.Event()
    world.table.changed_since = during
    await world.refresh(0.1)
    await done.wait()
    world.table.changed_since = polled
    assert world.known.find(KEY, ann.digest) == ann
    await world.refresh(0.1)
    assert await world.find(ann) is None


async def test_a_damaged_row_grants_nothing(world):
    ann = key_of()
    world.table.write(ann, b"{}")
    with pytest.raises(GrantDamaged, match="access of the database"):
        await world.find(ann)


async def test_nothing_counts_while_the_database_is_away(world):
    ann = key_of()
    world.table.write(ann)
    await world.find(ann)
    world.table.away = True
    await world.refresh()
    assert world.known.find(KEY, ann.digest) == ann
    assert await world.refresh(MOST_AGE)
    assert world.changes == 1
    with pytest.raises(KeysMissing):
        await world.find(ann)
    asked = len(world.table.asked)
    with pytest.raises(KeysMissing):
        await world.find(ann)
    assert len(world.table.asked) == asked
    world.table.away = False
    world.now += PAUSE
    assert await world.find(ann) == ann


async def test_nothing_counts_after_a_stop_of_the_process(world):
    """It goes on with the requests that wait, before its timers."""
    ann = key_of()
    world.table.write(ann)
    await world.find(ann)
    assert world.known.is_fresh()
    world.table.remove(ann)
    world.now += MOST_AGE + REFRESH + 0.1
    assert not world.known.is_fresh()
    with pytest.raises(GrantPending):
        world.known.find(KEY, ann.digest)
    assert world.changes == 1
    assert await world.find(ann) is None


async def test_a_look_up_during_a_stop_counts_for_nothing(world):
    ann, bob, slow = key_of(), key_of("bob"), world.table.read_several
    world.table.write(ann)
    world.table.write(bob)

    def stopped(names):
        found = slow(names)
        world.now += seconds
        return found

    world.table.read_several = stopped
    seconds = WAIT + 1
    with pytest.raises(GrantPending):
        await world.find(ann)
    seconds = WAIT - 1  # of a slow database
    assert await world.find(ann) == ann
    assert await world.find(bob) == bob
    with pytest.raises(GrantPending):
        world.known.find(KEY, ann.digest)


async def test_an_idle_worker_asks_for_nothing(world):
    ann = key_of()
    world.table.write(ann)
    await world.find(ann)
    for _ in range(math.ceil(REREAD / 0.4)):
        await world.refresh()
    asked = len(world.table.asked)
    for _ in range(10):
        assert not await world.refresh()
    assert len(world.table.asked) == asked
    assert world.changes == 1
    assert await world.find(ann) == ann


async def test_a_worker_remembers_a_number_of_grants(world, monkeypatch):
    monkeypatch.setattr(shared_grants, "MOST", 2)
    several = [key_of(str(number)) for number in range(3)]
    for each in several:
        world.table.write(each)
        assert await world.find(each) == each
    assert world.changes == 1
    assert world.known.find(KEY, several[2].digest) == several[2]
    assert await asyncio.gather(*(world.find(key_of(f"guess {number}")) for number in range(9))) == [None] * 9
    assert [world.known.find(KEY, each.digest) for each in several[1:]] == several[1:]
    assert world.changes == 1


async def test_a_request_and_a_stream_with_a_key_of_the_database(tmp_path, world, monkeypatch):
    ann = key_of("streamsrv_x", rights=Right.READ | Right.SEARCH)
    settings = settings_of(data=str(tmp_path), auth="required")
    access = Access(settings, grants=Grants(world.table))
    head = Head("GET", "/v2/studies", "HTTP/1.1", {"authorization": "Bearer streamsrv_x"}, "192.0.2.1")

    async def admitted(head):
        with pytest.raises(GrantPending) as pending:
            access.admit(head, CALLER)
        await access.settled(pending.value)
        return access.admit(head, CALLER)

    with pytest.raises(Unauthorized):
        await admitted(head)
    world.table.write(ann)
    access.refresh()
    caller = await admitted(head)
    assert caller.principal.name == "key:streamsrv_x"
    still = access.still(head, caller)
    assert still()
    with monkeypatch.context() as patch:
        patch.setattr(access._known, "is_fresh", lambda: False)
        assert not access.holds(caller)
    assert access.holds(caller)
    access.grant_changed(KEY, ann.digest)
    assert not access.holds(caller)
    assert still()  # it is being looked up
    await access._known.fetched()
    assert still()
    world.table.remove(ann)
    access.grant_changed(KEY, ann.digest)
    still()
    while access._known._tasks:
        await asyncio.sleep(0.001)
    assert not still()
    access.close()


async def test_the_health_of_a_client_with_credentials_needs_no_database(tmp_path, world):
    access = Access(settings_of(data=str(tmp_path), auth="required"), grants=Grants(world.table))
    world.table.away = True
    head = Head("GET", "/health/live", "HTTP/1.1", {"authorization": "Bearer streamsrv_x"}, "192.0.2.1")
    with pytest.raises(GrantPending) as pending:
        access.admit(head, CALLER)
    await access.settled(pending.value)
    assert access.admit(head, CALLER) == CALLER
    access.close()
