"""A board in the field: it starts with no clock and no network and answers, loses its power in mid-pull, and goes on.

Kernel, systemd, unit and package are the real ones, on an emulated ARM board. What is asked for on the board is asked
by its owner, what comes over the network by skopeo.
"""

import hashlib
import json
import re
import signal
import time
import unittest

import board as emulated

from lib import environment, images, parts, skopeo
from lib.process import Process, run, wait_until

# For arm64.
PACKAGE = environment.path("LARDER_DEB")
# A cut is a throw of coins, which this repeats.
SEED = environment.seed()

TAG = "/v2/lab/app/manifests/latest?ns=docker.io"
LAST_COMPLETE = "larder; hit; detail=last-complete"
# So slow that the power can go in the middle of a layer.
BANDWIDTH = "16Mbit"
# How much of the image is on its way before the kernel writes out what it has, and before the plug is pulled.
WRITTEN_BYTES, CUT_BYTES = 3_000_000, 6_000_000


class Field(parts.Case):
    def test_no_clock_no_network_and_a_power_cut_in_mid_pull(self):
        print(f"LARDER_SEED={SEED}")
        app, big = images.built()
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        # The board listens for the owner's other machines, too.
        config = (
            f'listen = ["0.0.0.0:{emulated.PORT}"]\n[fetch]\nbandwidth = "{BANDWIDTH}"\n[disk]\nmin_free = "64MiB"\n'
            f'[upstream."docker.io"]\nurl = "http://{emulated.HOST}:{registry.port}"\n'
        )
        self.files = emulated.build(self.folder, PACKAGE, config, self.filled_store(registry))

        board = self.switch_on(network=False)
        self.answers_without_clock_and_network(board, app)
        self.pull_the_plug(board, SEED)

        registry.start()
        registry.push(big, "1.0", "lab/big:1.0")
        board = self.switch_on(network=True)
        self.rules_hold(board)
        self.lose_power_in_mid_pull(board)
        registry.stop(signal.SIGKILL)

        board = self.switch_on(network=True)
        self.rules_hold(board)
        self.assertEqual(self.tier_on(board), LAST_COMPLETE)
        self.goes_on(board, registry, big)
        self.rules_hold(board)
        board.shut_down()
        self.disk_is_sound()

    def filled_store(self, registry):
        """What a board keeps that has pulled the image once and then seen the uplink go."""
        larder = self.larder(registry, platform="linux/arm64")
        self.pull(larder.port, "lab/app:latest")
        wait_until("the complete image", lambda: larder.says("why", "lab/app")["offline"])
        registry.stop(signal.SIGKILL)
        self.assertEqual(larder.tier(), LAST_COMPLETE)
        self.assertEqual(larder.stop(), 0)
        return larder.data

    def switch_on(self, network):
        board = self.start(emulated.Board(self.folder, self.files, network))
        # Returns once the unit has said that it is ready.
        board.says("systemctl start larder.service")
        ready = int(board.says("systemctl show --value -p ActiveEnterTimestampMonotonic larder.service")) / 1e6
        print(f"switched on {'with' if network else 'without'} a network: the shell and larder were ready after "
              f"{time.monotonic() - board.began:.0f} s here, larder {ready:.1f} s after the kernel began")  # fmt: skip
        return board

    def answers_without_clock_and_network(self, board, app):
        kernel = re.search(r"kernel's clock: (\d+)", board.log())
        clock = int(board.says("date +%s"))
        status = json.loads(board.says("larder status --json"))
        print(f"the kernel's clock began at {kernel[1]}, the board's shows {clock}: {board.says('date -u')}; "
              f"larder trusts it: {status['clock_trusted']}")  # fmt: skip
        self.assertLess(int(kernel[1]), 3600, "the kernel was to find a clock of 1970")
        self.assertLess(clock, 3600, "the board's clock was to be of 1970")
        self.assertFalse(status["clock_trusted"])
        self.assertEqual(board.says("ls /sys/class/net"), "lo")

        began = time.monotonic()
        self.assertEqual(self.tier_on(board), LAST_COMPLETE)
        print(f"a cached tag was answered in {time.monotonic() - began:.2f} s, shell and wget included")
        self.assertEqual(self.pull_on(board, app), 4)
        refused = board.says("wget -O /dev/null 'http://127.0.0.1:5000/v2/lab/big/manifests/1.0?ns=docker.io' 2>&1", check=False)
        self.assertIn("502", refused)
        self.rules_hold(board)

    def pull_on(self, board, app):
        """Pulls the image as a client on the board would: every part has the hash that names it. How many there are."""

        def get(kind, digest):
            path = f"http://127.0.0.1:{emulated.PORT}/v2/lab/app/{kind}/{digest}?ns=docker.io"
            said = board.says(f"wget -q -O /tmp/part '{path}' && sha256sum < /tmp/part")
            self.assertEqual(said.split()[0], digest.removeprefix("sha256:"))
            return board.says("cat /tmp/part") if kind == "manifests" else None

        index = json.loads(get("manifests", app.digest("1.0")))
        child = next(m["digest"] for m in index["manifests"] if m["platform"]["architecture"] == "arm64")
        manifest = json.loads(get("manifests", child))
        parts = [part["digest"] for part in (manifest["config"], *manifest["layers"])]
        for digest in parts:
            get("blobs", digest)
        return len(parts) + 1

    def tier_on(self, board):
        said = board.says(f"wget -S -O /dev/null 'http://127.0.0.1:{emulated.PORT}{TAG}' 2>&1")
        found = re.search(r"Cache-Status: (.*)", said, re.IGNORECASE)
        self.assertTrue(found, said)
        return found[1].strip()

    def pull_the_plug(self, board, seed):
        kept, lost = board.cut(seed)
        print(f"power cut: of {kept + lost} sectors that were not flushed {lost} were lost; "
              f"{board.disk.flushes} flushes before")  # fmt: skip

    def lose_power_in_mid_pull(self, board):
        wait_until("the registry's return", lambda: self.tier_on(board).endswith("upstream"))
        pulling = self.start(Process("skopeo", self.skopeo(board.port, "lab/big:1.0", "never"), self.folder))
        wait_until("a layer on its way", lambda: self.staged(board) > WRITTEN_BYTES)
        # Whoever else is on the board has the kernel write out what it holds, larder's bytes among it.
        board.says("sync")
        written = self.staged(board)
        wait_until("more of it", lambda: self.staged(board) > max(CUT_BYTES, written + 1))
        staged = self.staged(board)
        self.pull_the_plug(board, SEED + 1)
        pulling.stop(signal.SIGKILL)
        print(f"the power went in mid-pull: at least {written} bytes were written out, {staged} were staged")

    def staged(self, board):
        """Bytes of downloads under way."""
        sizes = board.says("find /var/lib/larder/staging -name 'sha256-*' ! -name '*.*' -exec stat -c %s {} +", check=False)
        return sum(int(size) for size in sizes.split() if size.isdigit())

    def goes_on(self, board, registry, big):
        staged = self.staged(board)
        sent_before = registry.bytes_sent("/blobs/")
        registry.start()
        wait_until("the registry's return", lambda: self.tier_on(board).endswith("upstream"), emulated.PATIENCE)
        first = run(*self.skopeo(board.port, "lab/big:1.0", "pulled-first"), check=False)
        torn = first.returncode != 0
        if torn:
            # A power cut may leave a file with an end that was never written. That is found by the hash, what was on the
            # disk is thrown away, and the client is cut before the last byte; nothing else may end a pull here.
            log = board.says("journalctl --no-pager -b -u larder.service -o cat")
            self.assertIn("assembled from several answers", log, first.stderr)
            self.pull(board.port, "lab/big:1.0")
        resumed = [row for row in registry.requests() if row[2] == 206]
        sent, wanted = registry.bytes_sent("/blobs/") - sent_before, big.bytes_for("1.0", "arm64")
        print(f"after the cut {staged} bytes of downloads were on the disk{', some of them torn' if torn else ''}; "
              f"{len(resumed)} were resumed, and the registry sent {sent} bytes more for an image of {wanted}")  # fmt: skip
        self.assertGreater(staged, 0, "what was written out before the cut is there")
        self.assertTrue(resumed, "a layer is resumed and not begun anew")
        self.assertLessEqual(sent, 2 * wanted if torn else wanted - staged, "what was on the disk is not fetched again")
        why = json.loads(board.says("larder why lab/big:1.0 --json"))
        self.assertTrue(why["offline"], why)

    def rules_hold(self, board):
        """What must be true of a store at any time."""
        board.says("larder verify")
        # And by another program than larder.
        listed = board.says("cd /var/lib/larder/blobs/sha256 && sha256sum * | sed 's/ .*/ &/'; cd /").split("\n")
        names = board.says("ls /var/lib/larder/blobs/sha256").split()
        self.assertGreaterEqual(len(names), 4)
        self.assertEqual([line.split()[0] for line in listed], names)
        log = board.says("journalctl --no-pager -b -u larder.service -o cat")
        for word in ("damaged", "cannot be used", "rebuilt"):
            self.assertNotIn(word, log, "the index outlives a power cut")
        shown = {image["image"]: image for image in json.loads(board.says("larder ls --json"))}
        self.assertIn("docker.io/lab/app:latest", shown)
        print(f"the rules hold: {len(names)} blobs with the hash that names them; {sorted(shown)}")

    def disk_is_sound(self):
        """The file system, and every blob on it, seen by this emulated."""
        run("e2fsck", "-f", "-n", self.files.image)
        out = self.folder / "seen"
        out.mkdir()
        run("debugfs", "-R", f"rdump /var/lib/larder/blobs {out}", self.files.image)
        blobs = [path for path in out.rglob("*") if path.is_file()]
        self.assertGreater(len(blobs), 4)
        for path in blobs:
            self.assertEqual(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)

    def pull(self, port, image):
        run(*self.skopeo(port, image, f"pulled-{time.monotonic_ns()}"))

    def skopeo(self, port, image, name):
        platform = ("--override-arch", "arm64", "--override-os", "linux")
        return skopeo.copy_command(skopeo.on_loopback(port, image), f"dir:{self.folder}/{name}", *platform)


if __name__ == "__main__":
    unittest.main()
