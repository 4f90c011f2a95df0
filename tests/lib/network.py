"""Ports, and network namespaces that new sockets of this process can be made in."""

import contextlib
import ctypes
import os
import socket

CLONE_NEWNET = 0x40000000


def free_port():
    """A port of the loopback that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listens(address, port):
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def inside(namespace):
    """Enters the network namespace of a file. Sockets that this thread makes in the block stay in it."""
    with open("/proc/thread-self/ns/net") as home, open(namespace) as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor):
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
