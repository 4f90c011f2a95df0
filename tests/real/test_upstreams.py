"""Upstreams as they are in the world: tokens, passwords, an authority of their own, several at once."""

import signal
import unittest

import lab

from lib import certificate, images, skopeo

ALICE = ("alice", "s3cret")
BOARD = ("board", "carry")


class Upstreams(lab.Case):
    def setUp(self):
        super().setUp()
        self.app, self.big = images.built()

    def tokens(self, credentials=None):
        return self.start(lab.Tokens(self.new_folder("tokens"), credentials))

    def auth(self):
        """The part of a configuration that lets the board's clients log in."""
        return f'[auth]\nhtpasswd_file = "{lab.htpasswd(self.folder, *BOARD)}"\n'

    def credentials(self):
        return {"username": ALICE[0], "password_file": lab.secret(self.folder, ALICE[1])}

    def test_a_token_for_everybody(self):
        tokens = self.tokens()
        registry = self.registry(auth=tokens.auth)
        registry.push(self.app, "1.0", "lab/app:latest")
        tokens.given.clear()
        larder = self.larder(registry)
        self.containerd("1.6", larder).cri_pull("docker.io/lab/app:latest")
        self.assertEqual(tokens.given, [("repository:lab/app:pull", True)], "one token serves a pull")
        registry.stop(signal.SIGKILL)
        self.containerd("2.x", larder).cri_pull("docker.io/lab/app:latest")

    def test_a_token_for_who_knows_the_password(self):
        tokens = self.tokens(ALICE)
        registry = self.registry(auth=tokens.auth)
        registry.push(self.app, "1.0", "lab/app:latest", credentials=ALICE)
        self.private(registry)

    def test_basic_authentication(self):
        file = lab.htpasswd(self.folder, *ALICE)
        registry = self.registry(auth={"htpasswd": {"realm": "lab", "path": str(file.rename(self.folder / "alice"))}})
        registry.push(self.app, "1.0", "lab/app:latest", credentials=ALICE)
        self.private(registry)

    def private(self, registry):
        """What Larder fetches with credentials, its own clients get with theirs and not without."""
        larder = self.larder({"docker.io": {"url": registry.url, **self.credentials()}}, self.auth())
        import grpc

        for uplink in ("there", "gone"):
            with self.subTest(uplink=uplink):
                if uplink == "gone":
                    registry.stop(signal.SIGKILL)
                board = self.containerd("2.x", larder)
                with self.assertRaises(grpc.RpcError):
                    board.cri_pull("docker.io/lab/app:latest")
                with self.assertRaises(grpc.RpcError):
                    board.cri_pull("docker.io/lab/app:latest", ("board", "wrong"))
                board.cri_pull("docker.io/lab/app:latest", BOARD)
                self.assertIn(f"docker.io/lab/app@{self.app.digest('1.0')}", board.cri_digests("docker.io/lab/app:latest"))

    def test_an_authority_of_its_own(self):
        authority, key = certificate.self_signed(self.folder, "authority")
        registry = self.registry(tls=(authority, key))
        registry.push(self.app, "1.0", "lab/app:latest")
        larder = self.larder({"docker.io": {"url": registry.url, "ca_file": authority}})
        self.containerd("2.x", larder).cri_pull("docker.io/lab/app:latest")
        registry.stop(signal.SIGKILL)
        self.containerd("1.6", larder).cri_pull("docker.io/lab/app:latest")

        registry.start()
        stranger = self.larder({"docker.io": {"url": registry.url}})
        status, _, _ = stranger.ask("/v2/lab/app/manifests/latest?ns=docker.io")
        self.assertEqual(status, 502)
        self.assertIn("the certificate is self-signed (ca_file can name it)", stranger.log())

    def test_through_a_proxy(self):
        authority, key = certificate.self_signed(self.folder, "authority")
        for named, scheme in (("configuration", "http"), ("environment", "https")):
            with self.subTest(named_in=named, scheme=scheme):
                proxy = self.start(lab.Proxy(self.new_folder("proxy")))
                registry = self.registry(tls=(authority, key) if scheme == "https" else None)
                registry.push(self.app, "1.0", "lab/app:latest")
                upstream = {"url": registry.url} | ({"ca_file": authority} if scheme == "https" else {})
                if named == "configuration":
                    larder = self.larder({"docker.io": upstream}, f'[fetch]\nproxy = "{proxy.url}"\n')
                else:
                    larder = self.larder({"docker.io": upstream}, environment={"HTTPS_PROXY": proxy.url})
                self.containerd("2.x", larder).cri_pull("docker.io/lab/app:latest")
                self.assertGreater(proxy.tunnels(registry.port), 0, "nothing may go past the proxy")
                # A proxy that is gone is an outage like any other.
                proxy.stop(signal.SIGKILL)
                self.containerd("1.6", larder).cri_pull("docker.io/lab/app:latest")
                self.assertTrue(larder.tier().endswith("last-complete"), larder.log())

    def test_several_registries_at_once(self):
        one, two = self.registry(), self.registry()
        one.push(self.app, "1.0", "lab/app:latest")
        two.push(self.app, "1.1", "lab/app:latest")
        two.push(self.big, "1.0", "lab/big:1.0")
        larder = self.larder({"docker.io": {"url": one.url}, "quay.io": {"url": two.url}})
        board = self.containerd("2.x", larder)
        board.cri_pull("docker.io/lab/app:latest")
        board.cri_pull("quay.io/lab/app:latest")
        board.cri_pull("quay.io/lab/big:1.0")
        # One of them goes; the other is none the worse for it.
        one.stop(signal.SIGKILL)
        other = self.containerd("1.6", larder)
        other.cri_pull("docker.io/lab/app:latest")
        other.cri_pull("quay.io/lab/app:latest")
        self.assertIn(f"docker.io/lab/app@{self.app.digest('1.0')}", other.cri_digests("docker.io/lab/app:latest"))
        self.assertIn(f"quay.io/lab/app@{self.app.digest('1.1')}", other.cri_digests("quay.io/lab/app:latest"))
        states = {row["name"]: row["state"] for row in larder.says("status")["upstreams"]}
        self.assertIn("unreachable", states["docker.io"])
        self.assertEqual(states["quay.io"], "up")
        # The image's layer that both versions share is on the disk once, and everything is what it says.
        self.check_blobs(larder)

    def test_commands_with_the_server_running_and_stopped(self):
        registry = self.registry()
        registry.push(self.app, "1.0", "lab/app:latest")
        larder = self.larder(registry)
        for version in ("1.0", "1.1"):
            registry.push(self.app, version, "lab/app:latest")
            skopeo.copy(skopeo.on_loopback(larder.port, "lab/app:latest"), f"dir:{self.folder}/{version}")
        for state in ("running", "stopped"):
            with self.subTest(server=state):
                if state == "stopped":
                    self.assertEqual(larder.stop(), 0)
                (image,) = larder.says("ls")
                self.assertEqual((image["image"], image["state"]), ("docker.io/lab/app:latest", "complete"))
                history = larder.says("history", "docker.io/lab/app:latest")["versions"]
                self.assertEqual([row["digest"] for row in history], [self.app.digest("1.1"), self.app.digest("1.0")])
                why = larder.says("why", "docker.io/lab/app:latest")
                self.assertEqual(why["offline"], [self.app.digest("1.1"), "last-complete"])
                self.assertTrue(all(part["here"] for part in why["parts"]))
                self.assertEqual(larder.says("status")["running"], state == "running")
                self.assertEqual(larder.says("verify")["bad"], [])
                larder.run("config", "check")
        larder.run("rollback", "docker.io/lab/app:latest")
        larder.start()
        _, headers, _ = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
        self.assertEqual(headers["Docker-Content-Digest"], self.app.digest("1.0"))
        registry.stop(signal.SIGKILL)
        _, headers, _ = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
        self.assertEqual(headers["Docker-Content-Digest"], self.app.digest("1.0"))


if __name__ == "__main__":
    unittest.main()
