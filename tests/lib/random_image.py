"""An image of one platform with layers of random bytes; the same name and seed, the same image."""

import json
import random

from lib import oci

# No generator makes 256 MiB and more at a time.
PIECE_BYTES = 1 << 26


class Image:
    """An image in memory: `blobs` by digest, the digests of `config` and `layers`, and the `manifest` that names them."""

    def __init__(self, name, sizes, seed=1, architecture="amd64"):
        self.name, self.blobs = name, {}
        dice = random.Random(f"{name} {seed}")
        config = json.dumps({"architecture": architecture, "os": "linux", "seed": seed}).encode()
        self.layers = [self._add(_random_bytes(dice, size)) for size in sizes]
        self.config = self._add(config)
        layers = [{"mediaType": oci.LAYER, "digest": digest, "size": size} for digest, size in zip(self.layers, sizes)]
        config = {"mediaType": oci.CONFIG, "digest": self.config, "size": len(config)}
        manifest = {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": layers}
        self.manifest = json.dumps(manifest, indent=3).encode()
        self.digest = oci.digest_of(self.manifest)

    def _add(self, content):
        digest = oci.digest_of(content)
        self.blobs[digest] = content
        return digest

    def blob(self, number=0):
        """The path of a layer."""
        return f"/v2/{self.name}/blobs/{self.layers[number]}"

    def tag(self):
        return f"/v2/{self.name}/manifests/latest"

    def manifest_paths(self):
        return [self.tag(), f"/v2/{self.name}/manifests/{self.digest}"]

    def blob_paths(self):
        return [f"/v2/{self.name}/blobs/{digest}" for digest in self.blobs]

    def bytes(self):
        return len(self.manifest) + sum(map(len, self.blobs.values()))


def _random_bytes(dice, size):
    return b"".join(dice.randbytes(min(PIECE_BYTES, size - at)) for at in range(0, size, PIECE_BYTES))
