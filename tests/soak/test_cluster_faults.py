"""Three nodes behind HAProxy, over PostgreSQL under Patroni and SeaweedFS on three machines, which fail at
random while clients store, delete and read.

Nothing acknowledged is lost, nothing deleted returns, and on each node a reader of changes gets each change
once and in order. SOAK=N: four times N rounds; SEED=N repeats the choice of faults."""

import itertools
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from change_readers import Follow, Poll, told_once
from journal import THERE, Clients, Journal
from kill_world import verb, waited
from namespaces import Network
from obstore import list as listed
from services import Databases, Node, Seaweed, balancer, etcd
from small_client import Client

ROUNDS = 4 * int(os.environ.get("SOAK", "3"))
NODES, STORAGE = (tuple(f"{kind}{n}" for n in (1, 2, 3)) for kind in ("node", "storage"))
DATABASES = ("base1", "base2")
PATIENCE = 90  # seconds until all is well after a fault
LONGEST = 30.0  # seconds without a store after the death of a primary
ENOUGH = 20  # stores after a fault
SHORT, LONG = 3, 25  # seconds: a lease is 20

# This table records each change of the state of an object. If the bucket still has an object at the end, the
# test fails, and prints its rows.
HISTORY = """
CREATE TABLE history (at timestamptz DEFAULT clock_timestamp(), key text, was text, state text, node text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO history (key, was, state, node)
    VALUES (coalesce(NEW.key, OLD.key), OLD.state, NEW.state, coalesce(NEW.node, OLD.node));
  RETURN NULL;
END $$;
CREATE TRIGGER noted AFTER INSERT OR DELETE OR UPDATE OF state ON objects
  FOR EACH ROW EXECUTE FUNCTION note();
"""


class Site:
    """All machines, the clients, and a reader of changes on each node."""

    def __init__(self, network, folder, seed):
        self.network, self.choice = network, random.Random(seed)
        address = etcd(network["etcd"], folder / "etcd")
        self.databases = Databases([network[each] for each in DATABASES], folder, address)
        gateways = [network[each] for each in STORAGE]
        machines = [network[each] for each in NODES]
        self.origin = balancer(network["balancer"], machines, gateways, folder / "balancer")
        self.seaweed = Seaweed(gateways, folder / "seaweed", address, network["balancer"])
        self.seaweed.make_bucket()
        self.nodes = [Node(each, folder / each.name, self.databases, self.seaweed) for each in machines]
        waited(self.is_well, "the first nodes", PATIENCE)
        self.databases.sql(HISTORY)
        self.journal = Journal()
        sources = [network["clients"].add_address(100 + number) for number in range(5)]
        self.clients = Clients(self.journal, self.origin, sources, seed)
        self.polls = [Poll(node) for node in self.nodes]
        self.follows = [Follow(node) for node in self.nodes]
        for follow in self.follows:
            follow.start()
        self.pauses = defaultdict(list)  # fault -> longest seconds without an acknowledged store

    def is_well(self):
        return (
            all(node.is_ready() for node in self.nodes) and self.databases.are_two() and answered(self.origin)
        )

    # Faults: each ends when the cause is gone

    def kill_a_node(self):
        node = self.choice.choice(self.nodes)
        node.machine.power_off()
        time.sleep(self.choice.uniform(0, SHORT))
        node.start()

    def stop_a_node(self):
        """Shorter or longer than its leases."""
        machine = self.choice.choice(self.nodes).machine
        machine.signal(signal.SIGSTOP)
        time.sleep(self.choice.choice((SHORT, LONG)))
        machine.signal(signal.SIGCONT)

    def cut_off_a_node(self):
        machine = self.choice.choice(self.nodes).machine
        machine.unplug()
        time.sleep(self.choice.choice((SHORT, LONG)))
        machine.plug_in()

    def hide_the_database_from_a_node(self):
        machine, primary = self.choice.choice(self.nodes).machine, self.databases.primary().machine
        machine.lose(primary)
        time.sleep(self.choice.uniform(SHORT, 3 * SHORT))
        machine.find(primary)

    def kill_a_gateway(self):
        name = self.choice.choice(STORAGE)
        self.seaweed.gateways[name].kill()
        self.seaweed.gateways[name].wait()
        time.sleep(SHORT)
        self.seaweed.start_gateway(self.network[name])

    def stop_a_gateway(self):
        """Its sockets stay open."""
        process = self.seaweed.gateways[self.choice.choice(STORAGE)]
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.choice.uniform(SHORT, 3 * SHORT))
        process.send_signal(signal.SIGCONT)

    def cut_off_a_storage_server(self):
        machine = self.network[self.choice.choice(STORAGE)]
        machine.unplug()
        time.sleep(self.choice.uniform(SHORT, 3 * SHORT))
        machine.plug_in()

    def power_off_the_primary(self):
        primary = self.databases.primary()
        primary.machine.power_off()
        self._await_primary(instead=primary)
        primary.start()

    def cut_off_the_primary(self):
        primary = self.databases.primary()
        primary.machine.unplug()
        self._await_primary(instead=primary)
        primary.machine.plug_in()

    def _await_primary(self, instead):
        other = next(each for each in self.databases.both if each is not instead)
        waited(other.is_primary, "a new primary", PATIENCE)

    def crash_the_database(self):
        self.databases.primary().crash()

    # What must hold

    def round(self, fault):
        self.clients.go_on()
        self.await_stores()
        begun = time.monotonic()
        getattr(self, fault)()
        self.clients.check()
        waited(self.is_well, f"the end of {fault}", PATIENCE)
        self.await_stores()
        self.clients.pause()
        moments = [begun, *(each for each in self.journal.moments if each > begun)]
        self.pauses[fault].append(max(after - before for before, after in itertools.pairwise(moments)))
        for node in self.nodes:
            self.must_have(node, f"1.2.{self.clients.study}")

    def await_stores(self):
        before = len(self.journal.moments)
        waited(
            lambda: self.clients.check() or len(self.journal.moments) >= before + ENOUGH, "stores", PATIENCE
        )

    def must_have(self, node, study):
        """What is found by searching is what was acknowledged."""
        with closing(Client(node.origin)) as client:
            found = {
                (study, each["0020000E"]["Value"][0], each["00080018"]["Value"][0])
                for each in client.search(f"/studies/{study}/instances?limit=5000")
            }
        there, doubts = (
            {key for key in self.journal.keys(*kinds) if key[0] == study} for kinds in (THERE, ("doubt",))
        )
        assert there <= found, (node.origin, "lost", there - found)
        assert found <= there | doubts, (node.origin, "returned", found - there)

    def compare(self):
        """Every instance through every node, byte for byte."""
        for node in self.nodes:
            with closing(Client(node.origin)) as client:
                for key in self.journal.keys(*THERE):
                    assert client.read(key) == self.journal.body(key), (node.origin, key)
                for key in self.journal.keys("deleted"):
                    assert client.read(key) is None, (node.origin, key, "returned")
                for key in self.journal.keys("doubt"):
                    assert client.read(key) in (None, self.journal.body(key)), (node.origin, key)

    def changes(self):
        """The number of changes that each reader of each node got."""
        (told, *others) = [told_once(read_to_end(poll)) for poll in self.polls]
        for follow in self.follows:
            waited(
                lambda follow=follow: follow.changes and follow.changes[-1]["sequence"] >= len(told), "events"
            )
            others.append(told_once(follow.changes))
            follow.ending.set()
            follow.join()
        assert all(each == told for each in others)
        assert len(set(told)) == len(told)
        deleted = {("delete", key[2]) for key in self.journal.keys("deleted")}
        created = {("create", key[2]) for key in self.journal.keys("deleted", *THERE)}
        assert deleted | created <= set(told)
        return len(told)

    def must_be_swept(self):
        """The bucket has the objects that the database names, and no others. A late request may have brought
        an object back that was removed, so it is removed again a day later: now."""
        sql = self.databases.sql
        sql("UPDATE objects SET until = now() WHERE state IN ('intent', 'condemned', 'removing')")
        named = "SELECT count(*) FROM objects WHERE state NOT IN ('complete', 'swept')"
        waited(lambda: sql(named) == "0", "the sweepers", PATIENCE)
        again = "UPDATE objects SET until = now() WHERE state = 'swept'; "
        named = "SELECT count(*) FROM objects WHERE state <> 'complete'"
        waited(lambda: sql(again + named) == "0", "the sweepers, a day later", PATIENCE)
        complete = {f"soak/{key}" for key in sql("SELECT key FROM objects WHERE state = 'complete'").split()}
        there = {
            each["path"]: each["last_modified"]
            for page in listed(self.seaweed.store, "soak/segments/")
            for each in page
        }
        left = [
            (key, str(there[key]), sql(f"SELECT * FROM history WHERE key = '{key.removeprefix('soak/')}'"))
            for key in there.keys() - complete
        ]
        assert not left, left
        assert there.keys() == complete

    def figures(self):
        refused = defaultdict(int)
        for _, status in self.journal.refusals:
            refused[status] += 1
        longest = {
            name: f"{len(found)} times, {statistics.median(found):.1f} s, at most {max(found):.1f} s"
            for name, found in self.pauses.items()
        }
        return {**self.journal.counts(), "refused": refused, "without a store": longest}


FAULTS = [
    name for name in vars(Site) if name.split("_")[0] in ("kill", "stop", "cut", "hide", "power", "crash")
]


def answered(origin):
    with closing(Client(origin)) as client:
        try:
            return client.ask("GET", "/studies?limit=1").status in (200, 204)
        except OSError:
            return False


def read_to_end(poll):
    while poll.read():
        time.sleep(0.01)
    poll.close()
    return poll.changes


@pytest.fixture
def folder():
    """In which PostgreSQL may be as its own user."""
    folder = Path(tempfile.mkdtemp(prefix="streamsrv-soak-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def test_a_cluster_whose_parts_fail(folder, monkeypatch):
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
    print("seed", seed)
    with Network(["etcd", "balancer", *DATABASES, *STORAGE, *NODES]) as network:
        site = Site(network, folder, seed)
        faults = random.Random(seed)
        for number in range(ROUNDS):
            if number % len(FAULTS) == 0:
                order = faults.sample(FAULTS, len(FAULTS))
            site.round(order[number % len(FAULTS)])
        print("changes", site.changes())
        site.clients.end()
        print(json.dumps(site.figures(), indent=1))
        site.compare()
        site.must_be_swept()
        for name, value in site.nodes[0].variables.items():
            monkeypatch.setenv(name, value)
        assert verb("check", "--data", str(folder / "verbs")) == (0, "all is well\n")
        for fault in ("power_off_the_primary", "cut_off_the_primary"):
            assert max(site.pauses[fault], default=0) <= LONGEST
