"""A disk that is full: a clear refusal, nothing lost, and what is there is served."""

import signal
import unittest

import lab

IMAGE = "docker.io/lab/app:latest"


class Disk(lab.Case):
    def small_disk(self, size):
        """A file system of its own on a loop device."""
        image, mount = self.folder / "disk", self.folder / "mount"
        mount.mkdir()
        lab.run("truncate", "--size", size, image)
        lab.run("mkfs.ext4", "-q", "-m", "0", image)
        lab.run("mount", "-o", "loop", image, mount)
        self.addCleanup(lab.run, "umount", "-l", mount, check=False)
        return mount

    def test_a_disk_that_is_too_small_and_one_that_neighbours_fill(self):
        app, big = lab.built_images()
        mount = self.small_disk("20M")
        registry = self.registry()
        registry.push(app, "1.0", "lab/app:latest")
        registry.push(big, "1.0", "lab/big:1.0")
        larder = self.larder(registry, '[disk]\nmin_free = "2MiB"\n', data=mount / "larder")
        board = self.containerd("2.x", larder)
        board.cri_pull(IMAGE)

        # What the disk is too small for is passed on and not kept.
        board.cri_pull("docker.io/lab/big:1.0")
        self.assertIn(f"docker.io/lab/big@{big.digest('1.0')}", board.cri_digests("docker.io/lab/big:1.0"))
        self.assertIn("is streamed through and not kept", larder.log())
        self.assertEqual([image["state"] for image in larder.says("ls")], ["complete", "partial"])
        # A neighbour takes the rest.
        lab.run("sh", "-c", f"cat /dev/zero > {mount}/neighbour || true")
        registry.push(app, "1.1", "lab/app:latest")
        status, headers, _ = larder.ask("/v2/lab/app/manifests/latest?ns=docker.io")
        self.assertIn(headers.get("Docker-Content-Digest"), (app.digest("1.0"), app.digest("1.1")))
        registry.stop(signal.SIGKILL)
        other = self.containerd("1.6", larder)
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.0')}", other.cri_digests(IMAGE))
        # It starts on a full disk too, and there is room again once the neighbour has gone.
        larder.stop()
        larder.restart()
        lab.wait_until("the last complete version", lambda: larder.tier().endswith("last-complete"))
        (mount / "neighbour").unlink()
        registry.restart()
        lab.wait_until("the registry's return", lambda: larder.tier().endswith("upstream"))
        other.cri_pull(IMAGE)
        self.assertIn(f"docker.io/lab/app@{app.digest('1.1')}", other.cri_digests(IMAGE))
        self.check_blobs(larder)


if __name__ == "__main__":
    unittest.main()
