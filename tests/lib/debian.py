"""Debian packages without installing them, of another architecture or suite too, and small Debian systems.

Each pair of suite and architecture gets an apt of its own in the scratch folder. The mirror is the one that this
machine's apt is configured with.
"""

import os
import subprocess

from lib import scratch
from lib.process import run

SUITE = "bookworm"
# Ends waits for a mirror that does not answer.
APT_SECONDS_MAX = 300
ROOT_SECONDS_MAX = 900


def packages(architecture, *names, suite=SUITE):
    """Downloads packages and returns the paths of their files, in the order of the names."""
    apt = scratch.FOLDER / f"apt-{suite}-{architecture}"
    config = apt / "apt.conf"
    environment = {**os.environ, "APT_CONFIG": str(config)}
    if not config.exists():
        _make(apt, config, suite, architecture)
        _apt(environment, apt, "update")
    for name in names:
        if not list(apt.glob(f"{name}_*.deb")):
            _apt(environment, apt, "download", name)
    return [next(apt.glob(f"{name}_*.deb")) for name in names]


def unpack(deb, folder):
    """Unpacks a package into a folder."""
    run("dpkg-deb", "--extract", deb, folder)


def unpacked(package, suite=SUITE):
    """A folder with a package's files, for one that has no business on the machine of whoever runs the tests."""
    folder = scratch.FOLDER / f"{package}-{suite}"
    if not folder.exists():
        (deb,) = packages("amd64", package, suite=suite)
        unpack(deb, folder)
    return folder


def make_root(root, variant, include, *options):
    """Makes a Debian system in a folder by mmdebstrap."""
    run(
        *("mmdebstrap", "--quiet", f"--variant={variant}", f"--include={include}", *options, SUITE, root, mirror()),
        timeout=ROOT_SECONDS_MAX,
    )


def _make(apt, config, suite, architecture):
    for part in ("etc/apt.conf.d", "etc/preferences.d", "lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "etc/sources.list").write_text(f"deb [signed-by={keys}] {mirror()} {suite} main\n")
    config.write_text(
        f'''Dir::Etc "{apt}/etc"; Dir::Etc::sourceparts "/dev/null"; Dir::State "{apt}";
Dir::State::lists "{apt}/lists"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";
APT::Architecture "{architecture}"; APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "3";
# A mirror that stands still is good enough to test with; what it holds is still signed.
Acquire::Check-Valid-Until "false";
'''
    )


def _apt(environment, folder, *arguments):
    subprocess.run(
        ["apt-get", "-qq", *arguments],
        env=environment,
        cwd=folder,
        check=True,
        timeout=APT_SECONDS_MAX,
        stdout=subprocess.DEVNULL,
    )


def mirror():
    """The address of this machine's Debian mirror: of its sources the one with the shortest suite."""
    listed = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages").stdout.splitlines()
    sources = [line.split() for line in listed if line.strip()]
    plain = [uri for uri, release in sources if "-" not in release and "/" not in release]
    if not plain:
        raise SystemExit("apt has no source for a plain Debian suite: check /etc/apt")
    return plain[0]
