"""Where Larder's time goes: samples of what it does while it serves and fetches, by perf, as shares in a table."""

import argparse
import collections
import datetime
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import load
import rows

from lib import larder as under_test
from lib.process import run
from lib.random_image import Image

# The first line whose pattern is in a frame of the stack, looked at from the innermost one; kernel first.
KERNEL = [
    ("kernel: page cache to socket (sendfile)", r"sys_sendfile"),
    ("kernel: writing to sockets", r"sock_write_iter|sys_sendto|sys_sendmsg"),
    ("kernel: reading from sockets", r"sys_recv|sock_read_iter"),
    ("kernel: writing files", r"sys_p?write|ext4_file_write|sys_fallocate|sys_ftruncate"),
    ("kernel: flushing files", r"sys_fsync|sys_fdatasync|sys_msync|sys_sync"),
    ("kernel: reading files, looking at them", r"sys_(pread|preadv2|read|open|openat2?|stat|statx|fstat|newfstat|newfstatat|getdents64|fadvise64|unlink|rename|close)"),
    ("kernel: sockets that come and go", r"sys_(accept4?|shutdown|setsockopt|getsockopt|connect|socket)"),
    ("kernel: waiting and waking", r"sys_(epoll_\w+|futex|poll|nanosleep|clock_nanosleep|eventfd2)|\b(__)?schedule\b"),
    ("kernel: anything else", r""),
]
USER = [
    ("Larder", r"larder::"),
    ("hashing", r"sha2|sha256|compress"),
    ("TLS", r"rustls|ring|aes|gcm|chacha"),
    ("hyper", r"hyper|http::|httparse|HeaderMap|HeaderValue|http_body"),
    ("ureq", r"ureq"),
    ("tokio", r"tokio|mio::"),
]
# Where no pattern says it: what Rust's own library does is inlined all over.
RUST = "Rust's library: tables, strings, locks"
LIBC = "libc: memory, copying, entering the kernel"
PERF = ["perf", "record", "-e", "cpu-clock", "-F", "4000", "-g"]


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/run --profile")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/bench"), help="where the results go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with rows.Lab(quick=False) as lab:
        larder = lab.servers()[0]
        many = [Image(f"lab/cold{number}", [32 << 20]) for number in range(24)]
        for image in many:
            lab.registry().upload(image)
            image.blobs = {digest: b"" for digest in image.blobs}
        # What was written just now must not be on its way to the disk while something else is looked at.
        os.sync()
        work = {
            "tag HEAD, 32 clients": lambda: load.heads(larder, lab.middle.tag(), 32, 5),
            "cached blob, 8 clients": lambda: load.pull(larder, lab.big.blob(), 8, False, 6),
            "cached blob, 200 clients": lambda: load.pull(larder, lab.middle.blob(), 200, False, 3),
            "fill": lambda: [load.pull_image(larder, image) for image in many],
        }
        found = {name: profiled(larder, lab.scratch / f"{number}.perf", do) for number, (name, do) in enumerate(work.items())}
    page = markdown(found)
    (arguments.out / "profile.md").write_text(page)
    print(page)
    return 0


def profiled(server, file, do):
    """Samples by where they were taken, and by function those of the program itself, while `do` runs."""
    perf = subprocess.Popen([*PERF, "-o", file, "-p", str(server.child.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(1)
    if perf.poll() is not None:
        raise AssertionError(f"perf ended: {perf.stderr.read().decode()}")
    do()
    perf.send_signal(signal.SIGINT)
    perf.communicate()
    said = run("perf", "script", "-i", file, "-F", "ip,sym,dso").stdout
    places, functions = collections.Counter(), collections.Counter()
    for sample in said.strip().split("\n\n"):
        frames = [re.match(r"\s*[0-9a-f]+ (.*) \((.*)\)$", line) for line in sample.splitlines() if line.strip()]
        frames = [(frame[1], frame[2]) for frame in frames if frame]
        if not frames:
            continue
        place = place_of(frames)
        places[place] += 1
        if frames[0][1].endswith("/" + under_test.PROGRAM.name):
            functions[frames[0][0]] += 1
    if places.total() < 500:
        raise AssertionError(f"only {places.total()} samples were taken")
    return places, functions


def place_of(frames):
    symbol, file = frames[0]
    if "kernel" in file:
        kernel = " ".join(name for name, where in frames if "kernel" in where)
        return next(name for name, pattern in KERNEL if re.search(pattern, kernel))
    if "vdso" in file:
        return "tokio"
    if "libc" in file or "libm" in file:
        return LIBC
    return next((name for name, pattern in USER if re.search(pattern, symbol)), RUST)


def markdown(found):
    names = [*(name for name, _ in KERNEL + USER), RUST, LIBC]
    out = ["# Where the time goes, by tests/bench/run --profile", ""]
    out += [f"{datetime.date.today()}, {os.cpu_count()} cores, Linux {os.uname().release.split('-')[0]}, {os.uname().machine}; shares of the samples.", ""]
    out += ["| | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for name in names:
        shares = [100 * places[name] / places.total() for places, _ in found.values()]
        if max(shares) >= 0.1:
            out.append(f"| {name} | " + " | ".join(f"{share:.1f} %" for share in shares) + " |")
    out += ["| samples | " + " | ".join(str(places.total()) for places, _ in found.values()) + " |", "", "The program's own functions that cost most:", ""]
    for name, (places, functions) in found.items():
        out.append(f"- {name}: " + ", ".join(f"`{function}` {100 * count / places.total():.1f} %" for function, count in functions.most_common(6)))
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
