"""Two nodes of one store that are killed under load: the world of tests/kill_world.py over PostgreSQL and a
bucket. Clients talk to both nodes, and each node must tell the same afterwards."""

import os
import signal
from unittest.mock import patch

from kill_world import KEYS, Load, World, children, is_worker, verb, waited
from live_server import free_port, start_server
from obstore import list as listed
from seaweed import ADMIN, BUCKET, variables
from small_client import Client


class ClusterWorld(World):
    """A node has one worker."""

    def __init__(self, folder, seed, name, database, object_store):
        super().__init__(folder, seed, database.url(name))
        self._name, self._database, self._object_store = name, database, object_store
        self._ports = [free_port() for _ in range(2)]
        self.origins = [f"http://127.0.0.1:{port}" for port in self._ports]
        self.nodes = [None, None]
        self._index |= {
            **variables(object_store.endpoint),
            "STREAMSRV_SEGMENTS": f"s3://{BUCKET}/{name}",
            "STREAMSRV_REMOVAL_GRACE": "1",
            "STREAMSRV_UPLOAD_LEASE": "20",
            "STREAMSRV_ON_DUPLICATE": "replace",
            "STREAMSRV_LOG_LEVEL": "warning",
            "STREAMSRV_FAILPOINT_FILE": str(self._point),
        }

    def serve(self, replacing=True):
        for number, node in enumerate(self.nodes):
            if node is None:
                self.nodes[number] = start_server(
                    self._folder / "ab"[number],
                    port=self._ports[number],
                    workers=1,
                    variables=self._index,
                )
        waited(lambda: len(self.ready_workers()) == 2, "a worker in each node")

    def ready_workers(self):
        found = [each for node in self.nodes for each in children(node.process.pid) if is_worker(each)]
        return found if all(node.is_ready() for node in self.nodes) else []

    def kill_node(self):
        """Its supervisor and its worker. The other one goes on."""
        number = self.choice.randrange(2)
        supervisor = self.nodes[number].process
        with Load(self) as load:
            waited(lambda: load.check() or load.acknowledged >= 2, "some stores")
            for victim in (supervisor.pid, *children(supervisor.pid)):
                os.kill(victim, signal.SIGKILL)
            supervisor.wait()
            self.nodes[number] = None
            self._go_on(load)
        self.serve()
        self.verify(load)

    def kill_compaction(self, passage):
        """It is begun again while there is nothing to compact."""

        def died():
            process = self.compaction({"STREAMSRV_FAILPOINT": f"in-compaction@{passage}"})
            assert process.wait() in (0, -signal.SIGKILL)
            return process.returncode != 0

        with Load(self) as load:
            waited(lambda: load.check() or died(), "the death of a compaction")
            self._go_on(load)
        self.counts["in-compaction"] += 1
        self.verify(load)

    def stop(self):
        for number, node in enumerate(self.nodes):
            if node is not None:
                assert node.end() == 0
            self.nodes[number] = None

    # What must hold

    def must_be_well(self):
        """Each node has the same instances with the same bytes, and no others."""
        for origin in self.origins:
            client = Client(origin)
            for key in KEYS:
                assert self.version_of(key, client.read(key)) == self.state[key]
            assert client.keys() == {key for key in KEYS if self.state[key] is not None}
            client.close()

    def must_be_swept(self):
        """After all graces and leases the bucket has the objects that the index names, and no others."""
        named = "SELECT count(*) FROM objects WHERE state NOT IN ('complete', 'swept')"
        # A node that was killed while it removed objects has claimed them for some minutes.
        self.sql("UPDATE objects SET until = now() WHERE state IN ('intent', 'condemned', 'removing')")
        waited(lambda: self.sql(named) == "0", "the sweepers")
        complete = set(self.sql("SELECT key FROM objects WHERE state = 'complete'").split())
        bucket = self._object_store.store(ADMIN, BUCKET)
        prefix = f"{self._name}/segments/"
        there = {each["path"] for page in listed(bucket, prefix) for each in page}
        assert there == {f"{self._name}/{key}" for key in complete}
        with patch.dict(os.environ, self._index):
            assert verb("check", "--data", str(self.data)) == (0, "all is well\n")

    def lose_the_database(self):
        """It is made again from the bucket. Then both nodes have the same instances as before."""
        self.sql("UPDATE tombstones SET made = now() - interval '1 minute'")
        left = "SELECT count(*) FROM tombstones WHERE key IS NULL"
        waited(lambda: self.sql(left) == "0", "tombstones of dead nodes")
        self.stop()
        self._database.sql(f"DROP SCHEMA {self._name} CASCADE; CREATE SCHEMA {self._name}")
        with patch.dict(os.environ, self._index):
            code, said = verb("reindex", "--data", str(self.data))
            assert (code, said.splitlines()[-1]) == (0, "all is well"), said
            assert verb("check", "--data", str(self.data)) == (0, "all is well\n")
        self.serve()
        self.must_be_well()

    def sql(self, statement):
        return self._database.sql(f"SET search_path = {self._name}; {statement}")
