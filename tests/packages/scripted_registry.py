"""A registry with one image, whose layer can be held back in the middle: what a real one cannot be made to do."""

import os
import threading

from lib import http_server, oci
from lib.random_image import Image

# This machine's own, which is what Larder takes for wanted.
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
PIECE_BYTES = 65536
HELD_SECONDS_MAX = 120


class ScriptedRegistry:
    """Serves `library/app:latest` on a port of a machine's loopback."""

    def __init__(self, machine, seed=1, layer_bytes=3_000_000):
        self.image = Image("library/app", [layer_bytes], seed, ARCHITECTURE)
        (self.layer,) = self.image.layers
        self.closed = False
        self.hold_after = None
        self.released = threading.Event()
        self.asked = []  # Of the layer: the Range header of each request, or None.
        self.sent = 0  # Bytes of the layer.
        with machine.network():
            self.server = http_server.serve(self.answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        """It can be reached no more, by connections that are open neither."""
        self.closed = True
        self.released.set()
        http_server.stop(self.server)

    def answer(self, handler):
        if self.closed:
            handler.close_connection = True
            return
        name = handler.path.split("?")[0].rsplit("/", 1)[1]
        image = self.image
        if handler.path.startswith("/v2/library/app/manifests/") and name in ("latest", image.digest):
            self.send(handler, image.manifest, oci.MANIFEST, image.digest)
        elif name in image.blobs:
            self.send(handler, image.blobs[name], "application/octet-stream", name)
        else:
            handler.send_response(404 if handler.path != "/v2/" else 200)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def send(self, handler, content, kind, digest):
        wanted = handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        handler.send_response(206 if wanted else 200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Docker-Content-Digest", digest)
        handler.send_header("Content-Length", str(len(content) - start))
        if wanted:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if digest != self.layer:
            handler.wfile.write(content[start:])
            return
        self.asked.append(wanted)
        held = self.hold_after
        for at in range(start, len(content), PIECE_BYTES):
            if held is not None and at >= held:
                handler.wfile.flush()
                self.released.wait(HELD_SECONDS_MAX)
                held = None
            piece = content[at : at + PIECE_BYTES]
            try:
                handler.wfile.write(piece)
            except OSError:
                handler.close_connection = True
                return
            self.sent += len(piece)
