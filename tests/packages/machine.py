"""A minimal Debian that runs under a systemd of its own, in a container without a network but its loopback."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess

from lib import debian, http_client, network
from lib.process import HANG_SECONDS, run, wait_until

# How long a start and a stop of the whole machine may take, on a busy machine.
MACHINE_SECONDS_MAX = 180
# Debian 12 has systemd 252, the oldest that the unit is for; another suite can be named.
SUITE = os.environ.get("SUITE", debian.SUITE)
PORT = 5000


def make_root(cache):
    """The folder of a Debian that has nothing but what is essential, and systemd. Made once; complete or absent."""
    root = pathlib.Path(cache) / f"debian-{SUITE}"
    if not root.exists():
        new = root.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        run("debootstrap", "--variant=minbase", "--include=systemd", SUITE, new, debian.mirror(), timeout=debian.ROOT_SECONDS_MAX)
        shutil.rmtree(new / "var/cache/apt")
        new.rename(root)
    return root


class Machine:
    """A copy of that Debian, which can be started and stopped."""

    def __init__(self, cache, folder):
        self.root = pathlib.Path(folder) / "root"
        run("cp", "--archive", "--reflink=auto", make_root(cache), self.root)
        self.container = self.leader = None

    def start(self):
        name = f"larder-{os.getpid()}"
        self.console = (self.root.parent / "console.log").open("ab")
        self.container = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
            + [f"--machine={name}", f"--directory={self.root}", "--console=pipe"],
            stdin=subprocess.DEVNULL,
            stdout=self.console,
            stderr=self.console,
        )
        self.leader = wait_until("the container's init", self._find_leader, MACHINE_SECONDS_MAX)
        wait_until("the container's boot", self._is_up, MACHINE_SECONDS_MAX)

    def stop(self):
        if self.container is None:
            return
        if self.container.poll() is None:
            self.run("systemctl", "poweroff", check=False)
        try:
            self.container.wait(MACHINE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.container.kill()
            self.container.wait()
            raise
        finally:
            self.container = self.leader = None
            self.console.close()

    def _find_leader(self):
        if self.container.poll() is not None:
            raise AssertionError(f"the container ended: {(self.root.parent / 'console.log').read_text()}")
        waiting = [self.container.pid]
        while waiting:
            process = waiting.pop()
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{process}/exe").readlink().name == "systemd":
                    return process
                children = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()
                waiting.extend(int(child) for child in children)
        return None

    def _is_up(self):
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state == "degraded":
            raise AssertionError(self.run("systemctl", "--failed", "--no-pager").stdout)
        return state == "running"

    def run(self, *command, **options):
        """Runs a command in the running machine."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return run(*enter, *command, env=environment, **options)

    def chroot(self, *command, **options):
        """Runs a command on the machine's files while it is stopped."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return run("chroot", self.root, *command, env=environment, **options)

    def show(self, unit, *names):
        """Properties of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).stdout.splitlines()
        found = dict(line.split("=", 1) for line in lines)
        return found[names[0]] if len(names) == 1 else [found[name] for name in names]

    def journal(self, unit="larder.service"):
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def drop_in(self, unit, text):
        """Changes a unit until the machine is stopped."""
        folder = self.root / f"run-{unit}"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(text)
        self.run("mkdir", "-p", f"/run/systemd/system/{unit}.d")
        self.run("cp", f"/{folder.name}/test.conf", f"/run/systemd/system/{unit}.d/test.conf")
        self.run("systemctl", "daemon-reload")

    def no_drop_in(self, unit):
        self.run("rm", "-r", f"/run/systemd/system/{unit}.d")
        self.run("systemctl", "daemon-reload")

    def network(self):
        """The machine's network, for sockets that this thread makes inside the block: they stay in it."""
        return network.inside(f"/proc/{self.leader}/ns/net")

    def request(self, method, path, timeout=HANG_SECONDS):
        """Asks Larder: status, headers, body."""
        with self.network():
            connected = socket.create_connection(("127.0.0.1", PORT), timeout)
        return http_client.request("127.0.0.1", PORT, method, path, connected=connected)

    def answers(self):
        with contextlib.suppress(OSError):
            return self.request("GET", "/v2/")[0] == 200
        return False
