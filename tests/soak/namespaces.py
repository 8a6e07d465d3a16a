"""Machines of a test: network namespaces that share a bridge. Each has an address, and nothing else reaches
it. Needs root and iproute2."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time

from kill_world import is_alive

CLONE_NEWNET = 0x40000000
SUBNET = "198.18.0"  # RFC 2544: for tests, and routed nowhere
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machine:
    """`address` is reached by the other machines, as long as the cable is plugged in."""

    def __init__(self, network, name, number):
        self.name, self.number = name, number
        self.address = f"{SUBNET}.{number}"
        self._switch = network.switch
        self._space = f"{network.prefix}-{name}"
        self._plug = f"p{number}"
        self._processes = []
        ip("netns", "add", self._space)
        ip(
            "-n",
            self._switch,
            "link",
            "add",
            self._plug,
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            self._space,
        )
        ip("-n", self._switch, "link", "set", self._plug, "master", "bridge", "up")
        ip("-n", self._space, "link", "set", "lo", "up")
        ip("-n", self._space, "link", "set", "eth0", "up")
        self.add_address(number)

    def add_address(self, number):
        ip("-n", self._space, "address", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
        return f"{SUBNET}.{number}"

    def unplug(self):
        """Packets in both directions are lost, and no side is told."""
        ip("-n", self._switch, "link", "set", self._plug, "down")

    def plug_in(self):
        ip("-n", self._switch, "link", "set", self._plug, "up")

    def lose(self, other):
        """Packets to the other machine are lost."""
        ip("-n", self._space, "route", "add", "blackhole", f"{other.address}/32")

    def find(self, other):
        ip("-n", self._space, "route", "del", "blackhole", f"{other.address}/32")

    def start(self, command, log, **options):
        """A process of the machine, which ends with it at the latest."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._space, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **options,
            )
        self._processes.append(process)
        return process

    def enter(self):
        """From now on the calling thread is on this machine, and the threads and processes that it starts."""
        with open(f"/run/netns/{self._space}") as space:
            enter(space.fileno())

    def signal(self, number):
        """To all of its processes."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def power_off(self):
        while self._pids():
            self.signal(signal.SIGKILL)
            time.sleep(0.01)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def _pids(self):
        done = subprocess.run(["ip", "netns", "pids", self._space], check=True, capture_output=True)
        return [int(each) for each in done.stdout.split() if is_alive(int(each))]

    def end(self):
        self.power_off()
        ip("netns", "del", self._space)


def enter(space):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(space, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """While the context lasts, the calling thread is on the machine `clients`."""

    def __init__(self, names):
        self.prefix = f"soak{os.getpid()}"
        self.switch = f"{self.prefix}-switch"
        self._names = names
        self.machines = {}

    def __getitem__(self, name):
        return self.machines[name]

    def __enter__(self):
        self._home = os.open(f"/proc/self/task/{os.getpid()}/ns/net", os.O_RDONLY)
        try:
            ip("netns", "add", self.switch)
            ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", self.switch, "link", "set", "bridge", "up")
            for number, name in enumerate((*self._names, "clients"), 11):
                self.machines[name] = Machine(self, name, number)
            self["clients"].enter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        enter(self._home)
        os.close(self._home)
        for machine in self.machines.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                machine.end()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.switch)
