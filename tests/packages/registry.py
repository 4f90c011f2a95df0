"""A registry with one image, whose layer can be held back in the middle: what a real one cannot be made to do."""

import hashlib
import http.server
import json
import os
import random
import socketserver
import threading

# This machine's own, which is what Larder takes for wanted.
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    """Serves `library/app:latest` on a port of a machine's loopback."""

    def __init__(self, machine, seed=1, layer_bytes=3_000_000):
        self.blobs = {}
        layer = self._put(random.Random(seed).randbytes(layer_bytes))
        config = self._put(json.dumps({"os": "linux", "architecture": ARCHITECTURE, "rootfs": {"seed": seed}}).encode())
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        self.manifest = json.dumps(manifest).encode()
        self.digest = "sha256:" + hashlib.sha256(self.manifest).hexdigest()
        self.layer, self.config = layer["digest"], config["digest"]
        self.closed = False
        self.hold_after = None
        self.released = threading.Event()
        self.asked = []  # Of the layer: the Range header of each request, or None.
        self.sent = 0  # Bytes of the layer.
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                registry.answer(self, head=True)

            def do_GET(self):
                registry.answer(self, head=False)

            def log_message(self, *_):
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        with machine.network():
            self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        """It can be reached no more, by connections that are open neither."""
        self.closed = True
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def _put(self, content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        kind = "application/vnd.oci.image.layer.v1.tar+gzip" if len(content) > 1000 else "application/vnd.oci.image.config.v1+json"
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def answer(self, handler, head):
        if self.closed:
            handler.close_connection = True
            return
        name = handler.path.split("?")[0].rsplit("/", 1)[1]
        if handler.path.startswith("/v2/library/app/manifests/") and name in ("latest", self.digest):
            self.send(handler, head, self.manifest, MANIFEST, self.digest)
        elif name in self.blobs:
            self.send(handler, head, self.blobs[name], "application/octet-stream", name)
        else:
            handler.send_response(404 if handler.path != "/v2/" else 200)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def send(self, handler, head, content, kind, digest):
        wanted = handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        handler.send_response(206 if wanted else 200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Docker-Content-Digest", digest)
        handler.send_header("Content-Length", str(len(content) - start))
        if wanted:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if head:
            return
        if digest != self.layer:
            handler.wfile.write(content[start:])
            return
        self.asked.append(wanted)
        held = self.hold_after
        for at in range(start, len(content), 65536):
            if held is not None and at >= held:
                handler.wfile.flush()
                self.released.wait(120)
                held = None
            piece = content[at : at + 65536]
            try:
                handler.wfile.write(piece)
            except OSError:
                handler.close_connection = True
                return
            self.sent += len(piece)
