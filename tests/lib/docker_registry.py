"""Debian's docker-registry: a registry, or a pull-through cache of another."""

import contextlib
import json

from lib import skopeo
from lib.network import free_port
from lib.process import Process


class Registry(Process):
    """`auth` is a part of its configuration, `tls` a certificate and a key, `proxy` the address of what it is a cache of."""

    def __init__(
        self, folder, auth=None, tls=None, data=None, proxy=None, address="127.0.0.1", logs_requests=True, **options
    ):
        self.port, self.address, self.data = free_port(), address, data or folder / "registry"
        self.ports = (self.port,)
        self.scheme = "https" if tls else "http"
        config = {
            "version": "0.1",
            "log": {"level": "info", "formatter": "json"},
            "storage": {"filesystem": {"rootdirectory": str(self.data), "maxthreads": 100}},
            "http": {"addr": f"{address}:{self.port}"},
        }
        if not logs_requests:
            config["log"] = {"level": "error", "accesslog": {"disabled": True}}
        if proxy:
            config["proxy"] = {"remoteurl": proxy}
        if auth:
            config["auth"] = auth
        if tls:
            config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        # What is JSON is YAML.
        file = folder / "registry.json"
        file.write_text(json.dumps(config))
        options.setdefault("name", "registry")
        super().__init__(command=["/usr/bin/docker-registry", "serve", file], folder=folder, **options)

    @property
    def url(self):
        return f"{self.scheme}://{self.address}:{self.port}"

    def push(self, layout, source, target, credentials=None, docker_types=False):
        """Copies a tag of a layout, with every platform, to `REPOSITORY:TAG`."""
        options = ["--format", "v2s2"] if docker_types else []
        if credentials:
            options += ["--dest-creds", ":".join(credentials)]
        skopeo.copy(f"oci:{layout.path}:{source}", skopeo.on_loopback(self.port, target), "--all", *options)

    def requests(self):
        """Method, path, status and bytes of every answer so far."""
        rows = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row.get("msg") == "response completed":
                    written = int(row.get("http.response.written", 0))
                    rows.append(
                        (row["http.request.method"], row["http.request.uri"], row["http.response.status"], written)
                    )
        return rows

    def bytes_sent(self, part):
        """Bytes of all answers so far to GETs whose path has a part in it."""
        return sum(row[3] for row in self.requests() if row[0] == "GET" and part in row[1])
