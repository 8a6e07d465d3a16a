"""What a cluster stands on, each on a machine of its own: PostgreSQL under Patroni with etcd, SeaweedFS,
HAProxy and nodes."""

import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request

import yaml
from database_server import programs
from kill_world import waited
from live_server import ROOT, environment, executable
from namespaces import NOBODY, SUBNET
from obstore import put
from obstore.exceptions import BaseError
from seaweed import ADMIN, BUCKET, identities, program, store_of, variables

PATRONI, ETCD = "patroni", "etcd"
DATABASE_PORT, PATRONI_PORT, ETCD_PORT, GATEWAY_PORT, NODE_PORT = 5432, 8008, 2379, 8333, 8943
MASTER_PORT, VOLUME_PORT, FILER_PORT = 9333, 8080, 8888
# The primary is given up this many seconds after its last word. Patroni allows no less.
TTL, LOOP_WAIT, RETRY_TIMEOUT = 20, 5, 5
START = 300  # seconds: three masters have to elect one, on a machine that may be busy


def answer(url, timeout=2):
    """Status and body; (0, b"") if there is none."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def etcd(machine, folder):
    folder.mkdir(parents=True)
    here = f"http://{machine.address}"
    flags = [f"--listen-client-urls={here}:{ETCD_PORT}", f"--advertise-client-urls={here}:{ETCD_PORT}"]
    flags += [f"--listen-peer-urls={here}:2380", f"--initial-advertise-peer-urls={here}:2380"]
    flags += [f"--initial-cluster=default={here}:2380", f"--data-dir={folder / 'data'}"]
    machine.start([ETCD, *flags, "--unsafe-no-fsync"], folder / "log")
    waited(lambda: answer(f"{here}:{ETCD_PORT}/health")[0] == 200, "etcd")
    return f"{machine.address}:{ETCD_PORT}"


class Database:
    """One of the servers of PostgreSQL, with its Patroni."""

    def __init__(self, machine, folder, etcd_address):
        self.machine, self._folder = machine, folder
        folder.mkdir(parents=True)
        shutil.chown(folder, "nobody", "nogroup")
        self._api = f"http://{machine.address}:{PATRONI_PORT}"
        self._file = folder / "patroni.yaml"
        self._file.write_text(yaml.safe_dump(self._settings(etcd_address)))
        self.start()

    def _settings(self, etcd_address):
        here, data = self.machine.address, self._folder / "data"
        shared = {
            "ttl": TTL,
            "loop_wait": LOOP_WAIT,
            "retry_timeout": RETRY_TIMEOUT,
            "synchronous_mode": True,
            "postgresql": {
                "use_pg_rewind": True,
                "parameters": {"max_connections": 200, "shared_buffers": "64MB", "wal_keep_size": "256MB"},
            },
        }
        everyone = f"{SUBNET}.0/24 trust"
        return {
            "scope": "archive",
            "name": self.machine.name,
            "restapi": dict.fromkeys(("listen", "connect_address"), f"{here}:{PATRONI_PORT}"),
            "etcd3": {"hosts": etcd_address},
            "bootstrap": {"dcs": shared, "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"]},
            "postgresql": {
                **dict.fromkeys(("listen", "connect_address"), f"{here}:{DATABASE_PORT}"),
                "data_dir": str(data),
                "bin_dir": str(programs()),
                "pgpass": str(self._folder / "pgpass"),
                "pg_hba": [
                    "local all all trust",
                    f"host all all {everyone}",
                    f"host replication all {everyone}",
                ],
                "authentication": {
                    "superuser": {"username": "streamsrv"},
                    "replication": {"username": "replicator"},
                },
                "remove_data_directory_on_diverged_timelines": True,
                "parameters": {"unix_socket_directories": str(self._folder)},
            },
        }

    def start(self):
        self.machine.start([*NOBODY, PATRONI, self._file], self._folder / "log", cwd=self._folder)

    def is_primary(self):
        return answer(f"{self._api}/primary")[0] == 200

    def is_synchronous(self):
        return answer(f"{self._api}/synchronous")[0] == 200

    def crash(self):
        """PostgreSQL alone, without its Patroni."""
        pid = int((self._folder / "data/postmaster.pid").read_text().split()[0])
        os.kill(pid, 9)


class Databases:
    """Patroni's primary and its synchronous standby."""

    def __init__(self, machines, folder, etcd_address):
        self.both = [Database(each, folder / each.name, etcd_address) for each in machines]
        waited(self.are_two, "primary and standby", START)
        hosts = ",".join(each.address for each in machines)
        self.url = f"postgresql://streamsrv@{hosts}/postgres?target_session_attrs=read-write"

    def are_two(self):
        return any(each.is_primary() for each in self.both) and any(
            each.is_synchronous() for each in self.both
        )

    def primary(self):
        return next(each for each in self.both if each.is_primary())

    def sql(self, statement):
        """What psql prints."""
        client = [str(programs() / "psql"), self.url, "-Atqc", statement]
        return subprocess.run(client, check=True, capture_output=True, text=True).stdout.strip()


class Seaweed:
    """A master, a volume server, a filer and an S3 gateway on each of three machines. The filers share a
    database, so each of them knows at once what another one wrote.

    Processes of one machine also talk by Unix sockets in /tmp, which have the numbers of their ports. The
    machines share this folder, so each has ports of its own."""

    def __init__(self, machines, folder, etcd_address, balancer):
        self._machines, self._folder = machines, folder
        self._config = folder / "s3.json"
        folder.mkdir(parents=True)
        self._config.write_text(json.dumps(identities()))
        peers = ",".join(place_of(each, MASTER_PORT) for each in machines)
        for each in machines:
            place = folder / each.name
            (place / "data").mkdir(parents=True)
            (place / "filer.toml").write_text(
                f'[etcd]\nenabled = true\nservers = "{etcd_address}"\nkey_prefix = "filer."\ntimeout = "3s"\n'
            )
            flags = [f"-ip={each.address}", "-ip.bind=0.0.0.0", f"-dir={place / 'data'}", "-filer"]
            flags += [f"-master.peers={peers}", "-master.defaultReplication=001", "-master.telemetry=false"]
            ports = {"master": MASTER_PORT, "volume": VOLUME_PORT, "filer": FILER_PORT}
            flags += [f"-{name}.port={first + each.number}" for name, first in ports.items()]
            flags += ["-volume.max=100", "-master.volumeSizeLimitMB=64", "-master.raftHashicorp"]
            self._start(each, "server", flags)
        self.gateways = {}
        for each in machines:
            waited(lambda each=each: answer(f"http://{place_of(each, FILER_PORT)}/")[0], "a filer", START)
            self.start_gateway(each)
        for each in machines:
            waited(lambda each=each: answer(gateway(each))[0], "a gateway", START)
        self.endpoint = f"http://{balancer.address}:{GATEWAY_PORT}"

    def _start(self, machine, verb, flags):
        limits = {"GOMEMLIMIT": "300MiB", "GOMAXPROCS": "2"}
        place = self._folder / machine.name
        command = [program(), verb, *flags]
        return machine.start(command, place / f"{verb}.log", cwd=place, env=os.environ | limits)

    def start_gateway(self, machine):
        filer = place_of(machine, FILER_PORT)
        flags = [f"-port={GATEWAY_PORT + machine.number}", f"-filer={filer}", f"-config={self._config}"]
        flags += ["-port.iceberg=0", "-port.lance=0", "-ip.bind=0.0.0.0"]
        self.gateways[machine.name] = self._start(machine, "s3", flags)

    def make_bucket(self):
        """With all that it takes to keep an object twice."""
        self.store = store_of(self.endpoint, ADMIN, BUCKET)
        waited(self._takes_objects, "the bucket", START)

    def _takes_objects(self):
        with contextlib.suppress(BaseError, OSError):
            put(self.store, "made", bytes(100_000))
            return True
        return False


def place_of(machine, first_port):
    return f"{machine.address}:{first_port + machine.number}"


def gateway(machine):
    return f"http://{place_of(machine, GATEWAY_PORT)}/healthz"


GATEWAYS = """
frontend bucket
    bind :PORT
    default_backend gateways

backend gateways
    timeout connect 1s
    timeout check 1s
    balance roundrobin
    option httpchk GET /healthz
    http-reuse safe
SERVERS
"""


def balancer(machine, nodes, gateways, folder):
    """conf/haproxy-nodes.cfg with these nodes, and in front of the gateways."""
    folder.mkdir(parents=True)
    text = (ROOT / "conf/haproxy-nodes.cfg").read_text()
    lines = [line for line in text.splitlines() if not line.strip().startswith("server ")]
    lines += [f"    server {each.name} {each.address}:{NODE_PORT}" for each in nodes]
    servers = [f"    server {each.name} {place_of(each, GATEWAY_PORT)}" for each in gateways]
    lines += GATEWAYS.replace("PORT", str(GATEWAY_PORT)).replace("SERVERS", "\n".join(servers)).splitlines()
    (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
    machine.start(["haproxy", "-db", "-f", folder / "haproxy.cfg"], folder / "log")
    return f"http://{machine.address}:{NODE_PORT}"


class Node:
    """A machine with a streamsrv."""

    def __init__(self, machine, folder, databases, seaweed):
        self.machine, self._folder = machine, folder
        self.origin = f"http://{machine.address}:{NODE_PORT}"
        self.url = f"{self.origin}/v2"
        self.variables = variables(seaweed.endpoint) | {
            "STREAMSRV_INDEX": databases.url,
            "STREAMSRV_SEGMENTS": f"s3://{BUCKET}/soak",
            "STREAMSRV_ON_DUPLICATE": "accept-identical",
            "STREAMSRV_REMOVAL_GRACE": "20",
            "STREAMSRV_UPLOAD_LEASE": "20",
            "STREAMSRV_CACHE_SIZE": str(64 << 20),
            "STREAMSRV_TRUSTED_PROXIES": f"{SUBNET}.0/24",
            "STREAMSRV_ALLOWED_HOSTS": "*",
            "STREAMSRV_ALLOW_REMOTE_WITHOUT_AUTHENTICATION": "true",
        }
        folder.mkdir(parents=True)
        self.start()

    def start(self):
        place = ["--data", self._folder / "data", "--host", self.machine.address, "--port", NODE_PORT]
        self.machine.start(
            [*executable(), "serve", *place, "--workers", "2"],
            self._folder / "log",
            env=environment() | self.variables,
            cwd=self._folder,
        )

    def is_ready(self):
        return answer(f"{self.origin}/health/ready")[0] == 200
