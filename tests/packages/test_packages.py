"""The packages in a minimal Debian under a real systemd: installed, upgraded, removed, and what the unit does between.

PACKAGES names a folder with one .deb and one tarball for this machine (cross/package.sh makes them), CACHE one where the
Debian may stay for the next time.
"""

import hashlib
import os
import pathlib
import re
import shutil
import signal
import socket
import sys
import time
import unittest

from machine import Machine, make_root
from scripted_registry import ScriptedRegistry

from lib import environment, scratch
from lib.process import run, wait_until

PACKAGES, CACHE = environment.path("PACKAGES"), environment.path("CACHE")
UNITS = ("larder.service", "larder.socket", "larder-retry.timer", "larder-scrub.service", "larder-scrub.timer")
IMAGE = "/v2/library/app"
NS = "?ns=docker.io"
STOP_SECONDS_MAX = 5
EXPOSURE_MAX = 20  # Tenths, as systemd-analyze counts.


def one(pattern):
    (found,) = PACKAGES.glob(pattern)
    return found


class OnMachine(unittest.TestCase):
    """Tests that share one machine, which starts before the first."""

    @classmethod
    def setUpClass(cls):
        folder = scratch.new()
        cls.addClassCleanup(shutil.rmtree, folder, ignore_errors=True)
        cls.machine = Machine(CACHE, folder)
        cls.prepare()
        cls.addClassCleanup(cls.machine.stop)
        cls.machine.start()

    @classmethod
    def prepare(cls):
        pass

    def copy(self, file):
        """Puts a file into the machine's /root."""
        shutil.copy(file, self.machine.root / "root" / pathlib.Path(file).name)
        return f"/root/{pathlib.Path(file).name}"

    def is_active(self, unit="larder.service"):
        return self.machine.run("systemctl", "is-active", unit, check=False).stdout.strip() == "active"

    def wait_until_active(self):
        wait_until("larder's start", lambda: self.is_active() and self.machine.answers())

    def configure(self, registry):
        config = self.machine.root / "etc/larder/larder.toml"
        text = f'[disk]\nmin_free = "16MiB"\n[upstream."docker.io"]\nurl = "{registry.url}"\n'
        config.write_text(text)
        return text

    def pull(self, registry):
        """A whole pull, as a client makes it; how the tag was answered."""
        status, headers, _ = self.machine.request("HEAD", f"{IMAGE}/manifests/latest{NS}")
        self.assertEqual((status, headers["Docker-Content-Digest"]), (200, registry.image.digest))
        status, _, body = self.machine.request("GET", f"{IMAGE}/manifests/{registry.image.digest}{NS}")
        self.assertEqual((status, body), (200, registry.image.manifest))
        for digest in (registry.image.config, registry.layer):
            status, _, body = self.machine.request("GET", f"{IMAGE}/blobs/{digest}{NS}")
            self.assertEqual((status, body), (200, registry.image.blobs[digest]))
        return headers["Cache-Status"]

    def assert_nothing_is_left(self):
        root = self.machine.root
        self.assertNotIn("larder", (root / "etc/passwd").read_text())
        self.assertNotIn("larder", (root / "etc/group").read_text())
        left = []
        for top in ("etc", "usr", "var/lib"):
            left += [path for path in (root / top).rglob("*larder*") if "/var/lib/dpkg/" not in str(path)]
        self.assertEqual(left, [])


class Package(OnMachine):
    """The life of a package, in the order of the tests' names."""

    def test_1_a_fresh_installation_starts_and_is_enabled(self):
        self.machine.run("dpkg", "--install", self.copy(one("*.deb")))
        self.wait_until_active()
        self.assertEqual(self.machine.run("systemctl", "is-enabled", "larder.service").stdout.strip(), "enabled")
        for unit in ("larder.socket", "larder-scrub.timer"):
            self.assertFalse(self.is_active(unit), f"{unit} is for who wants it")
        self.machine.run("systemctl", "enable", "--now", "larder-scrub.timer")
        self.assertIn("larder-scrub.service", self.machine.run("systemctl", "list-timers", "--no-pager").stdout)
        self.assertEqual(self.machine.run("larder", "config", "check").stdout, "/etc/larder/larder.toml: ok\n")
        for file in ("man/man1/larder.1.gz", "man/man1/larder-serve.1.gz", "bash-completion/completions/larder"):
            self.assertTrue((self.machine.root / "usr/share" / file).stat().st_size > 100, file)
        licences = (self.machine.root / "usr/share/doc/larder/copyright").read_text()
        for name in ("Apache License", "ring ", "lmdb-master-sys ", "OpenLDAP", "musl"):
            self.assertIn(name, licences)
        self.machine.run("dpkg", "--verify", "larder")

    def test_2_an_upgrade_keeps_images_and_a_changed_configuration(self):
        registry = ScriptedRegistry(self.machine)
        self.addCleanup(registry.close)
        text = self.configure(registry)
        self.machine.run("systemctl", "restart", "larder")
        self.pull(registry)
        before = self.machine.show("larder.service", "MainPID")
        deb = self.next_version("0.9.1")
        self.machine.run("dpkg", "--install", "--force-confold", self.copy(deb))
        self.wait_until_active()
        self.assertNotEqual(self.machine.show("larder.service", "MainPID"), before, "the new program runs")
        self.assertEqual((self.machine.root / "etc/larder/larder.toml").read_text(), text)
        registry.close()
        self.assertIn("detail=last-complete", self.pull(registry))

    def test_3_an_upgrade_leaves_alone_what_the_owner_stopped_and_disabled(self):
        self.machine.run("systemctl", "disable", "--now", "larder.service")
        deb = self.next_version("0.9.2")
        self.machine.run("dpkg", "--install", "--force-confold", self.copy(deb))
        self.assertFalse(self.is_active())
        enabled = self.machine.run("systemctl", "is-enabled", "larder.service", check=False).stdout.strip()
        self.assertEqual(enabled, "disabled")
        self.machine.run("systemctl", "enable", "--now", "larder.service")

    def test_4_a_removal_stops_it_and_keeps_images_configuration_and_user(self):
        self.machine.run("dpkg", "--remove", "larder")
        self.assertFalse(self.is_active())
        self.assertFalse((self.machine.root / "usr/bin/larder").exists())
        self.assertTrue(any((self.machine.root / "var/lib/larder/blobs/sha256").iterdir()))
        self.assertIn("127.0.0.1", (self.machine.root / "etc/larder/larder.toml").read_text())
        self.machine.run("id", "larder")

        self.machine.run("dpkg", "--install", "--force-confold", self.copy(one("*.deb")))
        self.wait_until_active()
        self.assertEqual(self.machine.run("systemctl", "is-enabled", "larder.service").stdout.strip(), "enabled")
        status, headers, _ = self.machine.request("HEAD", f"{IMAGE}/manifests/latest{NS}")
        self.assertEqual((status, "last-complete" in headers["Cache-Status"]), (200, True))

    def test_5_a_purge_leaves_nothing(self):
        self.machine.run("dpkg", "--purge", "larder")
        self.assertFalse(self.is_active())
        self.assert_nothing_is_left()

    def test_6_the_tarball_does_the_same(self):
        self.machine.run("tar", "-xzf", self.copy(one("*.tar.gz")), "-C", "/root")
        (script,) = (self.machine.root / "root").glob("larder-*/install.sh")
        install = f"/root/{script.parent.name}/install.sh"
        self.machine.run(install)
        self.wait_until_active()
        registry = ScriptedRegistry(self.machine)
        self.addCleanup(registry.close)
        text = self.configure(registry)
        self.machine.run("systemctl", "restart", "larder")
        self.pull(registry)

        # The same again is an upgrade.
        self.machine.run(install)
        self.wait_until_active()
        config = self.machine.root / "etc/larder"
        self.assertEqual((config / "larder.toml").read_text(), text)
        self.assertTrue((config / "larder.toml.new").exists())
        self.assertIn("hit", self.pull(registry))

        self.machine.run(install, "--uninstall")
        self.assertFalse(self.is_active())
        self.assertTrue(any((self.machine.root / "var/lib/larder/blobs/sha256").iterdir()))
        self.machine.run(install)
        self.wait_until_active()
        self.machine.run(install, "--uninstall", "--purge")
        self.assert_nothing_is_left()

    def next_version(self, version):
        """The same package with another version and other defaults in its configuration."""
        folder = scratch.new()
        run("dpkg-deb", "--raw-extract", one("*.deb"), folder / "raw")
        control = folder / "raw/DEBIAN/control"
        control.write_text(re.sub("(?m)^Version: .*$", f"Version: {version}", control.read_text()))
        with (folder / "raw/etc/larder/larder.toml").open("a") as config:
            config.write(f"# Of version {version}.\n")
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", folder / "raw", folder / "next.deb")
        return folder / "next.deb"


class Unit(OnMachine):
    """What the unit does. The package went in while nothing ran, as in the making of an image."""

    @classmethod
    def prepare(cls):
        shutil.copy(one("*.deb"), cls.machine.root / "root/larder.deb")
        cls.machine.chroot("dpkg", "--install", "/root/larder.deb")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.came_up = cls.machine.run("systemctl", "is-active", "larder.service", check=False).stdout.strip()

    def setUp(self):
        self.registry = ScriptedRegistry(self.machine, seed=self.id())
        self.addCleanup(self.registry.close)
        self.configure(self.registry)
        self.machine.run("systemctl", "stop", "larder.socket", "larder.service")
        self.machine.run("systemctl", "reset-failed")
        self.machine.run("sh", "-c", "find /var/lib/larder -mindepth 1 -delete")
        self.machine.run("systemctl", "start", "larder.service")

    def restarts(self):
        return int(self.machine.show("larder.service", "NRestarts"))

    def main_process(self):
        """As this machine numbers it."""
        inside = self.machine.show("larder.service", "MainPID")
        for status in pathlib.Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:
                continue
            if re.search(rf"(?m)^NSpid:\t\d+\t{inside}$", text) and text.startswith("Name:\tlarder\n"):
                return int(status.parent.name)
        raise AssertionError(f"no process is {inside}")

    def niceness(self):
        """Of each thread of the server."""
        stats = pathlib.Path(f"/proc/{self.main_process()}/task").glob("*/stat")
        return {int(stat.read_text().rsplit(")", 1)[1].split()[16]) for stat in stats}

    def test_it_came_up_with_the_board_before_any_network(self):
        # The machine has no network at all.
        self.assertEqual(self.came_up, "active")
        names = ("After", "Wants", "Requires", "Before")
        after, wants, requires, before = self.machine.show("larder.service", *names)
        self.assertNotIn("network", after + wants + requires)
        for unit in ("k3s.service", "k3s-agent.service", "containerd.service", "kubelet.service"):
            self.assertIn(unit, before.split())

    def test_it_is_started_when_it_answers_and_says_so(self):
        self.machine.run("systemctl", "restart", "larder.service")
        self.assertEqual(self.machine.request("GET", "/v2/")[0], 200, "at once, for systemctl waits for READY")
        self.assertIn("answers on 127.0.0.1:5000", self.machine.show("larder.service", "StatusText"))
        self.assertIn("fwd=uri-miss", self.pull(self.registry))
        self.registry.close()
        self.assertIn("detail=last-complete", self.pull(self.registry))

    def test_it_is_hardened(self):
        verify = self.machine.run("systemd-analyze", "verify", "--man=no", *UNITS)
        self.assertEqual(verify.stdout + verify.stderr, "")
        for unit in ("larder.service", "larder-scrub.service"):
            self.machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX}", "--no-pager", unit)
            file = f"/usr/lib/systemd/system/{unit}"
            offline = ("--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager")
            self.machine.run("systemd-analyze", "security", *offline, file)
        wanted = {
            "User": "larder",
            "ProtectSystem": "strict",
            "NoNewPrivileges": "yes",
            "MemoryDenyWriteExecute": "yes",
            "CapabilityBoundingSet": "",
            "MemoryMax": str(256 << 20),
            "TasksMax": "512",
            "WatchdogUSec": "2min",
        }
        self.assertEqual(dict(zip(wanted, self.machine.show("larder.service", *wanted))), wanted)
        status = pathlib.Path(f"/proc/{self.main_process()}/status").read_text()
        for line in ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
            self.assertIn(line, status)
        uid = self.machine.run("id", "-u", "larder").stdout.strip()
        wait_until("a scrub that steps back, as the filter lets it", lambda: 19 in self.niceness())
        self.assertIn(f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}", status)
        mode = (self.machine.root / "var/lib/larder").stat().st_mode & 0o7777
        self.assertEqual(oct(mode), "0o750")

    def test_a_stop_is_quick_and_the_download_goes_on_at_the_next_start(self):
        self.registry.hold_after = 1_500_000
        with self.machine.network():
            client = socket.create_connection(("127.0.0.1", 5000))
        self.addCleanup(client.close)
        # A tag first: a download belongs to an image.
        self.machine.request("HEAD", f"{IMAGE}/manifests/latest{NS}")
        self.machine.request("GET", f"{IMAGE}/manifests/{self.registry.image.digest}{NS}")
        path = f"{IMAGE}/blobs/{self.registry.layer}{NS}"
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: board\r\n\r\n".encode())
        data = self.machine.root / "var/lib/larder"
        # Its name goes on with what stands for the registry and the class.
        name = f"{self.registry.layer.replace(':', '-')}-{'[0-9a-f]' * 16}"
        sizes = lambda: [file.stat().st_size for file in (data / "staging").glob(name)]
        wait_until("half of the layer", lambda: any(size >= 1_400_000 for size in sizes()))

        began = time.monotonic()
        self.machine.run("systemctl", "stop", "larder.service")
        took = time.monotonic() - began
        print(f"a stop in the middle of a download and of a client's answer: {took:.1f} s", file=sys.stderr)
        self.assertLess(took, STOP_SECONDS_MAX)
        self.assertEqual(self.machine.show("larder.service", "Result"), "success")
        [kept] = sizes()
        self.assertGreaterEqual(kept, 1_400_000)

        self.registry.hold_after = None
        self.registry.released.set()
        self.machine.run("systemctl", "start", "larder.service")
        blob = data / "blobs" / self.registry.layer.replace(":", "/")
        wait_until("the rest of the layer, which nobody asks for", blob.exists)
        self.assertEqual(hashlib.sha256(blob.read_bytes()).hexdigest(), self.registry.layer.split(":")[1])
        self.assertEqual(self.registry.asked, [None, f"bytes={kept}-"])

    def test_it_is_started_again_after_a_kill(self):
        self.pull(self.registry)
        before = self.restarts()
        self.machine.run("systemctl", "kill", "--signal=KILL", "larder.service")
        wait_until("a restart", lambda: self.restarts() == before + 1)
        self.wait_until_active()
        self.assertIn("hit", self.pull(self.registry))

    def test_the_watchdog_ends_what_hangs(self):
        self.machine.drop_in("larder.service", "[Service]\nWatchdogSec=4s\n")
        self.addCleanup(self.machine.no_drop_in, "larder.service")
        self.machine.run("systemctl", "restart", "larder.service")
        # Longer than the period: it is fed.
        feeds = lambda: self.machine.show("larder.service", "WatchdogTimestampMonotonic")
        first = feeds()
        wait_until("three signs of life", lambda: int(feeds()) > int(first) + 4_500_000)
        self.assertEqual(self.restarts(), 0)

        os.kill(self.main_process(), signal.SIGSTOP)
        wait_until("a restart", lambda: self.restarts() == 1)
        self.assertIn("Watchdog timeout", self.machine.journal())
        self.wait_until_active()

    def test_what_fails_is_tried_less_often_and_never_given_up(self):
        self.machine.drop_in("larder.service", "[Service]\nRestartSec=100ms\n")
        self.machine.drop_in("larder-retry.timer", "[Timer]\nOnUnitInactiveSec=\nOnUnitInactiveSec=8s\nAccuracySec=1s\n")
        for unit in ("larder.service", "larder-retry.timer"):
            self.addCleanup(self.machine.no_drop_in, unit)
        self.machine.run("systemctl", "stop", "larder.service")
        with self.machine.network(), socket.create_server(("127.0.0.1", 5000)):
            self.machine.run("systemctl", "start", "larder.service", check=False)
            result = lambda: self.machine.show("larder.service", "ActiveState")
            wait_until("an end of the tries", lambda: result() == "failed")
            self.assertIn(self.restarts(), (4, 5), "five tries; older releases count the sixth, which is refused")
            self.assertIn("another program listens there", self.machine.journal())
            wait_until("the timer", lambda: self.is_active("larder-retry.timer"))
        # The start limit of a minute is over for those five only if we say so; the timer is what is tried.
        self.machine.run("systemctl", "reset-failed", "larder.service")
        wait_until("a start by the timer", self.is_active)

        # What is stopped by hand stays so.
        self.machine.run("systemctl", "stop", "larder.service")
        self.assertFalse(self.is_active("larder-retry.timer"))

    def test_a_wrong_configuration_is_not_tried_again_within_seconds(self):
        (self.machine.root / "etc/larder/larder.toml").write_text("platfroms = []\n")
        self.machine.run("systemctl", "restart", "larder.service", check=False)
        wait_until("its end", lambda: self.machine.show("larder.service", "ActiveState") == "failed")
        self.assertEqual(self.machine.show("larder.service", "ExecMainStatus", "NRestarts"), ["2", "0"])
        self.assertIn("platforms", self.machine.journal(), "the nearest key is named")
        wait_until("a timer for the day when it is mended", lambda: self.is_active("larder-retry.timer"))

    def test_a_socket_unit_holds_clients_while_the_server_is_away(self):
        self.machine.run("systemctl", "stop", "larder.service")
        self.machine.run("systemctl", "start", "larder.socket")
        self.assertFalse(self.is_active())
        self.assertEqual(self.machine.request("GET", "/v2/")[0], 200, "the request started it")
        self.assertTrue(self.is_active())
        before = self.machine.show("larder.service", "MainPID")
        self.machine.run("systemctl", "restart", "--no-block", "larder.service")
        refused = 0
        while self.machine.show("larder.service", "MainPID", "ActiveState")[1] != "active" or (
            self.machine.show("larder.service", "MainPID") in ("0", before)
        ):
            refused += self.machine.request("GET", "/v2/")[0] != 200
        self.assertEqual(refused, 0)
        self.pull(self.registry)

    def test_root_and_members_of_the_group_may_use_the_commands(self):
        self.pull(self.registry)
        for user, groups in (("member", ["--groups=larder"]), ("stranger", [])):
            if self.machine.run("id", user, check=False).returncode:
                self.machine.run("useradd", "--create-home", *groups, user)
        image = "docker.io/library/app:latest"
        self.assertIn(image, self.machine.run("larder", "ls").stdout)
        self.assertIn(image, self.machine.run("runuser", "-u", "member", "--", "larder", "ls").stdout)
        stranger = self.machine.run("runuser", "-u", "stranger", "--", "larder", "ls", check=False)
        self.assertEqual(stranger.returncode, 1)

        # With the server stopped root works on the files themselves. They stay larder's, whatever is written anew.
        self.machine.run("systemctl", "stop", "larder.service")
        self.machine.run("rm", "-r", "/var/lib/larder/index")
        self.assertIn(image, self.machine.run("larder", "ls").stdout)
        self.machine.run("larder", "pin", image)
        foreign = self.machine.run("find", "/var/lib/larder", "!", "-user", "larder").stdout
        self.assertEqual(foreign, "")
        self.machine.run("systemctl", "start", "larder.service")
        self.assertIn("hit", self.pull(self.registry))

    def test_a_scrub_finds_what_the_card_has_spoiled(self):
        self.pull(self.registry)
        self.machine.run("systemctl", "start", "larder-scrub.service")
        blob = self.machine.root / "var/lib/larder/blobs" / self.registry.layer.replace(":", "/")
        for serving in (True, False):
            if not serving:
                self.pull(self.registry)
                self.machine.run("systemctl", "stop", "larder.service")
            with blob.open("r+b") as file:
                file.seek(1000)
                file.write(b"rotten")
            scrub = self.machine.run("systemctl", "start", "larder-scrub.service", check=False)
            self.assertNotEqual(scrub.returncode, 0, "it is told that something was bad")
            self.assertFalse(blob.exists(), "what is bad is served no more")
            self.machine.run("systemctl", "reset-failed", "larder-scrub.service")
        self.machine.run("systemctl", "start", "larder.service")
        self.pull(self.registry)

    def test_drop_ins_move_the_store_and_refuse_a_disk_that_is_not_there(self):
        for name in ("ssd", "data-dir", "512mb"):
            drop_in = f"/usr/share/larder/drop-ins/{name}.conf"
            self.machine.run("install", "-D", "-m", "644", drop_in, f"/run/systemd/system/larder.service.d/{name}.conf")
            self.machine.run("systemctl", "daemon-reload")
            self.addCleanup(self.machine.run, "systemctl", "daemon-reload")
            self.addCleanup(self.machine.run, "rm", "-rf", "/run/systemd/system/larder.service.d")
            verify = self.machine.run("systemd-analyze", "verify", "--man=no", "larder.service")
            self.assertEqual(verify.stdout + verify.stderr, "", name)
            if name == "512mb":
                self.machine.run("systemctl", "restart", "larder.service")
                self.assertEqual(self.machine.show("larder.service", "MemoryMax"), str(96 << 20))
                self.pull(self.registry)
            else:
                mount = {"ssd": "/var/lib/larder", "data-dir": "/mnt/ssd"}[name]
                self.machine.run("systemctl", "stop", "larder.service")
                self.machine.run("mkdir", "-p", mount)
                refused = self.machine.run("systemctl", "start", "larder.service", check=False)
                self.assertNotEqual(refused.returncode, 0, f"{mount} is no disk")
                self.machine.run("mount", "-t", "tmpfs", "tmpfs", mount)
                self.addCleanup(self.machine.run, "umount", mount, check=False)
                store = mount
                if name == "data-dir":
                    store = f"{mount}/larder"
                    self.machine.run("install", "-d", "-o", "larder", "-g", "larder", "-m", "750", store)
                    config = self.machine.root / "etc/larder/larder.toml"
                    config.write_text(f'data_dir = "{store}"\n' + config.read_text())
                self.machine.run("systemctl", "start", "larder.service")
                self.pull(self.registry)
                self.machine.run("test", "-d", f"{store}/blobs/sha256")
                self.assertIn(store, self.machine.run("larder", "status").stdout, "the commands find it")
                self.machine.run("systemctl", "stop", "larder.service")
                self.machine.run("umount", mount)
                self.configure(self.registry)
            self.machine.run("rm", "-r", "/run/systemd/system/larder.service.d")
            self.machine.run("systemctl", "daemon-reload")


class Image(scratch.Case):
    """Installations into the files of a machine that does not run, as image builders make them."""

    def test_the_tarball_goes_into_an_image(self):
        root = self.folder / "root"
        run("cp", "--archive", "--reflink=auto", make_root(CACHE), root)
        run("tar", "-xzf", one("*.tar.gz"), "-C", self.folder)
        (install,) = self.folder.glob("larder-*/install.sh")
        run(install, "--root", root)
        enabled = root / "etc/systemd/system/multi-user.target.wants/larder.service"
        self.assertEqual(str(enabled.readlink()), "/lib/systemd/system/larder.service")
        self.assertIn("larder:", (root / "etc/passwd").read_text())
        self.assertEqual((root / "usr/bin/larder").stat().st_mode & 0o7777, 0o755)


if __name__ == "__main__":
    unittest.main()
