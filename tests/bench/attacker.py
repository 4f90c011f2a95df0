"""Clients that mean no good, in a process of their own: `attacker.py KIND HOST PORT COUNT PATH...`, until it is ended.

Each kind has addresses of its own in 127.0.0.0/8, since Larder shares out by client address.
"""

import itertools
import secrets
import select
import socket
import sys
import threading
import time

HOST, PORT = sys.argv[2], int(sys.argv[3])
COUNT, PATHS = int(sys.argv[4]), sys.argv[5:]


def connect(source, receive_buffer=None):
    one = socket.socket()
    if receive_buffer:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.settimeout(10)
    one.bind((source, 0))
    one.connect((HOST, PORT))
    return one


def asking(method, path):
    return f"{method} {path} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n\r\n".encode()


def hold(begin, tend=None, pause=0.2):
    """Keeps COUNT connections, each begun by `begin`; those that were closed begin again."""
    held = []
    while True:
        while len(held) < COUNT:
            try:
                held.append(begin())
            except OSError:
                break
        time.sleep(pause)
        ready, _, _ = select_all(held)
        for one in ready:
            try:
                if not one.recv(1 << 16, socket.MSG_DONTWAIT):
                    raise ConnectionError
            except BlockingIOError:
                pass
            except OSError:
                held.remove(one)
                one.close()
        for one in held if tend else []:
            try:
                tend(one)
            except OSError:
                pass


def select_all(held):
    poll = select.epoll()
    by_number = {one.fileno(): one for one in held}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    ready = [by_number[number] for number, _ in poll.poll(0)]
    poll.close()
    return ready, [], []


def sent(source, text, **options):
    one = connect(source, **options)
    one.sendall(text)
    return one


def drip():
    """Asks for blobs and manifests of the registry that drips."""
    kinds = itertools.cycle(["blobs", "manifests"])
    hold(lambda: sent("127.0.0.2", asking("GET", f"/v2/x{secrets.randbelow(99)}/{next(kinds)}/sha256:{secrets.token_hex(32)}?ns=evil.test")))


def flood():
    """Asks for tags that are not there, and for blobs that are, and hangs up when they begin."""

    def one_after_the_other():
        while True:
            try:
                sent("127.0.0.3", asking("HEAD", f"/v2/lab/junk/manifests/{secrets.token_hex(8)}?ns=docker.io")).recv(4096)
                one = sent("127.0.0.3", asking("GET", secrets.choice(PATHS)))
                one.recv(4096)
                one.close()
            except OSError:
                time.sleep(0.01)

    for _ in range(COUNT):
        threading.Thread(target=one_after_the_other, daemon=True).start()
    threading.Event().wait()


def connections():
    """Holds connections on which no request comes to its end."""
    hold(lambda: sent("127.0.0.4", b"GET /v2/ HTTP/1.1\r\nHost: "))


def slowloris():
    """The same, a byte of a header now and then."""
    hold(lambda: sent("127.0.0.5", b"GET /v2/ HTTP/1.1\r\nHost: "), lambda one: one.send(b"x"), 2)


def readers():
    """Takes next to nothing of big blobs."""
    paths = itertools.cycle(PATHS)

    def begin():
        return sent("127.0.0.6", asking("GET", next(paths)), receive_buffer=4096)

    held = [begin() for _ in range(COUNT)]
    while True:
        time.sleep(1)
        for one in held:
            try:
                one.recv(256, socket.MSG_DONTWAIT)
            except OSError:
                pass


def crowd():
    """COUNT clients at once, again and again, each with an address of its own."""
    while True:
        poll, waiting = select.epoll(), {}
        for number in range(COUNT):
            try:
                one = sent(f"127.0.{1 + number // 250}.{1 + number % 250}", asking("GET", PATHS[0]))
            except OSError:
                continue
            one.setblocking(False)
            poll.register(one, select.EPOLLIN)
            waiting[one.fileno()] = one
        while waiting:
            for number, _ in poll.poll(10) or [(next(iter(waiting)), 0)]:
                try:
                    if waiting[number].recv(1 << 20, socket.MSG_TRUNC):
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                poll.unregister(number)
                waiting.pop(number).close()
        poll.close()


{"drip": drip, "flood": flood, "connections": connections, "slowloris": slowloris, "readers": readers, "crowd": crowd}[sys.argv[1]]()
