"""Clients. Those of big blobs throw bytes away in the kernel, so that what is measured is the server and not they."""

import concurrent.futures
import hashlib
import http.client
import os
import re
import select
import socket
import ssl
import time

from lib.oci import MANIFEST
from lib.process import HANG_SECONDS, run

AWAY = bytearray(1 << 20)


class Pull:
    """One GET on a connection of its own, whose body is counted and not kept."""

    def __init__(self, server, path, tls=False, receive_buffer=None):
        raw = socket.socket()
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(HANG_SECONDS)
        raw.connect((server.address, server.tls_port if tls else server.port))
        self.socket, self.secure = raw, None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            # The same cipher for all; what is left on the socket after the header is read as it is.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            self.secure = context.wrap_socket(raw)
            self.socket = socket.socket(fileno=os.dup(self.secure.fileno()))
            self.socket.settimeout(HANG_SECONDS)
        self.path, self.status, self.length, self.got, self.head = path, None, None, 0, b""

    def ask(self):
        request = f"GET {self.path} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\nAccept: {MANIFEST}\r\n\r\n"
        (self.secure or self.socket).sendall(request.encode())

    def read_head(self):
        while b"\r\n\r\n" not in self.head:
            more = (self.secure or self.socket).recv(1024)
            if not more:
                self.status = 0
                return
            self.head += more
        text, body = self.head.split(b"\r\n\r\n", 1)
        # What TLS has decrypted with the header counts, too; the rest comes as it is.
        self.got = len(body) + (self.secure.pending() if self.secure else 0)
        self.status = int(text.split(b" ", 2)[1])
        self.length = int(re.search(rb"(?i)content-length: *(\d+)", text)[1])

    def step(self):
        """Takes what is there; whether it was the end."""
        try:
            if self.status is None:
                self.read_head()
            n = self.socket.recv_into(AWAY, len(AWAY), socket.MSG_TRUNC | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            self.status = 0
            return True
        self.got += n
        return n == 0

    def check(self):
        whole = self.got >= self.length if self.secure else self.got == self.length
        if self.status != 200 or not whole:
            raise AssertionError(f"{self.path}: {self.status}, {self.got} of {self.length} bytes")

    def close(self):
        self.socket.close()
        if self.secure:
            self.secure.close()


def pull_all(pulls, check=True):
    """Has all pulls run to their end; seconds from the first request to the last byte."""
    began = time.monotonic()
    poll = select.epoll()
    waiting = {}
    for pull in pulls:
        pull.ask()
        waiting[pull.socket.fileno()] = pull
        poll.register(pull.socket, select.EPOLLIN)
    last = time.monotonic()
    while waiting:
        ready = poll.poll(1)
        if ready:
            last = time.monotonic()
        elif time.monotonic() - last > HANG_SECONDS:
            raise AssertionError(f"{len(waiting)} pulls hang, the first at {next(iter(waiting.values())).got} bytes")
        for number, _ in ready:
            if waiting[number].step():
                poll.unregister(number)
                del waiting[number]
    took = time.monotonic() - began
    poll.close()
    for pull in pulls:
        if check:
            pull.check()
        pull.close()
    return took


def pull(server, path, clients, tls=False, times=1):
    """CPU seconds of the server, wall seconds, and bytes, for `clients` at a time that each pull `times`."""
    before, wall, got = server.cpu(), 0, 0
    for _ in range(times):
        pulls = [Pull(server, path, tls) for _ in range(clients)]
        wall += pull_all(pulls)
        got += sum(pull.length for pull in pulls)
    return server.cpu() - before, wall, got


def pull_image(server, image, check=False):
    """A whole pull as containerd makes it: manifests, then blobs, three at a time; seconds. With `check` all is hashed."""
    began = time.monotonic()
    for path in image.manifest_paths():
        get(server, path, check)
    with concurrent.futures.ThreadPoolExecutor(3) as three:
        for done in [three.submit(get, server, path, check) for path in image.blob_paths()]:
            done.result()
    return time.monotonic() - began


def get(server, path, check):
    """A GET on a connection of its own, to the last byte."""
    connection = http.client.HTTPConnection(server.address, server.port, timeout=HANG_SECONDS)
    connection.request("GET", path, headers={"Accept": MANIFEST})
    answer = connection.getresponse()
    hasher, size = hashlib.sha256(), 0
    while part := answer.read(1 << 18):
        size += len(part)
        if check:
            hasher.update(part)
    connection.close()
    if answer.status != 200 or size != int(answer.headers["Content-Length"]):
        raise AssertionError(f"{server.name} {path}: {answer.status}, {size} bytes")
    if check and "sha256:" in path and not path.endswith(hasher.hexdigest()):
        raise AssertionError(f"{server.name} {path}: the bytes are wrong")


def request_text(method, path):
    return f"{method} {path} HTTP/1.1\r\nHost: registry\r\nAccept: {MANIFEST}\r\n\r\n".encode()


def heads(server, path, clients, seconds):
    """HEAD over kept connections, each as soon as the one before is answered: answers a second, CPU µs an answer."""
    text = request_text("HEAD", path)
    poll = select.epoll()
    sockets = {}
    for _ in range(clients):
        one = socket.create_connection((server.address, server.port), timeout=HANG_SECONDS)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.sendall(text)
        answer = one.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200") or not answer.endswith(b"\r\n\r\n"):
            raise AssertionError(f"{server.name} HEAD {path}: {answer!r}")
        poll.register(one, select.EPOLLIN)
        sockets[one.fileno()] = (one.recv, one.send)
    before, began, count = server.cpu(), time.monotonic(), 0
    for _, send in sockets.values():
        send(text)
    end = began + seconds
    while time.monotonic() < end:
        for number, _ in poll.poll(5):
            receive, send = sockets[number]
            if not receive(4096).endswith(b"\r\n\r\n"):
                raise AssertionError(f"{server.name}: an answer came in parts")
            count += 1
            send(text)
    took, cpu = time.monotonic() - began, server.cpu() - before
    poll.close()
    return count / took, cpu / count * 1e6


def gets(server, path, clients, seconds):
    """The same with GET, by wrk."""
    before = server.cpu()
    url = f"http://{server.address}:{server.port}{path}"
    said = run("wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "-H", f"Accept: {MANIFEST}", url).stdout
    cpu = server.cpu() - before
    if "Non-2xx" in said or "Socket errors" in said:
        raise AssertionError(f"{server.name} GET {path}:\n{said}")
    count = int(re.search(r"(\d+) requests in", said)[1])
    return float(re.search(r"Requests/sec: +([\d.]+)", said)[1]), cpu / count * 1e6


def latencies(server, path, count=None, until=None, pause=0.0):
    """Seconds of HEADs one after the other on a kept connection: `count` of them, or until `until()`."""
    text = request_text("HEAD", path)
    one = socket.create_connection((server.address, server.port), timeout=HANG_SECONDS)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    took = []
    while len(took) < count if count else not until():
        began = time.perf_counter()
        one.sendall(text)
        answer = one.recv(4096)
        took.append(time.perf_counter() - began)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise AssertionError(f"{server.name} HEAD {path}: {answer!r}")
        time.sleep(pause)
    one.close()
    return took


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]
