"""Real multi-arch images, built from Debian packages into OCI layouts. The same packages, the same digests."""

import functools
import gzip
import io
import json
import os
import pathlib
import shutil
import tarfile
import tempfile

from lib import debian, oci, scratch

# Debian's names for architectures, and the platforms of images.
PLATFORMS = {
    "amd64": {"architecture": "amd64"},
    "arm64": {"architecture": "arm64", "variant": "v8"},
    "armhf": {"architecture": "arm", "variant": "v7"},
}
HERE = "amd64"
TIME = 1_700_000_000
APPLETS = ("sh", "cat", "echo", "ls", "sleep", "true", "uname")


class Layout:
    """An OCI image layout on disk that grows by tags."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.roots = {}
        (self.path / "blobs/sha256").mkdir(parents=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def put(self, content, media_type):
        """Stores content and returns its descriptor."""
        digest = oci.digest_of(content)
        self._file(digest).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def put_json(self, value, media_type):
        return self.put(json.dumps(value, sort_keys=True).encode(), media_type)

    def tag(self, name, layers):
        """Tags an index of one image for each platform; `layers` maps Debian's architectures to their layers."""
        manifests = []
        for architecture, parts in layers.items():
            platform = {"os": "linux", **PLATFORMS[architecture]}
            config = {
                **platform,
                "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/cat", "/etc/version"]},
                "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in parts]},
            }
            manifest = {
                "schemaVersion": 2,
                "mediaType": oci.MANIFEST,
                "config": self.put_json(config, oci.CONFIG),
                "layers": [self.put(blob, oci.LAYER_GZIP) for blob, _ in parts],
            }
            manifests.append({**self.put_json(manifest, oci.MANIFEST), "platform": platform})
        index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": manifests}
        self.roots[name] = self.put_json(index, oci.INDEX)
        (self.path / "index.json").write_text(
            json.dumps(
                {
                    "schemaVersion": 2,
                    "manifests": [
                        {**root, "annotations": {"org.opencontainers.image.ref.name": tag}}
                        for tag, root in self.roots.items()
                    ],
                }
            )
        )

    def digest(self, tag):
        return self.roots[tag]["digest"]

    def bytes_for(self, tag, architecture=HERE):
        """Bytes of manifest, config and layers that a client of one platform pulls, with the index."""
        index = self.read(self.digest(tag))
        wanted = PLATFORMS[architecture]["architecture"]
        child = next(m for m in index["manifests"] if m["platform"]["architecture"] == wanted)
        manifest = self.read(child["digest"])
        parts = [manifest["config"], *manifest["layers"]]
        return self.roots[tag]["size"] + child["size"] + sum(part["size"] for part in parts)

    def read(self, digest):
        return json.loads(self._file(digest).read_bytes())

    def _file(self, digest):
        return self.path / "blobs/sha256" / digest.removeprefix("sha256:")


@functools.cache
def built():
    """Two images: `app`, a busybox of which there are two versions, and `big`, with layers of many megabytes."""
    folder = scratch.FOLDER
    app, big = Layout(folder / "app"), Layout(folder / "big")
    base, first, second, large = {}, {}, {}, {}
    for architecture in PLATFORMS:
        (busybox,) = debian.packages(architecture, "busybox-static")
        base[architecture] = layer(folder, [busybox], links={f"bin/{name}": "busybox" for name in APPLETS})
        first[architecture] = [base[architecture], layer(folder, [], {"etc/version": b"1.0\n"})]
        second[architecture] = [base[architecture], layer(folder, [], {"etc/version": b"1.1\n"})]
    for architecture in ("amd64", "arm64"):
        debs = debian.packages(architecture, "libicu72", "libpython3.11-stdlib", "perl-modules-5.36")
        large[architecture] = first[architecture] + [layer(folder, [deb]) for deb in debs]
    app.tag("1.0", first)
    app.tag("1.1", second)
    big.tag("1.0", large)
    return app, big


def layer(folder, debs, files=None, links=None):
    """A layer with the packages' content, some files and some symbolic links: the compressed bytes and the diff id."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        tree = pathlib.Path(name)
        for deb in debs:
            debian.unpack(deb, tree)
        shutil.rmtree(tree / "usr/share/doc", ignore_errors=True)
        for path, content in (files or {}).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        for path, target in (links or {}).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(tree / path):
                (tree / path).symlink_to(target)
        plain = _tar(tree)
    diff_id = oci.digest_of(plain)
    return gzip.compress(plain, compresslevel=6, mtime=0), diff_id


def _tar(tree):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(tree.rglob("*")):
            entry = archive.gettarinfo(str(path), path.relative_to(tree).as_posix())
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = TIME, 0, 0, "", ""
            if entry.islnk():
                entry.type, entry.size = tarfile.REGTYPE, path.stat().st_size
            if entry.isreg():
                with path.open("rb") as content:
                    archive.addfile(entry, content)
            else:
                archive.addfile(entry)
    return out.getvalue()
