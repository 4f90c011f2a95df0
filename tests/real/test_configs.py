"""Every file that `larder config CLIENT --write` makes, read by the client itself: online, with the uplink gone, and
with Larder gone, when the origin is asked after it (fallback) or nobody is (sealed)."""

import json
import pathlib
import random
import shutil
import signal
import time
import tomllib
import unittest

import yaml

import lab

from lib import certificate, debian, environment, images, skopeo
from lib.process import Process, run, wait_until

IMAGE = "docker.io/lab/app:latest"
# containerd's release, and the version of the configuration that is there before.
LAYOUTS = (("1.6", 2), ("2.x", 3), ("2.x", 2))


class Root:
    """A board's file system in the making."""

    def __init__(self, folder, larder):
        self.path, self.larder = folder, larder
        folder.mkdir()

    def put(self, path, text):
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def text(self, path):
        return (self.path / path).read_text()

    def config(self, client, *options, check=True):
        return self.larder.run("config", client, "--root", self.path, *options, check=check)

    def seen_as(self, folder):
        """What has a command run in a mount namespace where the root's folder stands at its place in /etc."""
        script = f'mount --bind {self.path}/{folder} /{folder} && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", script, "sh")


class Containerd(lab.Containerd):
    """A containerd that reads the files of a root and nothing else."""

    def __init__(self, folder, release, root):
        pathlib.Path("/etc/containerd").mkdir(exist_ok=True)
        # A configuration without a version gets one from Larder, so places are given on the command line.
        places = ("--root", folder / "root", "--state", folder / "state", "-a", folder / "s")
        hosts, prefix = root.path / "etc/containerd/certs.d", root.seen_as("etc/containerd")
        super().__init__(folder, release, hosts, *places, prefix=prefix)


class Configs(lab.Case):
    def setUp(self):
        super().setUp()
        self.app, _ = images.built()
        self.origin = self.registry()
        self.origin.push(self.app, "1.0", "lab/app:latest")

    def root(self, larder):
        return Root(self.folder / f"root-{time.monotonic_ns()}", larder)

    def board(self, release, root):
        return self.start(Containerd(self.new_folder("containerd"), release, root))

    def pulled(self, board, image=IMAGE):
        """What CRI's pull and ctr's make of it: whether both have the right digest."""
        digest = self.app.digest("1.0")
        board.cri_pull(image)
        self.assertIn(f"{image.rsplit(':', 1)[0]}@{digest}", board.cri_digests(image))
        board.pull(image)
        self.assertEqual(board.digest(image), digest)

    def refused(self, board, image=IMAGE):
        import grpc

        with self.assertRaises(grpc.RpcError):
            board.cri_pull(image)
        self.assertNotEqual(board.pull(image, check=False).returncode, 0)

    def test_containerd(self):
        for release, version in LAYOUTS:
            for profile in ("fallback", "sealed"):
                with self.subTest(containerd=release, version=version, profile=profile):
                    larder = self.larder(self.origin)
                    root = self.root(larder)
                    # What an owner has written there stays.
                    root.put("etc/containerd/config.toml", f"# mine\nversion = {version}\n[metrics]\n  address = ''\n")
                    before = root.text("etc/containerd/config.toml")
                    root.config("containerd", "--write", "--profile", profile)
                    self.assertTrue(root.text("etc/containerd/config.toml").startswith(before))
                    self.pulled(self.board(release, root))
                    self.assertEqual([image["state"] for image in larder.says("ls")], ["complete"])
                    # The uplink gone: a board with an empty store.
                    self.origin.stop(signal.SIGKILL)
                    self.pulled(self.board(release, root))
                    # Larder gone, the uplink there.
                    self.origin.start()
                    larder.stop(signal.SIGKILL)
                    board = self.board(release, root)
                    if profile == "fallback":
                        self.pulled(board)
                    else:
                        self.refused(board)
                    for said in ("unknown", "undecoded", "deprecated"):
                        self.assertNotIn(f"{said} key", board.log().lower())
                    root.config("containerd", "--undo")
                    self.assertEqual(root.text("etc/containerd/config.toml"), before)
                    self.assertEqual([path.name for path in (root.path / "etc/containerd").iterdir()], ["config.toml"])
                    board.stop()

    def test_containerd_with_no_configuration_of_its_own(self):
        for release in ("1.6", "2.x"):
            with self.subTest(containerd=release):
                # A registry with a port in its name is one too.
                named = f"127.0.0.1:{self.origin.port}"
                larder = self.larder({"docker.io": {"url": self.origin.url}, named: {"url": self.origin.url}})
                root = self.root(larder)
                root.config("containerd", "--write", "--profile", "sealed")
                for image in (IMAGE, f"{named}/lab/app:latest"):
                    self.pulled(self.board(release, root), image)
                images = {image["image"]: image["state"] for image in larder.says("ls")}
                self.assertEqual(images, {IMAGE: "complete", f"{named}/lab/app:latest": "complete"})
                # A registry that Larder does not know is not asked past it: _default is sealed too.
                board = self.board(release, root)
                other = self.registry()
                other.push(self.app, "1.0", "lab/app:latest")
                asked = len(other.requests())
                self.refused(board, f"127.0.0.1:{other.port}/lab/app:latest")
                self.assertEqual(len(other.requests()), asked)
                board.stop()

    def test_containerd_by_https(self):
        """The files name the certificate that Larder shows, also one that signed itself."""
        larder = self.larder(self.origin, tls=certificate.self_signed(self.folder, "board"))
        for release in ("1.6", "2.x"):
            for profile in ("fallback", "sealed"):
                with self.subTest(containerd=release, profile=profile):
                    root = self.root(larder)
                    root.config("containerd", "--write", "--profile", profile)
                    hosts = root.text("etc/containerd/certs.d/docker.io/hosts.toml")
                    self.assertIn(f'[host."https://127.0.0.1:{larder.port}"]', hosts)
                    # The second of each pair has nothing but Larder.
                    self.origin.stop(signal.SIGKILL)
                    if profile == "fallback":
                        self.origin.start()
                        # Else the board asks the origin itself for what Larder lacks, and the next one finds it lacking.
                        wait_until("the origin's return", lambda: "unreachable" not in str(larder.says("status")))
                    board = self.board(release, root)
                    self.pulled(board)
                    self.assertNotIn("x509", board.log())
                    board.stop()
        self.assertEqual([image["state"] for image in larder.says("ls")], ["complete"])

    def test_containerd_as_its_packages_configure_it(self):
        plugins = {"1.6": "io.containerd.grpc.v1.cri", "2.x": "io.containerd.cri.v1.images"}
        larder = self.larder(self.origin)
        for release, plugin in plugins.items():
            program = lab.containerds()[release] / "containerd"
            texts = {"default": run(program, "config", "default").stdout}
            if release == "1.6":
                # dpkg's own copy, not what this machine's owner made of it.
                texts["Debian"] = (debian.unpacked("containerd") / "etc/containerd/config.toml").read_text()
            for name, text in texts.items():
                with self.subTest(containerd=release, configuration=name):
                    root = self.root(larder)
                    path = "etc/containerd/config.toml"
                    root.put(path, text)
                    root.config("containerd", "--write")
                    expected = tomllib.loads(text)
                    registry = expected["plugins"].setdefault(plugin, {}).setdefault("registry", {})
                    registry["config_path"] = "/etc/containerd/certs.d"
                    self.assertEqual(tomllib.loads(root.text(path)), expected)
                    # containerd's own word for what it has read.
                    read = run(program, "-c", root.path / path, "config", "dump").stdout
                    read = tomllib.loads(read)["plugins"][plugin]["registry"]["config_path"]
                    self.assertEqual(read, "/etc/containerd/certs.d")
                    root.config("containerd", "--undo")
                    self.assertEqual(root.text(path), text)

    def test_containerd_does_not_wait_long_for_a_larder_that_is_not_reached(self):
        larder = self.larder(self.origin)
        drop = ("INPUT", "-p", "tcp", "--dport", str(larder.port), "-j", "DROP")
        root = self.root(larder)
        root.config("containerd", "--write")
        board = self.board("2.x", root)
        run("iptables", "-I", *drop)
        self.addCleanup(run, "iptables", "-D", *drop, check=False)
        began = time.monotonic()
        board.cri_pull(IMAGE)
        took = time.monotonic() - began
        print(f"containerd 2.x, larder not reached: the origin had answered all after {took:.1f} s")
        # Without dial_timeout each request would wait 30 s.
        self.assertLess(took, 30)

    def test_disks_that_take_nothing(self):
        larder = self.larder(self.origin)
        before = "configs:\n  r.corp:\n    auth:\n      username: u\n"
        path = "etc/rancher/k3s/registries.yaml"
        for fault in ("read-only", "full"):
            with self.subTest(fault=fault):
                root = self.root(larder)
                run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root.path)
                self.addCleanup(run, "umount", "-l", root.path, check=False)
                root.put(path, before)
                if fault == "read-only":
                    run("mount", "-o", "remount,ro", root.path)
                else:
                    # The backup finds room, what is to be written does not.
                    (root.path / "etc/larder").mkdir()
                    run("sh", "-c", f"head -c 100000000 /dev/zero > {root.path}/filler", check=False)
                    run("truncate", "--size=-8192", root.path / "filler")
                refused = root.config("k3s", "--write", check=False)
                self.assertEqual(refused.returncode, 1)
                self.assertIn({"read-only": "make it writable first", "full": "No space left"}[fault], refused.stderr)
                self.assertEqual(root.text(path), before)
                self.assertEqual([file.name for file in (root.path / "etc/rancher/k3s").iterdir()], ["registries.yaml"])
                if fault == "full":
                    (root.path / "filler").unlink()
                else:
                    run("mount", "-o", "remount,rw", root.path)
                root.config("k3s", "--write")
                root.config("k3s", "--undo")
                self.assertEqual(root.text(path), before)

    def podman(self, root, *command, check=True):
        return run(*root.seen_as("etc/containers"), *self.podman_command(*command), check=check)

    def test_podman(self):
        for profile in ("fallback", "sealed"):
            with self.subTest(profile=profile):
                larder = self.larder(self.origin)
                root = self.root(larder)
                # Debian's own files, a policy among them, and an owner's.
                shutil.copytree("/etc/containers", root.path / "etc/containers")
                root.put("etc/containers/registries.conf.d/mine.conf", '[[registry]]\nlocation = "r.corp"\nblocked = true\n')
                root.config("podman", "--write", "--profile", profile)
                for step in ("online", "uplink gone", "larder gone"):
                    self.podman(root, "rmi", "--all", "--force")
                    if step == "uplink gone":
                        self.origin.stop(signal.SIGKILL)
                    if step == "larder gone":
                        self.origin.start()
                        larder.stop(signal.SIGKILL)
                    done = self.podman(root, "pull", "--quiet", IMAGE, check=False)
                    expected = step != "larder gone" or profile == "fallback"
                    self.assertEqual(done.returncode == 0, expected, f"{step}: {done.stderr}")
                    if expected:
                        shown = json.loads(self.podman(root, "image", "inspect", IMAGE).stdout)[0]
                        self.assertIn(self.app.digest("1.0"), " ".join(shown["RepoDigests"]))
                    target = self.folder / f"skopeo-{time.monotonic_ns()}"
                    copy = skopeo.command("copy", "--quiet", f"docker://{IMAGE}", f"dir:{target}")
                    copied = run(*root.seen_as("etc/containers"), *copy, check=False)
                    self.assertEqual(copied.returncode == 0, expected, f"{step}: {copied.stderr}")
                # The owner's file is read still.
                blocked = self.podman(root, "pull", "--quiet", "r.corp/x:y", check=False)
                self.assertIn("blocked", blocked.stderr)
                # crio is another name of it.
                root.config("crio", "--undo")
                self.assertFalse((root.path / "etc/containers/registries.conf.d/50-larder.conf").exists())

    def test_docker(self):
        programs = debian.unpacked("docker.io") / "usr"
        larder = self.larder(self.origin)
        root = self.root(larder)
        root.put("etc/docker/daemon.json", '{\n  "max-concurrent-downloads": 2\n}\n')
        root.config("docker", "--write")
        socket, data = self.folder / "d", self.folder / "docker"
        data.mkdir()
        places = ("--data-root", data / "data", "--exec-root", data / "exec", "-H", f"unix://{socket}", "-p", data / "pid")
        alone = ("--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs")
        command = (programs / "sbin/dockerd", "--config-file", root.path / "etc/docker/daemon.json", *places, *alone)
        engine = self.start(Process("dockerd", command, data, environment=lab.with_path(programs / "bin", programs / "sbin")))

        def docker(*arguments, check=True):
            return run(programs / "bin/docker", "-H", f"unix://{socket}", *arguments, check=check)

        wait_until("dockerd", lambda: docker("info", check=False).returncode == 0)
        for uplink in ("there", "gone"):
            if uplink == "gone":
                self.origin.stop(signal.SIGKILL)
                docker("rmi", "--force", "lab/app:latest")
            docker("pull", "--quiet", "lab/app:latest")
            shown = json.loads(docker("image", "inspect", "lab/app:latest").stdout)[0]
            self.assertIn(self.app.digest("1.0"), " ".join(shown["RepoDigests"]))
        engine.stop()
        self.assertEqual(json.loads(root.text("etc/docker/daemon.json"))["max-concurrent-downloads"], 2)

    def test_k3s(self):
        """No K3s runs here: its file is read as YAML and held against K3s' documented rules."""
        larder = self.larder({"docker.io": {"url": self.origin.url}, "r.example:5000": {}})
        url = f"http://127.0.0.1:{larder.port}"
        path = "etc/rancher/k3s/registries.yaml"
        owners = (
            None,
            "",
            "# nothing\n",
            "---\n",
            "mirrors:\n",
            "mirrors:\n  docker.io:\n    endpoint:\n      - \"https://mirror.corp\" # theirs\n",
            "mirrors:\n  'docker.io':\n    endpoint: ['https://mirror.corp', \"https://b\"]\n",
            "mirrors:\n  docker.io:\n    endpoint:\n    - https://mirror.corp\n  ghcr.io:\n",
            "mirrors:\n    ghcr.io:\n        endpoint: []\nconfigs:\n    'r.corp:5000':\n        auth:\n            username: u\n            password: 'p''#:'\n",
            "configs:\n  \"r.corp\":\n    tls:\n      insecure_skip_verify: true",
            "\ufeffmirrors:\r\n  \"*\":\r\n    endpoint:\r\n      - \"https://all\"\r\n",
            "mirrors:\n  r.corp:\n    endpoint:\n      - https://r.corp\n    rewrite:\n      \"^(.*)$\": \"x/$1\"\n",
        )
        printed = larder.run("config", "print").stdout.splitlines()
        names = {line.split('"')[1] for line in printed if line.startswith("[upstream.")}
        self.assertIn("r.example:5000", names)
        for text in owners:
            with self.subTest(text=text):
                root = self.root(larder)
                if text is not None:
                    root.put(path, "")
                    (root.path / path).write_bytes(text.encode())
                before = yaml.safe_load(text or "") or {}
                root.config("k3s", "--write")
                after = yaml.safe_load((root.path / path).read_bytes().decode().lstrip("\ufeff"))
                expected = {**before, "mirrors": {**(before.get("mirrors") or {})}}
                for name in names:
                    had = expected["mirrors"].get(name) or {}
                    # In order, before the default endpoint: Larder first, then what the owner had.
                    expected["mirrors"][name] = {**had, "endpoint": [url, *(had.get("endpoint") or [])]}
                self.assertEqual(after, expected)
                root.config("k3s", "--undo")
                if text is None:
                    self.assertEqual(list(root.path.iterdir()), [])
                else:
                    self.assertEqual((root.path / path).read_bytes(), text.encode())
        # Sealed: nothing else is listed, and K3s' own setting that takes the default endpoint away is set beside it.
        root = self.root(larder)
        root.put("etc/rancher/k3s/config.yaml", "write-kubeconfig-mode: '0644'\n")
        root.config("k3s", "--write", "--profile", "sealed")
        mirrors = yaml.safe_load(root.text(path))["mirrors"]
        self.assertEqual(mirrors, {name: {"endpoint": [url]} for name in names})
        part = yaml.safe_load(root.text("etc/rancher/k3s/config.yaml.d/larder.yaml"))
        self.assertEqual(part, {"disable-default-registry-endpoint": True})
        self.assertEqual(root.text("etc/rancher/k3s/config.yaml"), "write-kubeconfig-mode: '0644'\n")

    def test_k3s_file_of_any_kind(self):
        """Files put together at random: what Larder merges, YAML reads as meant; what it refuses is as it was."""
        larder = self.larder(self.origin)
        url = f"http://127.0.0.1:{larder.port}"
        printed = larder.run("config", "print").stdout.splitlines()
        names = [line.split('"')[1] for line in printed if line.startswith("[upstream.")]
        seed = environment.seed()
        print(f"LARDER_SEED={seed}")
        dice = random.Random(seed)
        merged = refused = 0
        for _ in range(80):
            text = any_yaml(dice)
            root = self.root(larder)
            root.put("etc/rancher/k3s/registries.yaml", "")
            file = root.path / "etc/rancher/k3s/registries.yaml"
            file.write_bytes(text.encode())
            done = root.config("k3s", "--write", check=False)
            if done.returncode != 0:
                refused += 1
                self.assertEqual(file.read_bytes(), text.encode())
            else:
                merged += 1
                before = yaml.safe_load(text) or {}
                expected = {**before, "mirrors": {**(before.get("mirrors") or {})}}
                for name in names:
                    had = expected["mirrors"].get(name) or {}
                    expected["mirrors"][name] = {**had, "endpoint": [url, *(had.get("endpoint") or [])]}
                self.assertEqual(yaml.safe_load(file.read_bytes().decode()), expected, repr(text))
                root.config("k3s", "--undo")
                self.assertEqual(file.read_bytes(), text.encode())
            shutil.rmtree(root.path)
        print(f"{merged} merged, {refused} refused")
        self.assertGreater(min(merged, refused), 5)


USUAL = ("docker.io:", "ghcr.io:", "'quay.io':", '"gcr.io": ', "endpoint:", "- https://a", '- "https://b" # c', "configs:", "x: y")
UNUSUAL = (
    "mirrors:", "rewrite:", 'password: "a: #b"', "pw: 'it''s'", "endpoint: []", 'endpoint: ["https://a", b]', "# c", "- a: b",
    "k: |", "text", "k: &x y", "k: *x", "? a", "k: {a: b}", 'k: "a', 'b"', "---", "...", "\t", "k:v", "k: v: w", '"*":', "-",
    "k: a#b", "k: a #b", "k: [a,", "b]", "k: 'a' b", 'k: "a""b"', "<<:", "k: @x", "k: - a", "- - a", "1: 2", "k: [a]b", "k: ,a",
    "k: [[a], {b: c}]", "'a: b': c", "k: a'b", "'", "k: a:", ":", "k : v",
)  # fmt: skip


def any_yaml(dice):
    """Lines of a registries.yaml and of what YAML has beyond it, at indents that mostly fit."""
    lines, indent = (["mirrors:"], 2) if dice.random() < 0.7 else ([], 0)
    for _ in range(dice.randint(0, 7)):
        piece = dice.choice(USUAL if dice.random() < 0.7 else UNUSUAL)
        lines.append(" " * indent + piece)
        chance = dice.random()
        if piece.rstrip().endswith(":") and chance < 0.75:
            indent += 2
        elif chance < 0.3:
            indent = max(0, indent - dice.randint(1, 3))
        elif chance < 0.35:
            indent += dice.randint(1, 3)
    end = dice.choice(("\n", "\n", "\r\n"))
    return end.join(lines) + dice.choice((end, ""))


if __name__ == "__main__":
    unittest.main()
