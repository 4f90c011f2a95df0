"""Rows under attack: what an honest client loses, and what Larder takes of memory."""

import contextlib
import hashlib
import http.client
import json
import pathlib
import subprocess
import sys
import threading
import time

import load
from rows import MIB, ROWS, Entry, Group, Link, median, row
from servers import Larder, Registry

from lib import http_server
from lib.oci import INDEX
from lib.process import HANG_SECONDS
from lib.random_image import Image

ATTACKER = pathlib.Path(__file__).parent / "attacker.py"


@contextlib.contextmanager
def attacked(server, *attacks):
    """Attacks a server while the block lasts: each is a kind, a number and paths."""
    children = []
    try:
        for kind, *words in attacks:
            # Other machines' work is no load of this one: only what it makes Larder do is.
            command = ["nice", "-n", "19", sys.executable, ATTACKER, kind, server.address, server.port, *words]
            children.append(subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL))
        time.sleep(3)
        ended = [attack[0] for attack, child in zip(attacks, children) if child.poll() is not None]
        if ended:
            raise AssertionError(f"attackers ended: {ended}")
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def dripping(request):
    """A registry that has everything and gives a byte a second."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000000")
    request.send_header("Content-Type", "application/octet-stream")
    request.end_headers()
    with contextlib.suppress(OSError):
        while request.command == "GET":
            request.wfile.write(b"x")
            time.sleep(1)


def timed(server, path):
    """Seconds to the first byte of a body, and its bytes a second."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(server.address, server.port, timeout=HANG_SECONDS)
    connection.request("GET", path)
    answer = connection.getresponse()
    size = len(answer.read(1))
    first = time.monotonic() - began
    while part := answer.read(1 << 18):
        size += len(part)
    connection.close()
    if answer.status != 200 or size != int(answer.headers["Content-Length"]):
        raise AssertionError(f"{path}: {answer.status}, {size} bytes")
    return first, size / (time.monotonic() - began)


@row
def attackers(lab):
    """An honest client beside three attackers, against its run alone."""
    link = Link(lab, "100mbit")
    registry = Registry(lab.folder("attack-upstream"), address=link.far, prefix=link.prefix())
    evil = http_server.serve(dripping)
    others = {"evil.test": {"url": f"http://127.0.0.1:{evil.server_address[1]}"}}
    larder = Larder(lab.folder("attacked"), f"http://{link.far}:{registry.port}", others=others)
    for server in [registry, larder]:
        lab.keep(server)
    registry.upload(lab.middle)
    lab.at_end(lambda: http_server.stop(evil))
    load.pull_image(larder, lab.middle)
    bait = [Image(f"lab/bait{n}", [8 * MIB]) for n in range(4)]
    for image in bait:
        registry.upload(image)
        load.get(larder, image.tag(), False)
    attacks = [("drip", 64), ("flood", 2, *[image.blob() for image in bait]), ("connections", 512)]
    found = {"alone": [], "attacked": []}
    for number in range(lab.rounds):
        for how in found:
            image = Image(f"lab/honest-{how}-{number}", [16 * MIB])
            registry.upload(image)
            with attacked(larder, *attacks) if how == "attacked" else contextlib.nullcontext():
                began = time.monotonic()
                for path in image.manifest_paths():
                    load.get(larder, path, True)
                tag = time.monotonic() - began
                cold = timed(larder, image.blob())
                # Some milliseconds each: one alone says little.
                cached = zip(*[timed(larder, lab.middle.blob()) for _ in range(15)])
                found[how].append((tag, *cold, *map(median, cached)))
            time.sleep(1)
    entries = []
    for at, what, unit, scale, digits in [
        (0, "cold tag and manifest", "ms", 1e3, 1),
        (1, "first byte of a cold blob", "ms", 1e3, 1),
        (2, "cold blob behind 100 Mbit/s", "MB/s", 1e-6, 2),
        (3, "first byte of a cached blob", "ms", 1e3, 1),
        (4, "cached blob", "MB/s", 1e-6, 0),
    ]:
        alone, under = ([sample[at] * scale for sample in found[how]] for how in ["alone", "attacked"])
        ratio = median(under) / median(alone) if unit == "ms" else median(alone) / median(under)
        goal = "at most 1.2 times as bad as alone"
        entries.append(Entry(f"three attackers at once: {what}", goal, unit, {"Larder": under, "straight": alone}, ratio <= 1.2, ratio, "straight: alone", digits))
    return entries


@row
def memory_attacked(lab):
    """Memory and other clients' pulls with 500 slowloris connections, 200 slow readers and 1,000 clients at once."""
    entries = []
    for limit in [24, 64]:
        group = Group("memory", "memory")
        lab.at_end(group.remove)
        more = f'[memory]\nmax = "{limit}MiB"\n[tags]\nrevalidate = "1h"\n'
        larder = Larder(lab.folder(f"crowd-{limit}"), lab.upstream(), more, prefix=group.prefix())
        lab.keep(larder)
        small = Image("lab/small", [64 << 10])
        lab.registry().upload(small)
        for image in [lab.middle, small]:
            load.pull_image(larder, image)
        slow = [("slowloris", 500), ("readers", 200, lab.middle.blob())]
        high, times = {}, {}
        for what, attacks in [("alone", []), ("slow", slow), ("all", [*slow, ("crowd", 1000, small.blob())])]:
            with attacked(larder, *attacks), watched(larder, group) as seen:
                times[what] = pulls(larder, small, 200 if lab.quick else 1000)
            high[what] = max(seen)
        own = {what: value / MIB for what, value in high.items()}
        text = f"own memory, 500 slowloris, 200 slow readers, 1,000 clients at once, memory.max = {limit} MiB"
        note = ", ".join(f"{what} {value:.1f} MiB" for what, value in own.items()) + f"; VmHWM {larder.memory('VmHWM') / MIB:.1f} MiB"
        entries.append(Entry(text, "memory.max held", "MiB", {"Larder": [max(own.values())]}, max(own.values()) <= limit, note=note, digits=1))
        p99 = {what: load.quantile(took, 0.99) * 1000 for what, (took, _) in times.items()}
        for what in ["slow", "all"]:
            text = f"p99 of other pulls, {limit} MiB, " + ("slow ones alone" if what == "slow" else "all of them")
            refused = times[what][1]
            note = f"alone {p99['alone']:.1f} ms; {refused} of {len(times[what][0])} refused" if refused else f"alone {p99['alone']:.1f} ms"
            met = p99[what] <= 2 * p99["alone"]
            entries.append(Entry(text, "2 times its p99 alone", "ms", {"Larder": [p99[what]]}, met, p99[what] / p99["alone"], note, 1))
        larder.stop()
    return entries


@contextlib.contextmanager
def watched(server, group):
    """What is the server's own of its memory, sampled while the block lasts: what is no page of a file."""
    seen, ended = [], threading.Event()

    def watch():
        while not ended.wait(0.05):
            seen.append(max(server.memory("RssAnon"), group.without_page_cache() if group else 0))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def pulls(server, image, count):
    """Seconds of pulls, one after the other, each with connections of its own; and how many were refused."""
    took, refused = [], 0
    for _ in range(count):
        began = time.monotonic()
        try:
            for path in [image.tag(), image.blob()]:
                load.get(server, path, False)
        except (AssertionError, OSError, http.client.HTTPException):
            refused += 1
        took.append(time.monotonic() - began)
    return took, refused


@row
def large_indexes(lab):
    """Own memory while one client asks for 20 indexes of 4 MB, one after the other and at once."""
    count, limit = 20, 24
    documents = {}
    for number in range(count):
        index = plain_index(number)
        documents[f"t{number}"] = index
        documents["sha256:" + hashlib.sha256(index).hexdigest()] = index

    def answer(request):
        body = documents.get(request.path.split("/")[-1].split("?")[0], b"")
        request.send_response(200 if body else 404)
        request.send_header("Content-Type", INDEX)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(body).hexdigest())
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(b"" if request.command == "HEAD" else body)

    registry = http_server.serve(answer)
    lab.at_end(lambda: http_server.stop(registry))
    url = f"http://127.0.0.1:{registry.server_address[1]}"
    larder = Larder(lab.folder("indexes"), url, f'[memory]\nmax = "{limit}MiB"\n')
    lab.keep(larder)
    paths = [f"/v2/lab/app/manifests/{name}" for name in documents]
    with watched(larder, None) as seen:
        for path in paths:
            load.get(larder, path, False)
        one_by_one = max(seen)
        threads = [threading.Thread(target=load.get, args=(larder, path, False)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    high = max(seen)
    note = f"one after the other {one_by_one / MIB:.1f} MiB, then {larder.memory('RssAnon') / MIB:.1f} MiB; VmHWM {larder.memory('VmHWM') / MIB:.1f} MiB"
    what = f"own memory, {count} indexes of 4 MB, one after the other and at once"
    return [Entry(what, f"memory.max = {limit} MiB held", "MiB", {"Larder": [high / MIB]}, high <= limit * MIB, note=note, digits=1)]


def plain_index(seed):
    """An index of 900 images with annotations, 4 MB long."""
    digest = lambda number: "sha256:" + hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
    platform = {"architecture": "arm64", "os": "linux"}
    images = [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(n), "size": 500, "platform": platform, "annotations": {"fill": "x" * 4_200}} for n in range(900)]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": images}).encode()


__all__ = ["ROWS"]
