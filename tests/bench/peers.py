"""The servers that are compared: each in a folder of its own, with what it costs read from /proc."""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

PATIENCE = 120
LARDER = os.environ["LARDER"]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def clock_of(pid):
    """The CPU clock of a process, as clock_getcpuclockid(3) makes its number."""
    return ~pid << 3 | 2


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until(what, done, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.01)


def answers(address, port):
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


class Server:
    """A server process. `prefix` is put before its command, such as to enter a network namespace."""

    address = "127.0.0.1"
    tls_port = None

    def __init__(self, name, folder, command, prefix=(), environment=None):
        self.name, self.folder = name, folder
        self.command = [*prefix, *map(str, command)]
        self.environment = {**os.environ, **(environment or {})}
        self.child = None

    def start(self, ports):
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.child = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.folder, env=self.environment, start_new_session=True
            )
        for port in ports:
            wait_until(f"{self.name} on port {port}", lambda port=port: self.is_up(port))
        return self

    def is_up(self, port):
        if self.child.poll() is not None:
            raise AssertionError(f"{self.name} ended:\n{(self.folder / f'{self.name}.log').read_text()[-2000:]}")
        return answers(self.address, port)

    def stop(self):
        if self.child and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()

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


class Registry(Server):
    """Debian's docker-registry: plain, or as a pull-through cache of `remote`."""

    def __init__(self, folder, remote=None, tls=None, address="127.0.0.1", prefix=(), data=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.address, self.data = free_port(), address, data or folder / "data"
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.data), "maxthreads": 100}},
            "http": {"addr": f"{address}:{self.port}"},
        }
        if remote:
            config["proxy"] = {"remoteurl": remote}
        if tls:
            config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
            self.tls_port = self.port
        # What is JSON is YAML.
        (folder / "config.yml").write_text(json.dumps(config))
        name = "docker-registry, pull-through" if remote else "docker-registry"
        super().__init__(name, folder, ["docker-registry", "serve", folder / "config.yml"], prefix)
        self.start([self.port])

    def push(self, image):
        """Uploads an image by the distribution API."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=PATIENCE)

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
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.root, self.address = free_port(), folder / "files", address
        self.root.mkdir()
        self.log = folder / "access.log"
        secure, ports = "", [self.port]
        if tls:
            self.tls_port = free_port()
            ports.append(self.tls_port)
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
                access_log {f"{self.log} bytes" if behind else "off"};
                sendfile on; keepalive_requests 1000000000; client_max_body_size 0;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                server {{ listen {address}:{self.port}; {secure} location / {{ {inside} }} }}
            }}"""
        )
        super().__init__("nginx", folder, ["/usr/sbin/nginx", "-c", folder / "nginx.conf"], prefix)
        self.start(ports)

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
        for line in self.log.read_text().splitlines():
            _, path, size = line.split()
            sent[path] = sent.get(path, 0) + int(size)
        return sent


class Larder(Server):
    """The program under test."""

    name = "Larder"

    def __init__(self, folder, upstream, more="", data=None, tls=None, address="127.0.0.1", prefix=(), program=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.data, self.address = free_port(), data or folder / "data", address
        text = f'listen = ["{address}:{self.port}"]\ndata_dir = "{self.data}"\nplatforms = ["linux/amd64"]\n{more}\n'
        text += f'[upstream."docker.io"]\nurl = "{upstream}"\n'
        if tls:
            text += f'[tls]\ncert_file = "{tls[0]}"\nkey_file = "{tls[1]}"\n'
            self.tls_port = self.port
        (folder / "larder.toml").write_text(text)
        command = [program or LARDER, "--config", folder / "larder.toml", "-q", "serve"]
        super().__init__("Larder", folder, command, prefix)
        self.start([self.port])

    def metric(self, name):
        connection = http.client.HTTPConnection(self.address, self.port, timeout=PATIENCE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def random_bytes(dice, size, piece=1 << 26):
    """Random bytes; made in pieces, for no generator makes 256 MiB and more at a time."""
    return b"".join(dice.randbytes(min(piece, size - at)) for at in range(0, size, piece))


class Image:
    """An image of one platform with layers of random bytes; the same seed, the same image."""

    def __init__(self, name, sizes, seed=1):
        self.name, self.blobs = name, {}
        dice = random.Random(f"{name} {seed}")
        config = json.dumps({"architecture": "amd64", "os": "linux", "seed": seed}).encode()
        self.layers = [self.add(random_bytes(dice, size)) for size in sizes]
        described = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}
            for digest, size in zip(self.layers, sizes)
        ]
        config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.add(config), "size": len(config)}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": described}
        self.manifest = json.dumps(manifest, indent=3).encode()
        self.digest = "sha256:" + hashlib.sha256(self.manifest).hexdigest()

    def add(self, content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def blob(self, number=0):
        """The path of a layer."""
        return f"/v2/{self.name}/blobs/{self.layers[number]}"

    def size(self, number=0):
        return len(self.blobs[self.layers[number]])

    def tag(self):
        return f"/v2/{self.name}/manifests/latest"

    def manifest_paths(self):
        return [self.tag(), f"/v2/{self.name}/manifests/{self.digest}"]

    def blob_paths(self):
        return [f"/v2/{self.name}/blobs/{digest}" for digest in self.blobs]

    def bytes(self):
        return len(self.manifest) + sum(map(len, self.blobs.values()))
