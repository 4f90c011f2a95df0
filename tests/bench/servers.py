"""The servers that are compared: each in a folder of its own, with what it costs read from /proc."""

import http.client
import os
import pathlib
import signal
import time

from lib import docker_registry, larder
from lib.network import free_port
from lib.oci import MANIFEST
from lib.process import HANG_SECONDS, Process


def clock_of(pid):
    """The CPU clock of a process, as clock_getcpuclockid(3) makes its number."""
    return ~pid << 3 | 2


class Server(Process):
    """A server process whose cost is known."""

    tls_port = None

    def __init__(self, name, command, folder, prefix=()):
        super().__init__(name, command, folder, prefix, start_new_session=True)

    def kill(self):
        os.killpg(self.child.pid, signal.SIGKILL)

    def processes(self):
        """The process and its children."""
        found, new = [], [self.child.pid]
        while new:
            found += new
            children = [pathlib.Path(f"/proc/{pid}/task/{pid}/children") for pid in new]
            new = [int(pid) for file in children if file.exists() for pid in file.read_text().split()]
        return found

    def cpu(self):
        """Seconds of CPU, in the program and in the kernel for it, since it was started.

        Read from the clocks of the processes, which count nanoseconds; /proc/PID/stat has the same in ticks of 10 ms.
        """
        return sum(time.clock_gettime(clock_of(pid)) for pid in self.processes())

    def memory(self, key):
        """VmRSS, RssAnon or VmHWM of all its processes, in bytes."""
        total = 0
        for pid in self.processes():
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(key + ":"):
                    total += int(line.split()[1]) * 1024
        return total


class Registry(docker_registry.Registry, Server):
    """Debian's docker-registry: plain, or as a pull-through cache of `remote`."""

    def __init__(self, folder, remote=None, tls=None, **options):
        name = "docker-registry, pull-through" if remote else "docker-registry"
        super().__init__(folder, proxy=remote, tls=tls, logs_requests=False, name=name, **options)
        self.tls_port = self.port if tls else None

    def upload(self, image):
        """Uploads an image by the distribution API."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=HANG_SECONDS)

        def ask(method, path, body=None, **headers):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 300:
                raise AssertionError(f"{method} {path}: {answer.status}")
            return answer

        for digest, content in image.blobs.items():
            there = ask("POST", f"/v2/{image.name}/blobs/uploads/").headers["Location"]
            there = there[there.index("/v2/") :]
            there += ("&" if "?" in there else "?") + f"digest={digest}"
            ask("PUT", there, content, **{"Content-Type": "application/octet-stream"})
        ask("PUT", f"/v2/{image.name}/manifests/latest", image.manifest, **{"Content-Type": MANIFEST})


class Nginx(Server):
    """nginx with sendfile and one worker: files, and with `behind` another server, whose bytes it counts."""

    def __init__(self, folder, tls=None, behind=None, address="127.0.0.1", prefix=(), limit_rate="0"):
        self.port, self.root, self.address = free_port(), folder / "files", address
        self.root.mkdir()
        self.access_log = folder / "access.log"
        self.ports, secure = [self.port], ""
        if tls:
            self.tls_port = free_port()
            self.ports.append(self.tls_port)
            secure = f"listen {address}:{self.tls_port} ssl; ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]}; ssl_protocols TLSv1.3;"
        inside = f"root {self.root}; default_type {MANIFEST};"
        if behind:
            inside = f"""proxy_pass http://{behind}; proxy_http_version 1.1; proxy_buffering off;
                proxy_set_header Host $http_host; proxy_set_header Connection ""; limit_rate {limit_rate};"""
        (folder / "nginx.conf").write_text(
            f"""daemon off; worker_processes 1; user root; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 4096; }}
            http {{
                log_format bytes '$request_method $uri $body_bytes_sent';
                access_log {f"{self.access_log} bytes" if behind else "off"};
                sendfile on; keepalive_requests 1000000000; client_max_body_size 0;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                server {{ listen {address}:{self.port}; {secure} location / {{ {inside} }} }}
            }}"""
        )
        super().__init__("nginx", ["/usr/sbin/nginx", "-c", folder / "nginx.conf"], folder, prefix)

    def offer(self, image):
        """Puts the files of an image where their paths in the API lead."""
        for digest, content in image.blobs.items():
            file = self.root / f"v2/{image.name}/blobs/{digest}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        file = self.root / f"v2/{image.name}/manifests/latest"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image.manifest)

    def bytes_sent(self):
        """Bytes of bodies that went through it, by path."""
        sent = {}
        for line in self.access_log.read_text().splitlines():
            _, path, size = line.split()
            sent[path] = sent.get(path, 0) + int(size)
        return sent


class Larder(larder.Larder, Server):
    """The program under test, with docker.io behind it."""

    def __init__(self, folder, upstream, more="", tls=None, others=None, **options):
        upstreams = {"docker.io": {"url": upstream}, **(others or {})}
        super().__init__(folder, upstreams, more, tls=tls, name="Larder", verbosity="-q", **options)
        self.tls_port = self.port if tls else None
