"""Parts that tests of real clients have besides a registry and a Larder: containerd, a proxy, a token server."""

import base64
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.parse

from lib import certificate, debian, http_server, parts, scratch
from lib.network import free_port
from lib.process import HANG_SECONDS, Process, run, wait_until


@functools.cache
def cri_messages():
    """The messages of cri.proto, compiled."""
    here = pathlib.Path(__file__).parent
    run("protoc", f"-I{here}", f"--python_out={scratch.FOLDER}", "cri.proto")
    sys.path.insert(0, str(scratch.FOLDER))
    import cri_pb2

    return cri_pb2


@functools.cache
def containerds():
    """The programs of each containerd by its release: Debian 12's, and a 2.x from a later suite."""
    return {"1.6": pathlib.Path("/usr/bin"), "2.x": debian.unpacked("containerd", "forky") / "usr/bin"}


class Proxy(Process):
    """tinyproxy, which tunnels by CONNECT."""

    def __init__(self, folder):
        self.port = free_port()
        config = folder / "tinyproxy.conf"
        config.write_text(f"Port {self.port}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 60\nLogLevel Connect\n")
        self.ports = (self.port,)
        super().__init__("proxy", ["tinyproxy", "-d", "-c", config], folder)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def tunnels(self, port):
        """Tunnels so far to a port."""
        return self.log().count(f"CONNECT 127.0.0.1:{port} ")


class Ingress(Process):
    """nginx as the ingress in front of a pod: who is asked while the pod is down answers for everybody else, with 404."""

    def __init__(self, folder, pod):
        self.port = free_port()
        self.ports = (self.port,)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        config = folder / "nginx.conf"
        config.write_text(
            f"""daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log {folder}/access.log;
  {"".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)}
  server {{
    listen 127.0.0.1:{self.port};
    client_max_body_size 0;
    location / {{
      proxy_pass http://127.0.0.1:{pod.port};
      proxy_set_header Host $http_host;
      error_page 502 504 =404 @nobody;
    }}
    location @nobody {{
      default_type text/plain;
      return 404 "default backend - 404";
    }}
  }}
}}
"""
        )
        super().__init__("ingress", ["/usr/sbin/nginx", "-c", config], folder)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def asked(self, part):
        """Method and status of every request so far whose path has a part in it."""
        lines = (self.folder / "access.log").read_text().splitlines()
        rows = [line.split('"') for line in lines if part in line]
        return [(row[1].split()[0], int(row[2].split()[0])) for row in rows]


class Tokens:
    """A token server as registries use it: signed tokens, for everybody or for who knows the password."""

    def __init__(self, folder, credentials=None):
        self.certificate, self.key = certificate.self_signed(folder, "tokens")
        self.credentials, self.given = credentials, []
        self.server = http_server.serve(self.answer)

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
        http_server.stop(self.server)


class Containerd(Process):
    """A containerd with an empty store, which finds in `hosts` where each registry is. `options` are its own."""

    def __init__(self, folder, release, hosts, *options, prefix=()):
        programs = containerds()[release]
        self.ctr_program, self.socket, self.hosts = programs / "ctr", folder / "s", hosts
        super().__init__("containerd", [programs / "containerd", *options], folder, prefix, with_path(programs))
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
            return call(request, timeout=HANG_SECONDS)

    def stop(self, number=signal.SIGTERM):
        status = super().stop(number)
        run("sh", "-c", f"grep -o '{self.folder}[^ ]*' /proc/mounts | xargs -r umount -l", check=False)
        return status


class Case(parts.Case):
    """A test with a containerd, too."""

    def containerd(self, release, larder):
        """A containerd whose every registry is a Larder, which has the last word."""
        folder = self.new_folder("containerd")
        hosts, config = folder / "hosts", folder / "config.toml"
        address = f"http://127.0.0.1:{larder.port}"
        for registry in ("docker.io", "quay.io", "ghcr.io"):
            (hosts / registry).mkdir(parents=True)
            (hosts / registry / "hosts.toml").write_text(
                f'server = "{address}"\n[host."{address}"]\n  capabilities = ["pull", "resolve"]\n'
            )
        section = "io.containerd.grpc.v1.cri" if release == "1.6" else "io.containerd.cri.v1.images"
        config.write_text(
            f'''version = {2 if release == "1.6" else 3}
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{folder}/s"
[plugins."{section}".registry]
config_path = "{hosts}"
'''
        )
        return self.start(Containerd(folder, release, hosts, "-c", config))

    def podman_command(self, *arguments):
        """podman, with a storage of the test's own."""
        storage = ("--root", self.folder / "podman", "--runroot", self.folder / "podman-run", "--storage-driver", "vfs")
        return ("podman", *storage, *arguments)

    def check_blobs(self, larder):
        """Every file under blobs/ hashes to its name, by sha256sum and not by Larder."""
        blobs = sorted((larder.data / "blobs/sha256").iterdir())
        self.assertTrue(blobs)
        for line in run("sha256sum", *blobs).stdout.splitlines():
            digest, path = line.split(maxsplit=1)
            self.assertEqual(digest, pathlib.Path(path).name)


def with_path(*folders):
    """An environment in which programs are looked for in some folders first."""
    return {"PATH": ":".join([*map(str, folders), os.environ["PATH"]])}


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
