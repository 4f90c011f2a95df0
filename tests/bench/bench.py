"""Runs the rows, and writes what was found as Markdown, JSON and a plot."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import sys
import time
import traceback

import attacks
import plot
import rows

from lib import larder
from lib.process import run

SERVERS = ["Larder", "nginx", "docker-registry", "docker-registry, pull-through", "straight"]


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/run")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: less than five minutes on two quiet cores")
    parser.add_argument("--only", action="append", choices=list(attacks.ROWS), help="this row alone; may be repeated")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/bench"), help="where the results go")
    parser.add_argument("--list", action="store_true", help="name the rows")
    arguments = parser.parse_args()
    if arguments.list:
        for name, function in attacks.ROWS.items():
            print(f"{name:15} {function.__doc__.splitlines()[0]}")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = this_machine()
    results, failed = {}, {}
    with rows.Lab(arguments.quick) as lab:
        for name in arguments.only or attacks.ROWS:
            began = time.monotonic()
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                results[name] = attacks.ROWS[name](lab)
                for entry in results[name]:
                    print(f"    {line(entry)}", file=sys.stderr)
            except Exception as problem:
                traceback.print_exc()
                failed[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            print(f"    {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    machine["load at the end"] = os.getloadavg()[0]
    page = markdown(machine, results, failed, lab.scale, arguments.quick)
    (arguments.out / "bench.md").write_text(page)
    found = {"machine": machine, "quick": arguments.quick, "rows": results, "failed": failed, "scale": lab.scale}
    (arguments.out / "bench.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))
    if lab.scale:
        (arguments.out / "scale.svg").write_text(plot.scale(lab.scale))
    print(page)
    return 1 if failed else 0


def this_machine():
    def said(*command):
        return run(*command, check=False).stdout.strip()

    cpu = [line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "Model"))]
    total = next(int(line.split()[1]) for line in pathlib.Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    version = lambda package: said("dpkg-query", "-W", "-f", "${Version}", package)
    return {
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} cores, {platform.machine()}, {cpu[0] if cpu else 'unknown'}",
        "memory": f"{total / 1024 / 1024:.1f} GiB",
        "kernel": platform.release().split("-")[0],
        "Larder": said(larder.PROGRAM, "--version").removeprefix("larder "),
        "nginx": version("nginx-light") or version("nginx"),
        "docker-registry": version("docker-registry"),
        "load at the start": os.getloadavg()[0],
    }


def figure(samples, digits):
    """The median, and the spread where there are several samples."""
    text = f"{rows.median(samples):,.{digits}f}"
    return text if len(samples) == 1 else f"{text} ({min(samples):,.{digits}f} to {max(samples):,.{digits}f})"


def line(entry):
    values = ", ".join(f"{name} {figure(samples, entry['digits'])}" for name, samples in entry["values"].items())
    return f"{entry['what']}: {values} {entry['unit']}" + (f", ratio {entry['ratio']:.2f}" if entry["ratio"] else "")


def markdown(machine, results, failed, scale, quick):
    entries = [entry for found in results.values() for entry in found]
    names = [name for name in SERVERS if any(name in entry["values"] for entry in entries)]
    out = ["# Measured by tests/bench/run" + (" --quick" if quick else ""), ""]
    out += [f"- {key}: {value if isinstance(value, str) else f'{value:.1f}'}" for key, value in machine.items()]
    out += ["", "Medians, and from the least to the most of the rounds. The ratio is Larder's to nginx's, or to what the goal names.", ""]
    out.append("| what | goal | " + " | ".join(names) + " | ratio | met |")
    out.append("|---|---|" + "---|" * (len(names) + 2))
    for entry in entries:
        cells = [f"{figure(entry['values'][name], entry['digits'])} {entry['unit']}" if name in entry["values"] else "" for name in names]
        ratio = f"{entry['ratio']:.2f}" if entry["ratio"] else ""
        met = "" if entry["met"] is None else "yes" if entry["met"] else "**no**"
        out.append(f"| {entry['what']} | {entry['goal']} | " + " | ".join(cells) + f" | {ratio} | {met} |")
    notes = [f"- {entry['what']}: {entry['note']}" for entry in entries if entry["note"]]
    out += ["", *notes] if notes else []
    out += ["", *[f"- {name} could not be measured: {why}" for name, why in failed.items()]] if failed else []
    if scale:
        out += ["", "## How cost grows", "", *scale_tables(scale)]
    return "\n".join(out) + "\n"


def scale_tables(scale):
    out = ["| blobs | start to first answer | idle memory | CPU of a tag HEAD |", "|---|---|---|---|"]
    out += [f"| {at['blobs']:,} | {at['start_ms']:.0f} ms | {at['memory_mib']:.1f} MiB | {at['head_us']:.0f} µs |" for at in scale["blobs"]]
    out += ["", "| clients, 1 MiB each | Larder s/GB | nginx s/GB | Larder MB/s | nginx MB/s | refused by Larder |", "|---|---|---|---|---|---|"]
    for at in scale["clients"]:
        ours, theirs = at["Larder"], at["nginx"]
        out.append(f"| {at['clients']} | {ours['cpu']:.2f} | {theirs['cpu']:.2f} | {ours['rate']:,.0f} | {theirs['rate']:,.0f} | {ours['refused']} |")
    out += ["", "| blob | Larder s/GB | nginx s/GB | Larder, each | nginx, each |", "|---|---|---|---|---|"]
    for at in scale["size"]:
        size = f"{at['size'] >> 20} MiB" if at["size"] >= 1 << 20 else f"{at['size'] >> 10} KiB"
        ours, theirs = at["Larder"], at["nginx"]
        out.append(f"| {size} | {ours['cpu']:.2f} | {theirs['cpu']:.2f} | {ours['each_us']:,.0f} µs | {theirs['each_us']:,.0f} µs |")
    return out


if __name__ == "__main__":
    sys.exit(main())
