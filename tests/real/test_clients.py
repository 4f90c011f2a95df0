"""Clients that name no registry: skopeo and podman, online and with the uplink gone, OCI and Docker media types."""

import json
import os
import signal
import unittest

import lab

from lib import images, skopeo
from lib.process import run, wait_until


class Clients(lab.Case):
    def setUp(self):
        super().setUp()
        self.app, _ = images.built()
        self.upstream = self.registry()
        self.upstream.push(self.app, "1.0", "lab/app:latest")
        self.upstream.push(self.app, "1.1", "lab/docker:latest", docker_types=True)
        self.mirror = self.larder(self.upstream)

    def podman(self, *arguments, **options):
        return run(*self.podman_command(*arguments), **options)

    def image(self, name):
        return skopeo.on_loopback(self.mirror.port, name)

    def test_skopeo_copies_every_kind_of_image(self):
        for repository in ("lab/app", "docker.io/lab/app", "lab/docker"):
            for uplink in ("there", "gone"):
                with self.subTest(repository=repository, uplink=uplink):
                    if uplink == "gone":
                        self.upstream.stop(signal.SIGKILL)
                    target = self.folder / f"{repository.replace('/', '-')}-{uplink}"
                    skopeo.copy(self.image(f"{repository}:latest"), f"dir:{target}")
                    manifest = json.loads((target / "manifest.json").read_text())
                    kind = "docker.distribution.manifest.v2" if repository == "lab/docker" else "oci.image.manifest.v1"
                    self.assertIn(kind, manifest["mediaType"])
                    for layer in manifest["layers"]:
                        self.assertEqual((target / layer["digest"].split(":")[1]).stat().st_size, layer["size"])
            self.upstream.start()
            wait_until("the registry's return", lambda: self.mirror.tier().endswith("upstream"))
        self.check_blobs(self.mirror)

    def test_skopeo_copies_every_platform(self):
        for uplink in ("there", "gone"):
            if uplink == "gone":
                self.upstream.stop(signal.SIGKILL)
            target = self.folder / uplink
            skopeo.copy(self.image("lab/app:latest"), f"oci:{target}:x", "--all", "--preserve-digests")
            index = json.loads((target / "index.json").read_text())
            self.assertEqual(index["manifests"][0]["digest"], self.app.digest("1.0"))

    def test_skopeo_lists_tags(self):
        self.upstream.push(self.app, "1.1", "lab/app:1.1")
        run(*skopeo.command("inspect", "--tls-verify=false", self.image("lab/app:latest")))
        listing = skopeo.command("list-tags", "--tls-verify=false", self.image("lab/app"))
        self.assertEqual(json.loads(run(*listing).stdout)["Tags"], ["1.1", "latest"])
        self.upstream.stop(signal.SIGKILL)
        self.assertEqual(json.loads(run(*listing).stdout)["Tags"], ["latest"])

    def test_podman_pulls(self):
        image = f"127.0.0.1:{self.mirror.port}/docker.io/lab/app:latest"
        for uplink in ("there", "gone"):
            with self.subTest(uplink=uplink):
                if uplink == "gone":
                    self.upstream.stop(signal.SIGKILL)
                    self.podman("rmi", "--all", "--force")
                self.podman("pull", "--quiet", "--tls-verify=false", image)
                shown = json.loads(self.podman("image", "inspect", image).stdout)[0]
                self.assertIn(self.app.digest("1.0"), " ".join(shown["RepoDigests"]))

    def test_podman_with_a_mirror_in_its_configuration(self):
        registries = self.folder / "registries.conf"
        registries.write_text(
            f'[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n'
            f'[[registry.mirror]]\nlocation = "127.0.0.1:{self.mirror.port}"\ninsecure = true\n'
        )
        self.upstream.stop(signal.SIGKILL)
        environment = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(registries)}
        # Nothing was ever pulled. podman shows the status alone, so the reason is in the log too.
        failed = self.podman("pull", "--quiet", "docker.io/lab/app:latest", check=False, env=environment)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("502 Bad Gateway", failed.stderr)
        self.assertIn("docker.io/lab/app:latest not answered", self.mirror.log())
        self.assertIn("nothing of it is cached", self.mirror.log())
        self.upstream.start()
        wait_until("the registry's return", lambda: self.mirror.tier().endswith("upstream"))
        self.podman("pull", "--quiet", "docker.io/lab/app:latest", env=environment)


if __name__ == "__main__":
    unittest.main()
