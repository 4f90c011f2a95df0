"""Ways to an upstream: dead ones beside those that work, proxies, and logins that change."""

import os
import signal
import time
import unittest

import lab

from lib import images, namespace, skopeo
from lib.network import free_port
from lib.process import Process, run, wait_until

V6, V4, OTHER_V4 = "2001:db8:77::1", "10.77.0.1", "10.77.0.2"
# RFC 8305's pause, twice: what a new connection may take where it is known which address works. The machine may be busy.
WARM_SECONDS_MAX = 0.5
COLD_SECONDS_MAX = 1.5


class Socks(Process):
    """microsocks, a SOCKS5 proxy."""

    def __init__(self, folder, address="127.0.0.1", login=None):
        self.port, self.address = free_port(), address
        self.ports = (self.port,)
        options = ["-u", login[0], "-P", login[1]] if login else []
        super().__init__("socks", ["microsocks", "-i", address, "-p", self.port, *options], folder)

    def connections(self):
        """Connections so far."""
        return self.log().count("connected to")


class Paths(lab.Case):
    def setUp(self):
        super().setUp()
        self.app, self.big = images.built()

    def network(self, names):
        """A network of the test's own, in which each name has some addresses, in this order."""
        space = namespace.Namespace(f"lard-p{os.getpid()}")
        self.addCleanup(space.remove)
        for address in {address for addresses in names.values() for address in addresses}:
            space.has(address)
        hosts = self.folder / "hosts"
        lines = [f"{address} {name}\n" for name, addresses in names.items() for address in addresses]
        hosts.write_text("".join(lines) + "127.0.0.1 localhost\n")
        return space, namespace.knowing(hosts)

    def push(self, registry, version):
        source = f"oci:{self.app.path}:{version}"
        target = f"docker://{registry.address}:{registry.port}/lab/app:latest"
        skopeo.copy(source, target, "--all")

    def first_answer(self, larder, registry):
        """Seconds of the first question after the registry has closed its connections, and where the answer is from."""
        registry.stop(signal.SIGKILL)
        registry.start()
        began = time.monotonic()
        tier = larder.tier()
        return time.monotonic() - began, tier

    def behind_a_dead_path(self, names, dead, more="", url="http://registry.lab:{}", beside=lambda: None):
        """A moved tag is found although the first address of each name leads nowhere."""
        space, prefix = self.network(names)
        with space.inside():
            beside()
            registry, neighbour = self.registry(address=V4), self.registry(address=V4)
            self.push(registry, "1.0")
            self.push(neighbour, "1.0")
            space.drops(dead)
            upstreams = {
                "docker.io": {"url": url.format(registry.port)},
                "quay.io": {"url": f"http://{V4}:{neighbour.port}"},
            }
            larder = self.larder(upstreams, more.format(**vars(self)), prefix=prefix)
            began = time.monotonic()
            skopeo.copy(skopeo.on_loopback(larder.port, "lab/app:latest"), f"dir:{self.folder}/copy")
            copied = time.monotonic() - began
            self.push(registry, "1.1")
            took = [self.first_answer(larder, registry) for _ in range(5)]
            print(f"{self.id()}: copied in {copied:.2f} s, then", *(f"{seconds:.3f} s" for seconds, _ in took))
            self.assertTrue(all(tier.endswith("upstream") for _, tier in took), took)
            self.assertLess(min(seconds for seconds, _ in took), WARM_SECONDS_MAX)
            # The one that knows nothing yet.
            fresh = self.larder(upstreams, more.format(**vars(self)), prefix=prefix)
            began = time.monotonic()
            status, headers, _ = fresh.ask("/v2/lab/app/manifests/latest?ns=docker.io")
            self.assertLess(time.monotonic() - began, COLD_SECONDS_MAX, fresh.log())
            self.assertEqual((status, headers["Docker-Content-Digest"]), (200, self.app.digest("1.1")))
            status, _, _ = larder.ask("/v2/lab/app/manifests/latest?ns=quay.io")
            self.assertEqual(status, 200)
            self.assertIn("up", {row["name"]: row["state"] for row in larder.says("status")["upstreams"]}["docker.io"])

    def test_ipv6_that_drops_packets(self):
        self.behind_a_dead_path({"registry.lab": (V6, V4)}, V6)

    def test_one_of_several_addresses_of_ipv4(self):
        self.behind_a_dead_path({"registry.lab": (OTHER_V4, V4)}, OTHER_V4)

    def test_a_proxy_with_a_dead_address(self):
        self.socks_url = None

        def proxy():
            socks = self.start(Socks(self.new_folder("socks"), address=V4))
            self.socks_url = f"socks5h://proxy.lab:{socks.port}"

        names = {"proxy.lab": (V6, V4), "registry.lab": (V4,)}
        self.behind_a_dead_path(names, V6, '[fetch]\nproxy = "{socks_url}"\n', f"http://{V4}:{{}}", proxy)

    def test_through_a_socks_proxy(self):
        login = ("us er", "p:w")
        for scheme, named in (("socks5", "configuration"), ("socks5h", "environment")):
            with self.subTest(scheme=scheme, named_in=named):
                proxy = self.start(Socks(self.new_folder("socks"), login=login))
                registry = self.registry()
                registry.push(self.app, "1.0", "lab/app:latest")
                url = f"{scheme}://us%20er:p%3Aw@127.0.0.1:{proxy.port}"
                upstreams = {"docker.io": {"url": f"http://localhost:{registry.port}"}}
                if named == "configuration":
                    larder = self.larder(upstreams, f'[fetch]\nproxy = "{url}"\n')
                else:
                    larder = self.larder(upstreams, environment={"ALL_PROXY": url})
                self.containerd("2.x", larder).cri_pull("docker.io/lab/app:latest")
                self.assertGreater(proxy.connections(), 0, "nothing may go past the proxy")
                stranger = self.larder(upstreams, f'[fetch]\nproxy = "{url.replace("p%3Aw", "wrong")}"\n')
                self.assertEqual(stranger.ask("/v2/lab/app/manifests/latest?ns=docker.io")[0], 502)
                self.assertIn("does not accept the user name", stranger.log())
                # A proxy that is gone is an outage like any other.
                proxy.stop(signal.SIGKILL)
                self.containerd("1.6", larder).cri_pull("docker.io/lab/app:latest")
                self.assertTrue(larder.tier().endswith("last-complete"), larder.log())

    def test_a_password_that_is_good_for_some_hours(self):
        """As ECR's: the registry takes another from now on, and a timer writes it into the file."""
        accounts = lab.htpasswd(self.folder, "alice", "first").rename(self.folder / "accounts")
        registry = self.registry(auth={"htpasswd": {"realm": "lab", "path": str(accounts)}})
        registry.push(self.app, "1.0", "lab/app:latest", credentials=("alice", "first"))
        password = lab.secret(self.folder, "first")
        users = lab.htpasswd(self.folder, "board", "carry")
        keys = {"url": registry.url, "username": "alice", "password_file": password}
        larder = self.larder({"docker.io": keys}, f'[auth]\nhtpasswd_file = "{users}"\n')
        board = {"Authorization": lab.basic("board", "carry")}
        path = "/v2/lab/app/manifests/latest?ns=docker.io"
        self.assertEqual(larder.ask(path, headers=board)[0], 200)
        for turn in range(3):
            with self.subTest(turn=turn):
                new = self.folder / "password.new"
                new.write_text(f"other{turn}")
                new.chmod(0o600)
                accounts.write_text(run("htpasswd", "-nbB", "alice", f"other{turn}").stdout)
                # The registry looks at its own file when it is asked.
                wait_until("the registry's new password", lambda: self.takes(registry, f"other{turn}"))
                new.rename(password)
                status, headers, _ = larder.ask(path, headers=board)
                self.assertEqual(status, 200, larder.log())
                self.assertTrue(headers["Cache-Status"].endswith("upstream"), headers)

    def takes(self, registry, password):
        command = ("skopeo", "inspect", "--raw", "--tls-verify=false", "--creds", f"alice:{password}")
        return run(*command, skopeo.on_loopback(registry.port, "lab/app:latest"), check=False).returncode == 0


if __name__ == "__main__":
    unittest.main()
