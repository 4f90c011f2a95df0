"""Programs: run to their end, or started in the background, watched and stopped."""

import os
import pathlib
import signal
import subprocess
import time

from lib import network

# Generous: the machine may be busy. What needs this long has hung.
HANG_SECONDS = 120
# The same for a program that may have to download or unpack a system.
RUN_SECONDS_MAX = 600
STOP_SECONDS_MAX = 20


def run(*command, check=True, timeout=RUN_SECONDS_MAX, **options):
    """Runs a program to its end; a failure shows what it printed."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def wait_until(what, done, seconds=HANG_SECONDS):
    """Polls until `done()` is true, and returns what it returned; the failure names what never happened."""
    deadline = time.monotonic() + seconds
    while not (result := done()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.02)
    return result


class Process:
    """A server in a folder of its own, with its output in a file. It is ready when it listens on its ports.

    `prefix` is put before its command, such as to enter a network namespace.
    """

    address = "127.0.0.1"
    ports = ()

    def __init__(self, name, command, folder, prefix=(), environment=None, **options):
        self.name, self.folder = name, pathlib.Path(folder)
        self.command = [str(part) for part in (*prefix, *command)]
        self.environment, self.options = {**os.environ, **(environment or {})}, options
        self.log_path = self.folder / f"{name}.log"
        self.child = None
        self.start()

    def start(self):
        """Starts it, for the first time or once more, and waits until it is ready."""
        with self.log_path.open("ab") as log:
            self.child = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.folder, env=self.environment, **self.options
            )
        for port in self.ports:
            wait_until(f"{self.name} on port {port}", lambda port=port: self._listens(port))

    def _listens(self, port):
        if self.child.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.child.returncode}:\n{self.log()}")
        return network.listens(self.address, port)

    def log(self):
        """What it has printed so far."""
        return self.log_path.read_text(errors="replace")

    def send(self, number):
        self.child.send_signal(number)

    def stop(self, number=signal.SIGTERM):
        """Ends it, unless it has ended. Its exit status."""
        if self.child and self.child.poll() is None:
            # A stopped process would hear nothing else.
            self.send(signal.SIGCONT)
            self.send(number)
            try:
                self.child.wait(timeout=STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
                self.child.wait()
        return self.child.returncode if self.child else None

    def kill(self):
        """Ends it at once."""
        self.child.kill()
