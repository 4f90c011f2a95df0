"""Clients straight against upstreams that misbehave, and through Larder against the same: what each has stored is equal.

Where a client succeeds straight, it must succeed through Larder with the same bytes. Where it fails straight, Larder may
do better, and must not hand out anything else.
"""

import contextlib
import gzip
import hashlib
import http.client
import json
import re
import subprocess
import unittest
import urllib.parse

import lab

from lib import http_client, http_server, images, oci, process, skopeo

REPOSITORY = "lab/app"
# What only this upstream's token server understands.
STATED_SCOPE = f"repository:hub/{REPOSITORY}:pull"
# A client that needs longer for so small an image goes round in circles.
CLIENT_SECONDS_MAX = 30
TAGS = [f"1.{n}" for n in range(7)]
PAGE_TAGS = 3
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
# What concerns a connection, not an answer.
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "date"}


def run(*command):
    """The outcome of a client; one that does not end has failed."""
    try:
        return process.run(*command, check=False, timeout=CLIENT_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1)


class Answer:
    """An answer on its way to a client, which a trick may change."""

    def __init__(self, status, headers, body, length=None):
        self.status, self.headers, self.body, self.chunked = status, headers, body, False
        # What Content-Length says.
        self.length = length if length is not None else str(len(body))

    def replace(self, status, body=b"", **headers):
        self.status, self.body, self.length = status, body, str(len(body))
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def send(self, request):
        # A client may go when it has what it wants.
        with contextlib.suppress(ConnectionError):
            self._send(request)

    def _send(self, request):
        request.send_response(self.status)
        for name, value in self.headers.items():
            # As it is, in UTF-8.
            request.send_header(name, value.encode().decode("latin-1"))
        request.send_header(*(("Transfer-Encoding", "chunked") if self.chunked else ("Content-Length", self.length)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if not self.chunked:
            request.wfile.write(self.body)
            return
        for at in range(0, len(self.body), 4_000):
            piece = self.body[at : at + 4_000]
            request.wfile.write(b"%x;signature=%s\r\n" % (len(piece), hashlib.sha256(piece).hexdigest().encode()))
            request.wfile.write(piece + b"\r\n")
        request.wfile.write(b"0\r\n\r\n")


class Misbehaving:
    """A registry behind a proxy that does one thing wrong: what the method named `trick` does to each answer."""

    name = "upstream"

    def __init__(self, registry, trick):
        self.registry, self.trick = registry, getattr(self, trick)
        self.server = http_server.serve(self.answer)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, request):
        self.trick(request, answer := self.forward(request, request.path))
        answer.send(request)

    def forward(self, request, path):
        """The registry's answer."""
        # Some clients send a line for each type that they accept.
        names = {name for name in request.headers if name.lower() not in HOP_HEADERS}
        headers = {name: ", ".join(request.headers.get_all(name)) for name in names}
        connection = http.client.HTTPConnection("127.0.0.1", self.registry.port, timeout=60)
        try:
            # Some clients send what is not ASCII as it is.
            target = urllib.parse.quote(path, safe=PRINTABLE, encoding="latin-1")
            connection.request(request.command, target, headers=headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_HEADERS}
            return Answer(answer.status, kept, answer.read(), answer.headers.get("Content-Length"))
        finally:
            connection.close()

    def stop(self):
        http_server.stop(self.server)

    # -- Tricks --------------------------------------------------------------------------------------------------

    def nothing(self, request, answer):
        """It behaves."""

    def head_is_refused(self, request, answer):
        if is_head_of_manifest(request):
            answer.replace(405)

    def head_is_forbidden(self, request, answer):
        if is_head_of_manifest(request):
            answer.replace(403)

    def head_finds_nothing(self, request, answer):
        if is_head_of_manifest(request):
            answer.replace(404)

    def head_says_zero(self, request, answer):
        if is_head_of_manifest(request):
            answer.length = "0"

    def head_says_another_length(self, request, answer):
        if is_head_of_manifest(request):
            answer.length = "77"

    def head_says_another_type(self, request, answer):
        if is_head_of_manifest(request):
            answer.headers["Content-Type"] = "application/octet-stream"

    def no_digest(self, request, answer):
        answer.headers.pop("Docker-Content-Digest", None)

    def falsely_encoded(self, request, answer):
        if is_manifest(request):
            answer.headers["Content-Encoding"] = "aws-chunked"

    def truly_encoded(self, request, answer):
        if is_manifest(request) and answer.body:
            answer.headers["Content-Encoding"] = "gzip"
            answer.body = gzip.compress(answer.body, mtime=0)
            answer.length = str(len(answer.body))

    def tokens_moved(self, request, answer):
        """Its challenge names a realm that has moved."""
        path, _, query = request.path.partition("?")
        if path == "/moved":
            answer.replace(301, Location=f"{self.registry.realm}?{query}")
        elif challenge := answer.headers.get("Www-Authenticate"):
            answer.headers["Www-Authenticate"] = re.sub('realm="[^"]*"', f'realm="{self.url}/moved"', challenge)

    def scope_is_stated(self, request, answer):
        """Its token server gives nothing for a scope that is not the challenge's."""
        path, _, query = request.path.partition("?")
        if path == "/token":
            asked = urllib.parse.parse_qs(query)
            known = STATED_SCOPE in " ".join(asked.get("scope", [])).split()
            scope = f"repository:{REPOSITORY}:pull" if known else ""
            real = urllib.parse.urlparse(self.registry.realm)
            query = urllib.parse.urlencode({"service": asked.get("service", [""])[0], "scope": scope})
            _, _, body = http_client.request("127.0.0.1", real.port, "GET", f"{real.path}?{query}")
            answer.replace(200, body, Content_Type="application/json")
        elif challenge := answer.headers.get("Www-Authenticate"):
            realm = re.sub('realm="[^"]*"', f'realm="{self.url}/token"', challenge)
            answer.headers["Www-Authenticate"] = re.sub('scope="[^"]*"', f'scope="{STATED_SCOPE}"', realm)

    def pages_are_opaque(self, request, answer):
        """It pages by a token of its own, and by nothing else."""
        path, _, query = request.path.partition("?")
        if not path.endswith("/tags/list"):
            return
        at = int(urllib.parse.parse_qs(query).get("cursor", ["0"])[0])
        page = {"name": REPOSITORY, "tags": TAGS[at : at + PAGE_TAGS]}
        answer.replace(200, json.dumps(page).encode(), Content_Type="application/json")
        if at + PAGE_TAGS < len(TAGS):
            answer.headers["Link"] = f'<{path}?cursor={at + PAGE_TAGS}>; rel="next"'

    def pages_are_small(self, request, answer):
        """It refuses to list more than 100 at a time."""
        path, _, query = request.path.partition("?")
        if path.endswith("/tags/list") and int(urllib.parse.parse_qs(query).get("n", ["0"])[0]) > 100:
            answer.replace(413, b'{"errors":[{"code":"SIZE_INVALID","message":"n"}]}', Content_Type="application/json")

    def blobs_are_elsewhere(self, request, answer):
        """It redirects to a relative address in UTF-8."""
        digest = request.path.partition("?")[0].rpartition("/")[2]
        if "/blobs/" in request.path:
            answer.replace(307, Location=f"../../../größe/{digest}?sig=é")
        elif request.path.startswith("/v2/gr%C3%B6%C3%9Fe/"):
            blob = self.forward(request, f"/v2/{REPOSITORY}/blobs/{digest}")
            answer.status, answer.headers, answer.body, answer.length = blob.status, blob.headers, blob.body, blob.length

    def bodies_are_chunked(self, request, answer):
        answer.chunked = request.command == "GET"


def is_manifest(request):
    return "/manifests/" in request.path


def is_head_of_manifest(request):
    return request.command == "HEAD" and is_manifest(request)


class Compared(lab.Case):
    def setUp(self):
        super().setUp()
        self.image = images.Layout(self.folder / "image")
        parts = [images.layer(self.folder, [], {f"etc/{n}": bytes([n]) * 90_000 * n}) for n in (1, 2)]
        for tag in TAGS:
            self.image.tag(tag, {"amd64": parts, "arm64": parts[:1]})
        self.open = self.filled(self.registry())

    def filled(self, registry):
        for tag in TAGS:
            registry.push(self.image, tag, f"{REPOSITORY}:{tag}")
        return registry

    def guarded(self):
        """The same registry with a token server."""
        tokens = self.start(lab.Tokens(self.new_folder("tokens")))
        registry = self.registry(auth=tokens.auth)
        registry.realm = tokens.auth["token"]["realm"]
        return self.filled(registry)

    def compare(self, tricks, client, registry=None):
        """Has `client` ask each upstream, straight and through Larder; it returns whether it succeeded and what it has."""
        for trick in tricks:
            with self.subTest(client=client.__name__, upstream=trick):
                upstream = Misbehaving(registry or self.open, trick)
                larder = self.larder({"docker.io": {"url": upstream.url}})
                try:
                    status, stored = client(upstream)
                    through_status, through = client(larder)
                    told = larder.log()[-2_000:]
                finally:
                    larder.stop()
                    upstream.stop()
                self.assertTrue(status == 0 or trick != "nothing", "an upstream that behaves serves everybody")
                if status == 0:
                    self.assertTrue(stored, "straight, something must be stored")
                    self.assertEqual((through_status, through), (status, stored), told)
                elif through_status == 0:
                    self.assertEqual(through, client(self.open_port())[1], told)

    def open_port(self):
        """The registry as it is, for a client."""
        return self.open

    # -- Clients: each asks a port, with a store of its own ---------------------------------------------------------

    def skopeo(self, server):
        target = self.new_store("skopeo")
        done = run(*skopeo.copy_command(skopeo.on_loopback(server.port, f"{REPOSITORY}:1.0"), f"dir:{target}"))
        return done.returncode, {
            file.name: (file.stat().st_size, oci.digest_of(file.read_bytes())) for file in sorted(target.glob("*"))
        } if done.returncode == 0 else None

    def skopeo_tags(self, server):
        done = run(
            *skopeo.command("list-tags", "--tls-verify=false", skopeo.on_loopback(server.port, REPOSITORY))
        )
        return done.returncode, sorted(json.loads(done.stdout)["Tags"]) if done.returncode == 0 else None

    def podman(self, server):
        store = self.new_store("podman")
        command = ("podman", "--root", store / "root", "--runroot", store / "run", "--storage-driver", "vfs")
        image = f"127.0.0.1:{server.port}/{REPOSITORY}:1.0"
        done = run(*command, "pull", "--quiet", "--tls-verify=false", image)
        if done.returncode != 0:
            return done.returncode, None
        shown = json.loads(run(*command, "image", "inspect", image).stdout)[0]
        digests = sorted(name.partition("@")[2] for name in shown["RepoDigests"])
        return 0, (shown["Id"], shown["Digest"], digests, shown["RootFS"]["Layers"], shown["Size"])

    def containerd_1_6(self, server):
        return self.containerd_has("1.6", server)

    def containerd_2(self, server):
        return self.containerd_has("2.x", server)

    def containerd_has(self, release, server):
        board = self.containerd(release, server)
        try:
            done = board.pull(f"docker.io/{REPOSITORY}:1.0", "--platform", "linux/amd64", check=False)
            listed = board.ctr("content", "ls").stdout.splitlines()[1:]
            return done.returncode, sorted(tuple(line.split()[:2]) for line in listed) if done.returncode == 0 else None
        finally:
            board.stop()

    def new_store(self, name):
        self.stores = getattr(self, "stores", 0) + 1
        store = self.folder / f"{name}-{self.stores}"
        store.mkdir()
        return store

    # -- Clients against upstreams ----------------------------------------------------------------------------------

    MANIFESTS = (
        "nothing",
        "head_is_refused",
        "head_is_forbidden",
        "head_finds_nothing",
        "head_says_zero",
        "head_says_another_length",
        "head_says_another_type",
        "no_digest",
        "falsely_encoded",
        "truly_encoded",
        "blobs_are_elsewhere",
        "bodies_are_chunked",
    )

    def test_skopeo_copies(self):
        self.compare(self.MANIFESTS, self.skopeo)
        self.compare(("nothing", "tokens_moved", "scope_is_stated"), self.skopeo, self.guarded())

    def test_skopeo_lists(self):
        self.compare(("nothing", "pages_are_opaque", "pages_are_small", "bodies_are_chunked"), self.skopeo_tags)

    def test_podman_pulls(self):
        self.compare(("nothing", "head_finds_nothing", "falsely_encoded", "blobs_are_elsewhere"), self.podman)

    def test_containerd_pulls(self):
        self.compare(("nothing", "head_is_refused"), self.containerd_1_6)
        self.compare(("nothing", "head_finds_nothing", "blobs_are_elsewhere", "bodies_are_chunked"), self.containerd_2)
        self.compare(("tokens_moved", "scope_is_stated"), self.containerd_2, self.guarded())


if __name__ == "__main__":
    unittest.main()
