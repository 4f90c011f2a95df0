"""The rows of the table: each says what is measured, on whom, and what the goal is.

Where several servers are compared they take turns within each round, so that whatever else the machine does hits all
alike. CPU seconds are the figure that suffers least from neighbours.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import resource
import shutil
import subprocess
import threading
import time

import load
from servers import Larder, Nginx, Registry

from lib import certificate, namespace, scratch
from lib.loop_disk import LoopDisk
from lib.network import free_port
from lib.process import run, wait_until
from lib.random_image import Image

MIB = 1 << 20
ROWS = {}


def row(function):
    """Registers a row under its name."""
    ROWS[function.__name__.replace("_", "-")] = function
    return function


class Entry(dict):
    """One line of the table. `values` has the samples of each server; `better` says which way the goal lies."""

    def __init__(self, what, goal, unit, values, met=None, ratio=None, note="", digits=2):
        super().__init__(what=what, goal=goal, unit=unit, values=values, met=met, ratio=ratio, note=note, digits=digits)


def median(samples):
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def taking_turns(servers, rounds, sample):
    """Samples of each server by name, a round at a time; what was written before is on the disk by then."""
    os.sync()
    values = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            values[server.name].append(sample(server))
    return values


def ratio_of(values):
    """The median of the ratios of Larder to nginx within each round: what slows the machine down for a round hits both."""
    return median([ours / theirs for ours, theirs in zip(values["Larder"], values["nginx"])])


def compared(what, goal, unit, values, most=None, least=None, **more):
    """An entry whose ratio is that of Larder to nginx, see ratio_of()."""
    ratio = ratio_of(values)
    met = ratio <= most if most else ratio >= least
    return Entry(what, goal, unit, values, met, ratio, **more)


# -- Cached content --------------------------------------------------------------------------------------------


@row
def blobs_plain(lab):
    """CPU of cached blobs over plain HTTP."""
    return blob_rows(lab, False, 1.0)


@row
def blobs_tls(lab):
    """CPU of cached blobs over TLS."""
    return blob_rows(lab, True, 1.1)


def blob_rows(lab, tls, most):
    servers = lab.servers(tls)
    goal = "at most nginx's" if most == 1.0 else f"at most {most} times nginx's"
    entries = []
    for clients, image, times in [(1, lab.big, 8 if lab.quick else 16), (8, lab.big, 1 if lab.quick else 2), (200, lab.many if tls else lab.middle, 1)]:

        def sample(server, clients=clients, image=image, times=times):
            cpu, wall, got = load.pull(server, image.blob(), clients, tls, max(1, times // 2) if tls else times)
            return cpu / got * 1e9, got / wall / 1e6

        both = taking_turns(servers, lab.rounds, sample)
        kind = "TLS" if tls else "plain HTTP"
        cpu, rate = ({name: [pair[at] for pair in pairs] for name, pairs in both.items()} for at in (0, 1))
        what = f"CPU s/GB, cached blob, {kind}, {clients} {'client' if clients == 1 else 'clients'}"
        entries.append(compared(what, goal, "s/GB", cpu, most=most, digits=3))
        entries.append(Entry("the same: throughput", "", "MB/s", rate, digits=0))
    return entries


@row
def small_answers(lab):
    """Tag HEAD and small manifest GET."""
    servers = lab.servers()
    entries = []
    for what, ask in [("tag HEAD", load.heads), ("small manifest GET", load.gets)]:
        both = taking_turns(servers, lab.rounds, lambda server, ask=ask: ask(server, lab.middle.tag(), 32, lab.seconds))
        rate, cpu = ({name: [pair[at] for pair in pairs] for name, pairs in both.items()} for at in (0, 1))
        goal = "at least nginx serving a file of that size"
        entries.append(compared(f"{what}, 32 clients, answers/s", goal, "/s", rate, least=1.0, digits=0))
        entries.append(Entry("the same: CPU of an answer", "", "µs", cpu, digits=1, ratio=ratio_of(cpu)))
    both = [load.heads(lab.offline(), lab.middle.tag(), 32, lab.seconds) for _ in range(lab.rounds)]
    rate = {"Larder": [pair[0] for pair in both]}
    entries.append(Entry("tag HEAD with the uplink gone (breaker open), 32 clients, answers/s", "", "/s", rate, digits=0))
    return entries


@row
def instructions(lab):
    """Instructions in the program for one answer, by callgrind: a figure without noise."""
    larder = Larder(lab.folder("callgrind"), lab.upstream(), '[tags]\nrevalidate = "1h"\n')
    load.pull_image(larder, lab.middle)
    larder.stop()
    plain = larder.command
    entries = []
    for number, (what, count, work) in enumerate(
        [
            ("tag HEAD", 500, lambda count: load.latencies(larder, lab.middle.tag(), count)),
            ("cached blob of 16 MiB, plain HTTP", 20, lambda count: load.pull(larder, lab.middle.blob(), 1, False, count)),
        ]
    ):
        out = larder.folder / f"callgrind-{number}"
        larder.command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", *plain]
        larder.start()
        # Only what every later answer costs, too.
        load.pull_image(larder, lab.middle)
        work(20)
        for switch in ["on", "off"]:
            run("callgrind_control", "-i", switch, str(larder.child.pid))
            if switch == "on":
                work(count)
        larder.stop()
        total = max(int(line.split()[1]) for line in out.read_text().splitlines() if line.startswith(("totals:", "summary:")))
        entries.append(Entry(f"instructions in the program, {what}", "", "thousand", {"Larder": [total / count / 1e3]}, digits=1))
    return entries


@row
def slow_disk(lab):
    """Tags while big blobs are read from a slow disk: a loop device whose reads a control group slows down."""
    count, size = 8, (24 if lab.quick else 64) * MIB
    rate = 44_000_000
    folder = lab.folder("slow-disk")
    disk = LoopDisk(folder, str(count * size + 256 * MIB))
    lab.at_end(disk.remove)
    group = Group("blkio", "io")
    lab.at_end(group.remove)
    number = os.stat(disk.device).st_rdev
    group.limit_reads(os.major(number), os.minor(number), rate)
    images = [Image(f"lab/slow{n}", [size]) for n in range(count)]
    more = '[tags]\nrevalidate = "1h"\n[disk]\nmin_free = "1MiB"\n'
    larder = Larder(lab.folder("slow"), lab.upstream(), more, data=disk.mount / "data", prefix=group.prefix())
    lab.keep(larder)
    for image in images:
        lab.registry().upload(image)
        load.pull_image(larder, image)
        image.blobs.clear()
    os.sync()
    tag = images[0].tag()
    load.latencies(larder, tag, 200)
    idle, busy, wall = [], [], []
    for _ in range(1 if lab.quick else 3):
        for blob in (disk.mount / "data/blobs/sha256").iterdir():
            if blob.stat().st_size > MIB:
                with blob.open("rb") as open_file:
                    os.posix_fadvise(open_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        idle += load.latencies(larder, tag, 2_000, pause=0.001)
        pulls = [load.Pull(larder, image.blob()) for image in images]
        puller = threading.Thread(target=lambda pulls=pulls: wall.append(load.pull_all(pulls)))
        puller.start()
        busy += load.latencies(larder, tag, until=lambda puller=puller: not puller.is_alive(), pause=0.001)
        puller.join()
    before, under = load.quantile(idle, 0.99) * 1000, load.quantile(busy, 0.99) * 1000
    speed = count * size / median(wall) / 1e6
    goal = "at most 2 times its idle p99 + 5 ms"
    note = f"idle p99 {before:.2f} ms; the disk gave {speed:.0f} MB/s, {len(busy)} HEADs"
    what = "p99 of a tag HEAD while 8 clients pull big blobs from a slow disk"
    return [Entry(what, goal, "ms", {"Larder": [under]}, under <= 2 * before + 5, note=note)]


# -- Content that is not here ----------------------------------------------------------------------------------


@row
def cold_pull(lab):
    """A pull of what is not here against a pull straight from the upstream, over a link of 100 Mbit/s."""
    size = 32 * MIB
    image = Image("lab/cold", [size, size // 2, size // 4])
    link = Link(lab, "100mbit")
    registry = Registry(lab.folder("cold-upstream"), address=link.far, prefix=link.prefix())
    lab.keep(registry)
    registry.upload(image)
    straight, through = [], []
    for number in range(2 if lab.quick else lab.rounds):
        straight.append(load.pull_image(registry, image))
        larder = Larder(lab.folder(f"cold-{number}"), f"http://{link.far}:{registry.port}")
        through.append(load.pull_image(larder, image, check=True))
        larder.stop()
    ratio = median(through) / median(straight)
    what = f"cold pull of {image.bytes() / 1e6:.0f} MB through Larder against straight from the upstream, wall time"
    values = {"Larder": through, "straight": straight}
    return [Entry(what, "at most 1.05", "s", values, ratio <= 1.05, ratio, "upstream behind 100 Mbit/s (tbf)")]


@row
def one_download(lab):
    """Many clients, one cold image: what the upstream has to send."""
    image = Image("lab/once", [(8 if lab.quick else 32) * MIB, MIB])
    lab.registry().upload(image)
    values = {}
    for name in ["Larder", "docker-registry, pull-through"]:
        counter = Nginx(lab.folder(f"counter-{len(values)}"), behind=f"127.0.0.1:{lab.registry().port}")
        remote = f"http://127.0.0.1:{counter.port}"
        server = Larder(lab.folder("once"), remote) if name == "Larder" else Registry(lab.folder("once-proxy"), remote)
        threads = [threading.Thread(target=load.pull_image, args=(server, image)) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.5)
        server.stop()
        counter.stop()
        blobs = sum(size for path, size in counter.bytes_sent().items() if "/blobs/" in path)
        values[name] = [blobs / sum(map(len, image.blobs.values()))]
    met = round(values["Larder"][0], 2) == 1.0
    return [Entry("upstream bytes, 50 clients, one cold image", "1.00", "times", values, met)]


@row
def one_uplink(lab):
    """50 boards in network namespaces of their own behind one Larder and one uplink of 10 Mbit/s."""
    boards, rate = 50, 10_000_000
    image = Image("lab/uplink", [10 * MIB])
    link = Link(lab, "10mbit")
    registry = Registry(lab.folder("uplink-upstream"), address=link.far, prefix=link.prefix())
    lab.keep(registry)
    registry.upload(image)
    run("ip", "link", "add", "lardbr", "type", "bridge")
    lab.at_end(lambda: run("ip", "link", "del", "lardbr", check=False))
    run("ip", "addr", "add", "10.214.0.1/24", "dev", "lardbr")
    run("ip", "link", "set", "lardbr", "up")
    spaces = []
    for number in range(boards):
        space = namespace.Namespace(f"lard-b{number}")
        lab.at_end(space.remove)
        outer = f"lardb{number}"
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space.name)
        run("ip", "link", "set", outer, "master", "lardbr", "up")
        run("ip", "-n", space.name, "addr", "add", f"10.214.0.{number + 10}/24", "dev", "eth0")
        run("ip", "-n", space.name, "link", "set", "eth0", "up")
        spaces.append(space)
    larder = Larder(lab.folder("uplink"), f"http://{link.far}:{registry.port}", address="10.214.0.1")
    lab.keep(larder)
    took, wrong = [], []

    def board(space):
        try:
            with space.inside():
                took.append(load.pull_image(larder, image, check=True))
        except Exception as problem:
            wrong.append(problem)

    before = link.bytes_sent()
    threads = [threading.Thread(target=board, args=(space,)) for space in spaces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong or len(took) != boards:
        raise AssertionError(f"{len(wrong)} boards failed: {wrong[:3]}")
    blobs = larder.metric("larder_upstream_bytes_total") / image.bytes()
    wire = (link.bytes_sent() - before) / image.bytes()
    ideal = image.bytes() * 8 / rate
    note = f"on the wire {wire:.2f} with the headers of packets"
    return [
        Entry("50 boards behind one 10 Mbit/s uplink, one cold image: uplink bytes", "1.00", "times", {"Larder": [blobs]}, round(blobs, 2) == 1.0, note=note),
        Entry(
            "the same: the last board has it after", "within 1.1 of the ideal", "s", {"Larder": [max(took)]}, max(took) <= 1.1 * ideal, max(took) / ideal,
            f"ideal {ideal:.2f} s: the image's bytes at the full rate",
        ),
    ]


# -- Memory and start ------------------------------------------------------------------------------------------


@row
def memory(lab):
    """Peak memory with clients that take next to nothing, while big blobs are being fetched."""
    entries = []
    for readers, limit, tls in [(200, 64, False), (50, 24, False), (200, 64, True)]:
        values, groups = {}, {}
        kinds = ["Larder"] if tls or readers == 50 else ["Larder", "docker-registry"]
        for kind in kinds:
            high, group = peak(lab, kind, readers, limit, tls)
            values[kind], groups[kind] = [high / MIB], group / MIB
        what = f"peak memory (VmHWM), {readers} slow readers + 4 fills of big blobs{', TLS' if tls else ''}"
        note = "control group without page cache: " + ", ".join(f"{name} {value:.1f} MiB" for name, value in groups.items())
        met = values["Larder"][0] <= limit and groups["Larder"] <= limit
        entries.append(Entry(what, f"memory.max = {limit} MiB held", "MiB", values, met, note=note, digits=1))
    return entries


def peak(lab, kind, readers, limit, tls):
    number = lab.number()
    group = Group("memory", "memory")
    lab.at_end(group.remove)
    registry = lab.registry()
    counter = Nginx(lab.folder(f"slow-upstream-{number}"), behind=f"127.0.0.1:{registry.port}", limit_rate="8m")
    images = [Image(f"lab/fill{n}", [(24 if lab.quick else 48) * MIB], seed=n) for n in range(4)]
    for image in images:
        registry.upload(image)
    if kind == "Larder":
        more = f'[memory]\nmax = "{limit}MiB"\n'
        tls_files = lab.certificate if tls else None
        server = Larder(lab.folder(f"memory-{number}"), f"http://127.0.0.1:{counter.port}", more, tls=tls_files, prefix=group.prefix())
        load.pull_all([load.Pull(server, lab.middle.blob(), tls)])
    else:
        server = Registry(lab.folder(f"memory-{number}"), prefix=group.prefix())
        for image in [lab.middle, *images]:
            server.upload(image)
    slow = []
    most = 0
    # Half of them come before the downloads and read what is here, the others read what is coming.
    for at in range(readers):
        path = lab.middle.blob() if at % 2 else images[at // 2 % 4].blob()
        one = load.Pull(server, path, tls, receive_buffer=4096)
        one.ask()
        slow.append(one)
    pulls = [load.Pull(server, image.blob(), tls) for image in images]
    puller = threading.Thread(target=load.pull_all, args=(pulls,))
    puller.start()
    while puller.is_alive():
        most = max(most, group.without_page_cache())
        time.sleep(0.05)
    for one in slow:
        one.socket.settimeout(5)
        one.read_head()
        if one.status != 200:
            raise AssertionError(f"a slow reader was answered {one.status}")
    most = max(most, group.without_page_cache())
    high = server.memory("VmHWM")
    for one in slow:
        one.close()
    server.stop()
    counter.stop()
    return high, most


@row
def idle_memory(lab):
    """Memory of a server that has nothing to do."""
    values = {}
    for kind in ["Larder", "docker-registry"]:
        server = Larder(lab.folder("idle"), lab.upstream()) if kind == "Larder" else Registry(lab.folder("idle-registry"))
        time.sleep(1)
        values[kind] = [server.memory("VmRSS") / MIB]
        if kind == "Larder":
            note = f"{server.memory('RssAnon') / MIB:.1f} MiB of it are not pages of files, such as the program's own"
        server.stop()
    return [Entry("idle memory", "8 MB", "MiB", values, values["Larder"][0] * MIB <= 8e6, note=note, digits=1)]


@row
def start(lab):
    """From the start of the process to the first answer, and what many blobs cost."""
    entries = []
    for count in lab.blob_counts:
        took, memory = lab.with_blobs(count)["start"], lab.with_blobs(count)["memory"]
        if count == max(lab.blob_counts):
            what = f"start to first answer, {count:,} blobs"
            entries.append(Entry(what, "200 ms", "ms", {"Larder": took}, median(took) <= 200, note=f"idle then {memory:.1f} MiB", digits=0))
    return entries


# -- Scale -----------------------------------------------------------------------------------------------------


@row
def scale(lab):
    """How cost grows with blobs, clients and the size of a blob; goes into a table and a plot of its own."""
    scale = {"blobs": [], "clients": [], "size": []}
    for count in lab.blob_counts:
        found = lab.with_blobs(count)
        scale["blobs"].append({"blobs": count, "start_ms": median(found["start"]), "memory_mib": found["memory"], "head_us": median(found["head"])})
    larder, nginx = lab.larder_for_many(), lab.nginx()
    image = Image("lab/one", [MIB])
    lab.registry().upload(image)
    nginx.offer(image)
    load.pull_image(larder, image)
    for clients in [1, 10, 100, 1000] if lab.quick else [1, 3, 10, 30, 100, 300, 1000]:
        times = max(1, (500 if lab.quick else 2000) // clients)
        line = {"clients": clients}
        for server in [larder, nginx]:
            samples, refused = [], 0
            for _ in range(lab.rounds):
                before, got, wall = server.cpu(), 0, 0
                for _ in range(times):
                    pulls = [load.Pull(server, image.blob()) for _ in range(clients)]
                    wall += load.pull_all(pulls, check=False)
                    refused += sum(pull.status != 200 for pull in pulls)
                    got += sum(pull.got for pull in pulls)
                samples.append(((server.cpu() - before) / got * 1e9, got / wall / 1e6))
            line[server.name] = {"cpu": median([s[0] for s in samples]), "rate": median([s[1] for s in samples]), "refused": refused}
        scale["clients"].append(line)
    for size in [4 << 10, 64 << 10, MIB, 16 * MIB, 128 * MIB] + ([] if lab.quick else [1024 * MIB]):
        image = Image(f"lab/size{size}", [size])
        lab.registry().upload(image)
        nginx.offer(image)
        load.pull_image(larder, image)
        image.blobs = {digest: b"" for digest in image.blobs}
        line = {"size": size}
        for server in [larder, nginx]:
            samples = []
            for _ in range(lab.rounds):
                times = max(1, min(600 if lab.quick else 2000, (512 if lab.quick else 2048) * MIB // size))
                cpu, _, got = load.pull(server, image.blob(), 1, False, times)
                samples.append((cpu / got * 1e9, cpu / times * 1e6))
            line[server.name] = {"cpu": median([s[0] for s in samples]), "each_us": median([s[1] for s in samples])}
        scale["size"].append(line)
    lab.scale = scale
    return []


# -- What rows stand on ----------------------------------------------------------------------------------------


class Group:
    """A control group of either version."""

    def __init__(self, first, second):
        self.path = None
        name = f"larder-bench-{os.getpid()}-{time.monotonic_ns()}"
        self.old = pathlib.Path(f"/sys/fs/cgroup/{first}").is_dir()
        root = pathlib.Path("/sys/fs/cgroup")
        if self.old:
            self.path = root / first / name
        else:
            if second not in (root / "cgroup.subtree_control").read_text():
                (root / "cgroup.subtree_control").write_text(f"+{second}")
            self.path = root / name
        self.path.mkdir()

    def prefix(self):
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs; exec "$@"', "sh"]

    def limit_reads(self, major, minor, rate):
        if self.old:
            (self.path / "blkio.throttle.read_bps_device").write_text(f"{major}:{minor} {rate}")
        else:
            (self.path / "io.max").write_text(f"{major}:{minor} rbps={rate}")

    def without_page_cache(self):
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        used = (self.path / ("memory.usage_in_bytes" if self.old else "memory.current")).read_text()
        return max(0, int(used) - int(stat["total_cache" if self.old else "file"]))

    def remove(self):
        with contextlib.suppress(OSError):
            self.path.rmdir()


class Link:
    """A network namespace with an upstream in it, behind an uplink that sends no faster than `rate`."""

    near, far = "10.213.0.1", "10.213.0.2"

    def __init__(self, lab, rate):
        lab.end_link()
        self.space = namespace.Namespace("lard-up")
        lab.link_end = self.remove
        run("ip", "link", "add", "lardup", "type", "veth", "peer", "name", "eth0", "netns", "lard-up")
        run("ip", "addr", "add", f"{self.near}/24", "dev", "lardup")
        run("ip", "link", "set", "lardup", "up")
        for words in [["addr", "add", f"{self.far}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]]:
            run("ip", "-n", "lard-up", *words)
        shape = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "100ms"]
        run("ip", "netns", "exec", "lard-up", *shape)

    def prefix(self):
        return self.space.prefix()

    def bytes_sent(self):
        return int(pathlib.Path("/sys/class/net/lardup/statistics/rx_bytes").read_text())

    def remove(self):
        self.space.remove()
        run("ip", "link", "del", "lardup", check=False)


class Lab:
    """What several rows use: images, servers that are started when they are first needed, and what is undone at the end."""

    def __init__(self, quick):
        # A thousand clients are files, too.
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        self.scratch, self.quick = scratch.FOLDER, quick
        self.rounds, self.seconds = (3, 1) if quick else (7, 5)
        self.blob_counts = [1_000, 10_000, 100_000]
        self.big = Image("lab/big", [128 * MIB])
        self.middle = Image("lab/middle", [16 * MIB])
        # Encrypting for 200 clients takes its time.
        self.many = Image("lab/many", [4 * MIB]) if quick else self.middle
        self.made, self.ends, self.link_end, self.scale, self.count = {}, [], None, None, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for undo in reversed(self.ends):
            with contextlib.suppress(OSError):
                undo()
        self.end_link()

    def folder(self, name):
        path = self.scratch / name
        path.mkdir(parents=True)
        return path

    def number(self):
        self.count += 1
        return self.count

    def at_end(self, undo):
        self.ends.append(undo)

    def keep(self, server):
        self.at_end(server.stop)
        return server

    def once(self, name, make):
        if name not in self.made:
            self.made[name] = self.keep(make())
        return self.made[name]

    def end_link(self):
        if self.link_end:
            self.link_end()
        self.link_end = None

    @functools.cached_property
    def certificate(self):
        return certificate.self_signed(self.scratch, "bench", certificate.ELLIPTIC)

    def registry(self):
        return self.once("registry", lambda: self.filled(Registry(self.folder("upstream"))))

    def filled(self, registry):
        for image in [self.big, self.middle, self.many]:
            registry.upload(image)
        return registry

    def upstream(self):
        return f"http://127.0.0.1:{self.registry().port}"

    def nginx(self):
        def make():
            nginx = Nginx(self.folder("nginx"), tls=self.certificate)
            for image in [self.big, self.middle, self.many]:
                nginx.offer(image)
            return nginx

        return self.once("nginx", make)

    def cache(self, server, tls=False):
        """Has a server fetch the images, and waits until it has all of them."""
        for image in [self.big, self.middle, self.many]:
            if tls:
                load.pull_all([load.Pull(server, path, True) for path in image.manifest_paths() + image.blob_paths()])
            else:
                load.pull_image(server, image, check=server.name == "Larder")
        return server

    def servers(self, tls=False):
        if tls:
            make_larder = lambda: self.cache(Larder(self.folder("tls"), self.upstream(), tls=self.certificate), True)
            larder = self.once("tls", make_larder)
            registry = lambda: Registry(self.folder("tls-registry"), tls=self.certificate, data=self.registry().data)
            return [larder, self.nginx(), self.once("tls-registry", registry)]
        larder = lambda: self.cache(Larder(self.folder("larder"), self.upstream(), '[tags]\nrevalidate = "1h"\n'))
        proxy = lambda: self.cache(Registry(self.folder("proxy"), self.upstream()))
        return [self.once("larder", larder), self.nginx(), self.registry(), self.once("proxy", proxy)]

    def offline(self):
        """A Larder whose upstream is gone."""

        def make():
            folder = self.folder("offline")
            self.cache(Larder(folder, self.upstream())).stop()
            larder = Larder(folder, f"http://127.0.0.1:{free_port()}")
            load.latencies(larder, self.middle.tag(), 5, pause=0.2)
            return larder

        return self.once("offline", make)

    def larder_for_many(self):
        more = '[tags]\nrevalidate = "1h"\n[memory]\nmax = "256MiB"\n'
        return self.once("many", lambda: Larder(self.folder("many"), self.upstream(), more))

    def with_blobs(self, count):
        """A store with so many blobs: how long a start takes (ms), idle memory (MiB), CPU of a tag HEAD (µs)."""
        if count in self.made:
            return self.made[count]
        folder = self.folder(f"blobs-{count}")
        more = '[tags]\nrevalidate = "1h"\n'
        larder = Larder(folder, self.upstream(), more)
        load.pull_image(larder, self.middle)
        larder.stop()
        blobs = larder.data / "blobs/sha256"
        for number in range(count - len(list(blobs.iterdir()))):
            content = number.to_bytes(8, "little")
            (blobs / hashlib.sha256(content).hexdigest()).write_bytes(content)
        # Blobs appear as a restored disk would bring them: the index is made again from what is there.
        shutil.rmtree(larder.data / "index")
        larder.start()
        wait_until("the rebuild", lambda: ready(larder) and larder.metric("larder_disk_used_bytes") > count)
        larder.stop()
        took = []
        for _ in range(5):
            began = time.monotonic()
            larder.child = subprocess.Popen(larder.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            while True:
                with contextlib.suppress(OSError):
                    load.latencies(larder, self.middle.tag(), 1)
                    break
                time.sleep(0.001)
            took.append((time.monotonic() - began) * 1000)
            if len(took) == 5:
                time.sleep(1)
                memory = larder.memory("VmRSS") / MIB
                head = [load.heads(larder, self.middle.tag(), 1, self.seconds)[1]]
            larder.stop()
        shutil.rmtree(larder.data)
        self.made[count] = {"start": took, "memory": memory, "head": head}
        return self.made[count]


def ready(server):
    return server.ask("/readyz", "GET")[0] == 200
