"""Real parts, started for tests: registries, Larder, containerd. Each has a folder of its own and ends with its test."""

import atexit
import base64
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request

import debian
import images

# Generous: the machine may be busy. What needs this long has hung.
PATIENCE = 120
LARDER = os.environ.get("LARDER") or sys.exit("LARDER names no program: run tests/run")

SCRATCH = pathlib.Path(tempfile.mkdtemp(prefix="larder-real-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


def once(make):
    """Calls a function the first time only, and remembers what it returned."""
    kept = []
    return lambda: kept[0] if kept else (kept.append(make()) or kept[0])


@once
def built_images():
    return images.build(SCRATCH)


@once
def cri_messages():
    """The messages of cri.proto, compiled."""
    here = pathlib.Path(__file__).parent
    subprocess.run(["protoc", f"-I{here}", f"--python_out={SCRATCH}", "cri.proto"], check=True)
    sys.path.insert(0, str(SCRATCH))
    import cri_pb2

    return cri_pb2


@once
def containerds():
    """The programs of each containerd by its release: Debian 12's, and a 2.x from a later suite."""
    (deb,) = debian.packages(SCRATCH, "forky", "amd64", ["containerd"])
    debian.unpack(deb, SCRATCH / "containerd-2")
    return {"1.6": pathlib.Path("/usr/bin"), "2.x": SCRATCH / "containerd-2/usr/bin"}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until(what, done, seconds=PATIENCE):
    """Polls until `done()` is true; the failure names what never happened."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.02)


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def run(*command, check=True, **options):
    """Runs a program to its end; a failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


class Process:
    """A server in a folder of its own, with its output in a file."""

    def __init__(self, name, command, folder, **options):
        self.name, self.folder, self.command, self.options = name, folder, command, options
        self.log_path = folder / f"{name}.log"
        self.child = None
        self.spawn()

    def spawn(self):
        with self.log_path.open("ab") as log:
            self.child = subprocess.Popen(
                [str(part) for part in self.command], stdout=log, stderr=log, cwd=self.folder, **self.options
            )

    def log(self):
        return self.log_path.read_text(errors="replace")

    def send(self, number):
        self.child.send_signal(number)

    def stop(self, number=signal.SIGTERM):
        if self.child and self.child.poll() is None:
            # One that is held would not hear anything else.
            self.child.send_signal(signal.SIGCONT)
            self.child.send_signal(number)
            try:
                self.child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        return self.child.returncode if self.child else None

    def wait_for_port(self, port):
        def up():
            if self.child.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.child.returncode}:\n{self.log()}")
            return answers(port)

        wait_until(f"{self.name} on port {port}", up)


class Registry(Process):
    """Debian's docker-registry. `auth` and `tls` are parts of its configuration; `proxy`: what it is a cache of."""

    def __init__(self, folder, auth=None, tls=None, root=None, proxy=None):
        self.port = free_port()
        self.scheme = "https" if tls else "http"
        config = {
            "version": "0.1",
            "log": {"level": "info", "formatter": "json"},
            "storage": {"filesystem": {"rootdirectory": str(root or folder / "registry")}},
            "http": {"addr": f"127.0.0.1:{self.port}"},
        }
        if proxy:
            config["proxy"] = {"remoteurl": proxy}
        if auth:
            config["auth"] = auth
        if tls:
            config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        file = folder / "registry.json"
        file.write_text(json.dumps(config))
        super().__init__("registry", ["/usr/bin/docker-registry", "serve", file], folder)
        self.wait_for_port(self.port)

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def push(self, layout, source, target, credentials=None, docker_types=False):
        """Copies a tag of a layout, with every platform, to `REPOSITORY:TAG`."""
        options = ["--format", "v2s2"] if docker_types else []
        if credentials:
            options += ["--dest-creds", ":".join(credentials)]
        run(
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--all",
            "--dest-tls-verify=false",
            *options,
            f"oci:{layout.path}:{source}",
            f"docker://127.0.0.1:{self.port}/{target}",
        )

    def restart(self):
        self.spawn()
        self.wait_for_port(self.port)

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
        return sum(row[3] for row in self.requests() if row[0] == "GET" and part in row[1])


class Proxy(Process):
    """tinyproxy, which tunnels by CONNECT."""

    def __init__(self, folder):
        self.port = free_port()
        config = folder / "tinyproxy.conf"
        config.write_text(f"Port {self.port}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 60\nLogLevel Connect\n")
        super().__init__("proxy", ["tinyproxy", "-d", "-c", config], folder)
        self.wait_for_port(self.port)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def tunnels(self, port):
        """Tunnels so far to a port."""
        return self.log().count(f"CONNECT 127.0.0.1:{port} ")


class Tokens:
    """A token server as registries use it: signed tokens, for everybody or for who knows the password."""

    def __init__(self, folder, credentials=None):
        self.key, self.certificate = certificate(folder, "tokens")
        self.credentials, self.given = credentials, []
        tokens = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                tokens.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def auth(self):
        """The part of docker-registry's configuration that trusts this server."""
        return {
            "token": {
                "realm": f"http://127.0.0.1:{self.server.server_port}/token",
                "service": "lab",
                "issuer": "lab",
                "rootcertbundle": str(self.certificate),
            }
        }

    def answer(self, request):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(request.path).query)
        given = request.headers.get("Authorization")
        known = self.credentials is None or given == basic(*self.credentials)
        body = json.dumps({"token": self.sign(query), "expires_in": 300} if known else {}).encode()
        self.given.append((query.get("scope", [""])[0], known))
        request.send_response(200 if known else 401)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def sign(self, query):
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, rest = scope.split(":", 1)
            name, actions = rest.rsplit(":", 1)
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        chain = "".join(line for line in self.certificate.read_text().splitlines() if "-----" not in line)
        head = {"typ": "JWT", "alg": "RS256", "x5c": [chain]}
        claims = {"iss": "lab", "sub": "", "aud": query.get("service", [""])[0], "jti": str(time.monotonic_ns())}
        claims |= {"exp": now + 300, "nbf": now - 10, "iat": now, "access": access}
        text = b".".join(_unpadded(json.dumps(part).encode()) for part in (head, claims))
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self.key)], input=text, capture_output=True, check=True
        )
        return (text + b"." + _unpadded(signed.stdout)).decode()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class Larder(Process):
    """The program under test, as it is installed: one binary, one configuration file."""

    def __init__(self, folder, upstreams, more="", platform="linux/amd64", data=None, environment=None):
        self.port = free_port()
        self.config, self.data = folder / "larder.toml", data or folder / "data"
        text = f'listen = ["127.0.0.1:{self.port}"]\ndata_dir = "{self.data}"\nplatforms = ["{platform}"]\n{more}'
        for name, keys in upstreams.items():
            text += f'[upstream."{name}"]\n'
            text += "".join(f"{key} = {json.dumps(str(value))}\n" for key, value in keys.items())
        self.config.write_text(text)
        command = [LARDER, "--config", self.config, "-v", "serve"]
        super().__init__("larder", command, folder, env={**os.environ, **(environment or {})})
        self.wait_for_port(self.port)

    def restart(self):
        self.spawn()
        self.wait_for_port(self.port)

    def says(self, *arguments):
        """What a command prints, with --json, as a value."""
        return json.loads(run(LARDER, "--config", self.config, *arguments, "--json").stdout)

    def ask(self, path, method="HEAD", headers=None):
        """Status, headers and seconds of a request."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method, headers=headers or {})
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                answer.read()
                return answer.status, answer.headers, time.monotonic() - began
        except urllib.error.HTTPError as refused:
            return refused.code, refused.headers, time.monotonic() - began

    def tier(self, repository="lab/app", tag="latest"):
        status, headers, _ = self.ask(f"/v2/{repository}/manifests/{tag}?ns=docker.io")
        return headers.get("Cache-Status", "") if status == 200 else str(status)


class Containerd(Process):
    """A containerd with an empty store whose every registry is a Larder, which has the last word."""

    def __init__(self, folder, release, larder, scheme="http"):
        programs = containerds()[release]
        folder.mkdir()
        self.ctr_program, self.socket = programs / "ctr", folder / "s"
        self.hosts = folder / "hosts"
        for registry in ("docker.io", "quay.io", "ghcr.io"):
            (self.hosts / registry).mkdir(parents=True)
            address = f"{scheme}://127.0.0.1:{larder.port}"
            (self.hosts / registry / "hosts.toml").write_text(
                f'server = "{address}"\n[host."{address}"]\n  capabilities = ["pull", "resolve"]\n'
            )
        section = "io.containerd.grpc.v1.cri" if release == "1.6" else "io.containerd.cri.v1.images"
        config = folder / "config.toml"
        config.write_text(
            f'''version = {2 if release == "1.6" else 3}
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{self.socket}"
[plugins."{section}".registry]
config_path = "{self.hosts}"
'''
        )
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        super().__init__("containerd", [programs / "containerd", "-c", config], folder, env=environment)
        wait_until("containerd", lambda: self.ctr("version", check=False).returncode == 0)

    def ctr(self, *arguments, check=True):
        return run(self.ctr_program, "-a", self.socket, *arguments, check=check)

    def pull(self, reference, *options, check=True):
        """Pulls as `ctr` does."""
        return self.ctr("images", "pull", "--hosts-dir", self.hosts, *options, reference, check=check)

    def digest(self, reference):
        """The digest that a name stands for in containerd."""
        listed = self.ctr("images", "ls", f"name=={reference}").stdout.splitlines()[1:]
        return listed[0].split()[2] if listed else None

    def run_image(self, reference):
        """Starts a container of an image and returns what it printed."""
        return self.ctr("run", "--rm", reference, f"c{time.monotonic_ns()}").stdout

    def cri_pull(self, image, credentials=None):
        """PullImage, as kubelet calls it for each start of a pod with the policy Always."""
        cri = cri_messages()
        auth = cri.AuthConfig(username=credentials[0], password=credentials[1]) if credentials else None
        request = cri.PullImageRequest(image=cri.ImageSpec(image=image), auth=auth)
        return self._cri("PullImage", request, cri.PullImageResponse).image_ref

    def cri_digests(self, image):
        """The repository digests of an image, as kubelet sees them."""
        cri = cri_messages()
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image))
        return list(self._cri("ImageStatus", request, cri.ImageStatusResponse).image.repo_digests)

    def _cri(self, method, request, response):
        import grpc

        with grpc.insecure_channel(f"unix://{self.socket}") as channel:
            call = channel.unary_unary(
                f"/runtime.v1.ImageService/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            return call(request, timeout=PATIENCE)

    def stop(self, number=signal.SIGTERM):
        status = super().stop(number)
        run("sh", "-c", f"grep -o '{self.folder}[^ ]*' /proc/mounts | xargs -r umount -l", check=False)
        return status


class Case(unittest.TestCase):
    """A test with a folder and parts that end with it. When it fails, what the parts said is shown."""

    def setUp(self):
        # Short: a Unix socket's path has at most 107 bytes.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="t", dir=SCRATCH))
        self.parts = []
        self.addCleanup(self.clean)

    def clean(self):
        outcome = self._outcome.result
        failed = any(self.id() == test.id() for test, _ in [*outcome.failures, *outcome.errors])
        for part in reversed(self.parts):
            part.stop()
            if failed and hasattr(part, "log"):
                print(f"--- {part.name}:\n{part.log()[-6000:]}", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, part):
        self.parts.append(part)
        return part

    def registry(self, **options):
        folder = self.folder / f"registry-{len(self.parts)}"
        folder.mkdir()
        return self.start(Registry(folder, **options))

    def larder(self, upstreams, more="", **options):
        if isinstance(upstreams, Registry):
            upstreams = {"docker.io": {"url": upstreams.url}}
        folder = self.folder / f"larder-{len(self.parts)}"
        folder.mkdir()
        return self.start(Larder(folder, upstreams, more, **options))

    def containerd(self, release, larder):
        return self.start(Containerd(self.folder / f"containerd-{len(self.parts)}", release, larder))

    def check_blobs(self, larder):
        """Every file under blobs/ hashes to its name, by sha256sum and not by Larder."""
        blobs = sorted((larder.data / "blobs/sha256").iterdir())
        self.assertTrue(blobs)
        for line in run("sha256sum", *blobs).stdout.splitlines():
            digest, path = line.split(maxsplit=1)
            self.assertEqual(digest, pathlib.Path(path).name)


def certificate(folder, name):
    """A key and a certificate for 127.0.0.1 that it signed itself."""
    key, crt = folder / f"{name}.key", folder / f"{name}.crt"
    run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", crt),
    )
    return key, crt


def htpasswd(folder, user, password):
    """A file of one user for [auth] or for docker-registry."""
    file = folder / "htpasswd"
    file.write_text(run("htpasswd", "-nbB", user, password).stdout)
    return file


def secret(folder, text):
    """A file that only its owner may read."""
    file = folder / "password"
    file.write_text(text)
    file.chmod(0o600)
    return file


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _unpadded(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=")
