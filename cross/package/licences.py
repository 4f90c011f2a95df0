"""Prints the copyright file: Larder's own licence, and that of everything that is linked into its program.

usage: licences.py CARGO_TOML TARGET

The list is what cargo resolves for the target, without what only builds or tests. Where a package may be had under the
Apache License it is, whose text is printed once; of the others the texts that they hold are printed, each once. It fails
if there is none.
"""

import json
import pathlib
import subprocess
import sys

# Parts of these packages have texts of their own, further down.
FURTHER_DOWN = {"lmdb-master-sys": ["lmdb/libraries/liblmdb/LICENSE", "lmdb/libraries/liblmdb/COPYRIGHT"]}

# What a package that names it and leaves its text out means by it.
MIT = """\
Copyright (c) {authors}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

# Linked in, and no package of cargo's: what it is called, its licence, its texts.
BESIDE_CARGO = [
    ("the Rust standard library", "MIT OR Apache-2.0", []),
    ("musl, the C library", "MIT", [MIT.format(authors="2005-2020 Rich Felker, et al.")]),
]


def main(manifest, target):
    metadata = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={target}", f"--manifest-path={manifest}"],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    )
    packages = linked(metadata)
    parts = BESIDE_CARGO + [(name_of(each), each["license"], texts_of(each)) for each in packages]
    names_by_text = {}
    for name, _, texts in parts:
        for text in texts:
            names_by_text.setdefault(text.strip(), []).append(name)

    print("Larder is free software under the Apache License, Version 2.0, whose text comes first.\n")
    print((pathlib.Path(manifest).parent / "LICENSE").read_text())
    print("\nIts program holds the following. What may be had under the Apache License is.\n")
    for name, licence, _ in parts:
        print(f"{name}: {licence}")
    for text, names in names_by_text.items():
        print(f"\n{'-' * 78}\n{', '.join(names)}:\n\n{text}")


def linked(metadata):
    """The packages that end up in the program, by name, without the program's own."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    root = metadata["resolve"]["root"]
    found, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node in found or is_macro(packages[node]):
            continue
        found.add(node)
        for dependency in nodes[node]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return sorted((packages[each] for each in found - {root}), key=name_of)


def is_macro(package):
    """A procedural macro runs in the compiler, and so does what it needs."""
    return any("proc-macro" in target["kind"] for target in package["targets"])


def name_of(package):
    return f"{package['name']} {package['version']}"


def texts_of(package):
    """The texts that have to go along, besides that of the Apache License."""
    folder = pathlib.Path(package["manifest_path"]).parent
    licence = package["license"] or sys.exit(f"{name_of(package)} names no licence")
    further = [(folder / name).read_text() for name in FURTHER_DOWN.get(package["name"], [])]
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if "Apache-2.0" in licence.replace("/", " OR ").split(" OR "):
        return further + [file.read_text() for file in files if file.name.lower().startswith("notice")]
    wanted = ("license", "licence", "copying", "copyright", "notice", "unlicense")
    texts = [file.read_text() for file in files if file.name.lower().startswith(wanted)]
    if not texts and licence == "MIT":
        texts = [MIT.format(authors=", ".join(package["authors"]) or f"the authors of {package['name']}")]
    if not texts:
        sys.exit(f"{name_of(package)} holds no text of its licence, {licence}")
    return further + texts


main(*sys.argv[1:])
