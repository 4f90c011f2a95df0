"""What the recipes are tried on: the package, the tarball, and a small Debian system that they go into."""

import contextlib
import functools
import os
import pathlib

from lib import debian, environment, scratch
from lib.process import run

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
RECIPES = TOP / "firmware-config"
# What is in the images that recipes work on, beyond the essential packages.
INCLUDED = "systemd,init-system-helpers,passwd"

# Of this machine's architecture, as cross/package.sh packs them.
PACKAGE, TARBALL = environment.path("LARDER_DEB"), environment.path("LARDER_TARBALL")
VERSION = next(
    line.split('"')[1] for line in (TOP / "Cargo.toml").read_text().splitlines() if line.startswith("version = ")
)


@functools.cache
def debian_root():
    """A configured Debian system, made once; each test works on a copy."""
    root = scratch.FOLDER / "debian"
    debian.make_root(root, "minbase", INCLUDED, '--aptopt=APT::Sandbox::User "root"')
    return root


class Case(scratch.Case):
    """A test that puts Larder into a Debian system."""

    def root(self):
        """A copy of the Debian system."""
        root = self.folder / "root"
        run("cp", "-a", "--reflink=auto", debian_root(), root)
        return root

    def assert_installed(self, root):
        """The program, the canonical unit and configuration, enabled, and the user; and nothing left behind."""
        self.assertIn(VERSION, run("chroot", root, "larder", "--version").stdout)
        for source, name in canonical():
            self.assertEqual((root / name).read_bytes(), source.read_bytes(), name)
        wants = root / "etc/systemd/system/multi-user.target.wants/larder.service"
        self.assertTrue(wants.is_symlink(), "larder.service is enabled")
        self.assertFalse((root / "etc/systemd/system/sockets.target.wants/larder.socket").is_symlink())
        self.assertIn("\nlarder:", (root / "etc/passwd").read_text())
        for path in ("tmp/larder.deb", "root/larder.deb"):
            self.assertFalse((root / path).exists(), path)
        with contextlib.suppress(FileNotFoundError):
            self.assertEqual(os.listdir(root / "proc"), [], "nothing stays mounted")


def canonical():
    """The one unit and the one configuration, and where they belong."""
    units = [path for path in (TOP / "systemd").glob("larder*") if path.is_file()]
    yield from ((path, f"usr/lib/systemd/system/{path.name}") for path in units)
    yield TOP / "systemd/sysusers.d/larder.conf", "usr/lib/sysusers.d/larder.conf"
    yield TOP / "firmware-config/larder.toml", "etc/larder/larder.toml"
