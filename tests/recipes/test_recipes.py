"""The recipes of firmware-config/, as far as they can be tried without the build systems that they are for.

Which of them are run here, which are read by a parser of their format, and which are neither, is what
firmware-config/README.md says; a test holds it to that.
"""

import base64
import json
import os
import re
import shutil
import sys
import unittest

import jsonschema
import recipe
import yaml
from recipe import PACKAGE, RECIPES, TARBALL, TOP, VERSION

from lib import debian
from lib.process import run

# What a chroot is entered with where the build system's own function is not at hand.
ON_CHROOT = 'on_chroot() { chroot "$ROOTFS_DIR" /bin/bash -e "$@"; }; export -f on_chroot'


class Strict(yaml.SafeLoader):
    """YAML in which no key may be given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(None, None, f"a key is given twice: {keys}", node.start_mark)
        return super().construct_mapping(node, deep)


def load(path):
    return yaml.load(path.read_text(), Strict)


class Files(unittest.TestCase):
    def test_every_yaml_file_is_one(self):
        paths = [p for p in RECIPES.rglob("*") if p.suffix in (".yaml", ".yml", ".bu") or p.name == "user-data"]
        self.assertGreaterEqual(len(paths), 6)
        for path in paths:
            self.assertIsInstance(load(path), dict, path)

    def test_no_recipe_has_a_copy_of_unit_or_configuration(self):
        canonical = (RECIPES / "larder.toml").read_text()
        comments = {line for line in canonical.splitlines() if line.startswith("# ") and len(line) > 60}
        for path in RECIPES.rglob("*"):
            if not path.is_file() or path == RECIPES / "larder.toml" or path.suffix == ".md":
                continue
            text = path.read_text()
            for line in ("ExecStart=", "[Service]", "WatchdogSec", *comments):
                self.assertNotIn(line, text, path)

    def test_every_script_can_be_run(self):
        for path in RECIPES.rglob("*"):
            if path.is_file() and path.read_text().startswith("#!") and "armbian" not in path.parts:
                self.assertTrue(os.access(path, os.X_OK), path)

    def test_the_readme_lists_every_recipe(self):
        listed = (RECIPES / "README.md").read_text()
        for path in set(RECIPES.iterdir()) - {RECIPES / "README.md"}:
            self.assertIn(f"`{path.name}{'/' if path.is_dir() else ''}`", listed)

    def test_versions_are_that_of_the_program(self):
        make = (RECIPES / "buildroot/package/larder/larder.mk").read_text()
        self.assertIn(f"LARDER_VERSION = {VERSION}\n", make)
        (bitbake,) = (RECIPES / "yocto").rglob("*.bb")
        self.assertEqual(bitbake.name, f"larder_{VERSION}.bb")


class K3s(recipe.Case):
    def test_registries_is_what_the_program_prints(self):
        empty = self.folder / "larder.toml"
        empty.write_text("")
        run("dpkg-deb", "--extract", PACKAGE, self.folder)
        printed = run(self.folder / "usr/bin/larder", "--config", empty, "config", "k3s").stdout
        self.assertEqual(load(RECIPES / "k3s/registries.yaml"), yaml.load(printed, Strict))

    def test_config_has_keys_that_k3s_has(self):
        config = load(RECIPES / "k3s/config.yaml")
        self.assertEqual(config, {"disable-default-registry-endpoint": True, "embedded-registry": False})


class PiGen(recipe.Case):
    """The stage's scripts are run as pi-gen does it: with bash -e, in their folder, and with `on_chroot`."""

    def test_the_stage_installs_the_package(self):
        root = self.root()
        stage = self.folder / "stage-larder"
        shutil.copytree(RECIPES / "pi-gen/stage-larder", stage)
        (stage / "00-larder/files").mkdir()
        environment = {**os.environ, "ROOTFS_DIR": str(root)}

        def step():
            script = f"{ON_CHROOT}; ./00-run.sh"
            return run("bash", "-ec", script, cwd=stage / "00-larder", env=environment, check=False)

        none = step()
        self.assertNotEqual(none.returncode, 0)
        self.assertIn("put one larder_VERSION_ARCHITECTURE.deb", none.stderr)
        shutil.copy(PACKAGE, stage / "00-larder/files")
        done = step()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assert_installed(root)
        self.assertIn("127.0.0.1:5000", (root / "etc/rancher/k3s/registries.yaml").read_text())

        # And with a profile.
        shutil.copy(RECIPES / "profiles/pi-4-sd.toml", stage / "00-larder/files/larder.toml")
        done = step()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("8GiB", run("chroot", root, "larder", "config", "print").stdout)

    def test_the_stage_goes_on_from_the_one_before(self):
        copies = 'copy_previous() { echo copied; }; export -f copy_previous; ROOTFS_DIR=%s ./prerun.sh'
        stage = RECIPES / "pi-gen/stage-larder"
        self.assertEqual(run("bash", "-ec", copies % "/nonexistent", cwd=stage).stdout, "copied\n")
        self.assertEqual(run("bash", "-ec", copies % "/tmp", cwd=stage).stdout, "")
        suffix = run("bash", "-c", f"source {stage}/EXPORT_IMAGE; echo $IMG_SUFFIX").stdout
        self.assertEqual(suffix, "-larder\n")


class RpiImageGen(recipe.Case):
    def test_the_hooks_install_the_package_and_share_the_store(self):
        root = self.root()
        layer = load(RECIPES / "rpi-image-gen/layer/larder.yaml")
        environment = {
            **os.environ,
            "IGconf_larder_deb": str(PACKAGE),
            "IGconf_larder_profile": "",
        }
        # mmdebstrap gives a hook that is no program to a shell, with the root as its argument.
        for hook in layer["mmdebstrap"]["customize-hooks"]:
            run("sh", "-c", hook, "hook", root, env=environment)
        self.assert_installed(root)
        shared = (root / "etc/rpi-image-gen/slot-shared.d/larder.conf").read_text()
        self.assertEqual(shared, "Version=1\nPath=/var/lib/larder\n")
        self.assertTrue((root / "var/lib/larder").is_dir(), "a mount needs a place")

        environment["IGconf_larder_profile"] = str(RECIPES / "profiles/pi-5-nvme.toml")
        run("sh", "-c", layer["mmdebstrap"]["customize-hooks"][1], "hook", root, env=environment)
        self.assertIn("128MiB", run("chroot", root, "larder", "config", "print").stdout)

    def test_the_metadata_has_fields_that_layers_have(self):
        from debian.deb822 import Deb822

        text = (RECIPES / "rpi-image-gen/layer/larder.yaml").read_text()
        block = text.split("# METABEGIN\n")[1].split("# METAEND\n")[0]
        lines = [line.removeprefix("#").removeprefix(" ") if line != "#" else "" for line in block.splitlines()]
        # Continuation lines keep the one space that makes them such.
        lines = [f" {line}" if raw.startswith("#  ") else line for raw, line in zip(block.splitlines(), lines)]
        fields = dict(Deb822("\n".join(line.rstrip() for line in lines if line.strip())))
        self.assertEqual(fields["X-Env-Layer-Name"], "larder")
        self.assertRegex(fields["X-Env-Layer-Version"], r"^\d+\.\d+\.\d+$")
        self.assertEqual(fields["X-Env-VarPrefix"], "larder")
        for name in fields:
            self.assertRegex(
                name, r"^X-Env-(Layer-(Name|Category|Desc|Version)|VarPrefix|Var-[a-z]+(-(Desc|Required|Valid|Set))?)$"
            )
        config = load(RECIPES / "rpi-image-gen/config/larder-ab.yaml")
        self.assertEqual(config["layer"]["app"], fields["X-Env-Layer-Name"])


class Armbian(recipe.Case):
    """The hook is called with functions in place of the framework's, which do the same to a Debian system."""

    FRAMEWORK = r"""
        set -e
        display_alert() { echo "$@"; }
        exit_with_error() { echo "error: $*" >&2; exit 1; }
        run_host_command_logged() { "$@"; }
        chroot_sdcard() { chroot "$SDCARD" /bin/bash -ec "$*"; }
        chroot_sdcard_apt_get_install() { chroot "$SDCARD" apt-get -y --no-install-recommends install "$@"; }
        source "$EXTENSION_DIR/larder.sh"
        pre_customize_image__install_larder
    """

    def test_the_hook_installs_the_package(self):
        root, extension = self.root(), self.folder / "larder"
        extension.mkdir()
        shutil.copy(RECIPES / "armbian/larder.sh", extension)
        environment = {**os.environ, "SDCARD": str(root), "EXTENSION_DIR": str(extension), "ARCH": "amd64"}
        none = run("bash", "-c", self.FRAMEWORK, env=environment, check=False)
        self.assertIn("error: no larder_VERSION_amd64.deb", none.stderr)
        self.assertNotEqual(none.returncode, 0)
        shutil.copy(PACKAGE, extension)
        run("bash", "-c", self.FRAMEWORK, env=environment)
        self.assert_installed(root)
        shutil.copy(RECIPES / "profiles/pi-zero-2.toml", extension / "larder.toml")
        run("bash", "-c", self.FRAMEWORK, env=environment)
        self.assertIn("24MiB", run("chroot", root, "larder", "config", "print").stdout)


class Jetson(recipe.Case):
    SCRIPT = RECIPES / "jetson/larder-rootfs.sh"

    def test_the_script_installs_the_package(self):
        root = self.root()
        run(self.SCRIPT, root, PACKAGE)
        self.assert_installed(root)
        run(self.SCRIPT, root, PACKAGE, RECIPES / "profiles/jetson.toml")
        self.assertIn("nvcr.io/nvidia/l4t-*", run("chroot", root, "larder", "config", "print").stdout)
        self.assertEqual(os.listdir(root / "proc"), [])

    def test_what_is_wrong_is_named(self):
        (self.folder / "rootfs").mkdir()
        for arguments, message in (
            ((self.folder / "rootfs", PACKAGE), "unpack NVIDIA's sample root there first"),
            (("/", PACKAGE), "this machine's own root"),
            ((self.folder / "nowhere", PACKAGE), "there is no"),
            ((), "usage"),
        ):
            refused = run(self.SCRIPT, *arguments, check=False)
            self.assertEqual(refused.returncode, 1)
            self.assertIn(message, refused.stderr)


class Buildroot(recipe.Case):
    """Read by Kconfig and by make; the commands of the package are run, and Buildroot's own part is imitated."""

    MAKE = r"""
qstrip = $(strip $(subst ",,$(1)))
INSTALL = install
BR2_EXTERNAL_LARDER_PATH = $(RECIPES)/buildroot
BR2_PACKAGE_LARDER_TARBALLS = "$(FOLDER)"
BR2_PACKAGE_LARDER_TARGET = "x86-64"
define generic-package
seen := generic-package
endef
include $(RECIPES)/buildroot/external.mk
all:
	test "$(seen)" = generic-package
	mkdir -p $(BUILD)
	tar -xzf $(LARDER_SITE)/$(LARDER_SOURCE) -C $(BUILD) --strip-components=1
	test -s $(BUILD)/$(LARDER_LICENSE_FILES)
	$(MAKE) -f $(MAKEFILE) $(BUILD)/.stamp_target_installed
# Named as by Buildroot, so that $(@D) is the folder of the build.
%/.stamp_target_installed:
	$(LARDER_INSTALL_TARGET_CMDS)
	$(LARDER_INSTALL_INIT_SYSTEMD)
	$(LARDER_INSTALL_INIT_OPENRC)
"""

    def test_the_package_installs_from_the_tarball(self):
        make, build, target = self.folder / "Makefile", self.folder / "build", self.folder / "target"
        make.write_text(self.MAKE)
        shutil.copy(TARBALL, self.folder)
        run(
            *("make", "-f", make, "all", f"RECIPES={RECIPES}", f"FOLDER={self.folder}", f"BUILD={build}"),
            *(f"MAKEFILE={make}", f"TARGET_DIR={target}"),
        )
        for source, name in recipe.canonical():
            if "sysusers" not in name:
                self.assertEqual((target / name).read_bytes(), source.read_bytes(), name)
        self.assertTrue(os.access(target / "usr/bin/larder", os.X_OK))
        self.assertTrue(os.access(target / "etc/init.d/larder", os.X_OK))
        preset = (target / "usr/lib/systemd/system-preset/60-larder.preset").read_text()
        self.assertEqual(preset, "disable larder.socket\ndisable larder-scrub.timer\n")
        users = make_define("LARDER_USERS")
        self.assertEqual(len(users), 1)
        # user, number, group, number, password, home, shell, groups, comment
        self.assertEqual(users[0].split(maxsplit=8)[:6], ["larder", "-1", "larder", "-1", "*", "/var/lib/larder"])

    def test_kconfig_offers_it_to_processors_that_it_is_for(self):
        import kconfiglib

        symbols = ("BR2_aarch64", "BR2_x86_64", "BR2_ARM_EABIHF", "BR2_ARM_CPU_ARMV6")
        top = self.folder / "Config.in"
        top.write_text(
            "".join(f'config {name}\n\tbool "{name}"\n\n' for name in symbols)
            + f'source "{RECIPES}/buildroot/package/larder/Config.in"\n'
        )
        os.environ["BR2_EXTERNAL_LARDER_PATH"] = str(RECIPES / "buildroot")
        for chosen, target in (
            (("BR2_aarch64",), "aarch64"),
            (("BR2_x86_64",), "x86-64"),
            (("BR2_ARM_EABIHF",), "armv7"),
            (("BR2_ARM_EABIHF", "BR2_ARM_CPU_ARMV6"), "armv6"),
            ((), None),
        ):
            config = kconfiglib.Kconfig(str(top), warn_to_stderr=False)
            self.assertEqual(config.warnings, [])
            for name in chosen:
                config.syms[name].set_value("y")
            config.syms["BR2_PACKAGE_LARDER"].set_value("y")
            self.assertEqual(config.syms["BR2_PACKAGE_LARDER"].str_value, "y" if target else "n")
            if target:
                self.assertEqual(config.syms["BR2_PACKAGE_LARDER_TARGET"].str_value, target)


def make_define(name):
    """The lines of a `define` of the package."""
    text = (RECIPES / "buildroot/package/larder/larder.mk").read_text()
    body = text.split(f"define {name}\n")[1].split("endef")[0]
    return [line.strip() for line in body.splitlines() if line.strip()]


class Yocto(recipe.Case):
    """Read by the parser of oelint-adv, and its do_install is run; a build by bitbake is not among this."""

    LAYER = RECIPES / "yocto/meta-larder"
    # Rules that this recipe breaks on purpose: there is no home page, the program is stripped before it gets here and
    # is none to build for the host, the licence is the common one, and three names are its own.
    BROKEN_ON_PURPOSE = (
        "oelint.var.mandatoryvar.HOMEPAGE", "oelint.var.suggestedvar.BUGTRACKER", "oelint.var.suggestedvar.CVE_PRODUCT",
        "oelint.var.bbclassextend", "oelint.vars.insaneskip", "oelint.var.licenseremotefile", "oelint.vars.specific",
        "oelint.vars.mispell.unknown",
    )  # fmt: skip

    def test_a_linter_of_recipes_finds_nothing_wrong(self):
        (bitbake,) = self.LAYER.rglob("*.bb")
        linter = [sys.executable, "-m", "oelint_adv", "--quiet", "--release=scarthgap"]
        linter += [f"--suppress={rule}" for rule in self.BROKEN_ON_PURPOSE]
        environment = {**os.environ, "HOME": str(self.folder)}
        run(*linter, bitbake, self.LAYER / "conf/layer.conf", env=environment)
        wrong = self.folder / bitbake.name
        wrong.write_text(bitbake.read_text().replace("LICENSE = ", "LICENCE = "))
        self.assertNotEqual(run(*linter, wrong, check=False, env=environment).returncode, 0, "the check can fail")

    def test_its_install_step_installs(self):
        (bitbake,) = self.LAYER.rglob("*.bb")
        body = bitbake.read_text().split("do_install() {\n")[1].split("\n}\n")[0]
        source, image = self.folder / "source", self.folder / "image"
        source.mkdir()
        run("tar", "-xzf", TARBALL, "-C", source, "--strip-components=1")
        names = {
            "S": source, "D": image, "bindir": "/usr/bin", "sysconfdir": "/etc", "datadir": "/usr/share",
            "systemd_system_unitdir": "/usr/lib/systemd/system",
        }  # fmt: skip
        # bitbake puts in what it knows, and leaves the rest to the shell.
        body = re.sub(r"\$\{(\w+)\}", lambda m: str(names[m[1]]), body)
        run("sh", "-euc", body)
        for path, name in recipe.canonical():
            if "sysusers" not in name:
                self.assertEqual((image / name).read_bytes(), path.read_bytes(), name)
        self.assertTrue(os.access(image / "usr/bin/larder", os.X_OK))

    def test_the_tarball_is_named_as_it_is_packed(self):
        (bitbake,) = self.LAYER.rglob("*.bb")
        text = bitbake.read_text()
        self.assertIn("larder-${PV}-${LARDER_TARGET}.tar.gz", text)
        self.assertIn('LARDER_TARGET:x86-64 = "x86-64"', text)
        self.assertEqual(TARBALL.name, f"larder-{VERSION}-x86-64.tar.gz")


class CloudInit(recipe.Case):
    def test_user_data_follows_the_schema(self):
        (file,) = debian.unpacked("cloud-init").rglob("schema-cloud-config-v1.json")
        schema = json.loads(file.read_text())
        text = RECIPES / "cloud-init/user-data"
        self.assertTrue(text.read_text().startswith("#cloud-config\n"))
        jsonschema.validate(load(text), schema)
        with self.assertRaises(jsonschema.ValidationError):
            jsonschema.validate({"runcmd": "not a list"}, schema)

    def test_its_commands_install_the_package(self):
        root = self.root()
        firmware = root / "boot/firmware"
        firmware.mkdir(parents=True)
        shutil.copy(PACKAGE, firmware / "larder.deb")
        commands = load(RECIPES / "cloud-init/user-data")["runcmd"]
        for command in commands:
            run("chroot", root, *command)
        self.assert_installed(root)
        self.assertIn("127.0.0.1:5000", (root / "etc/rancher/k3s/registries.yaml").read_text())


class Ignition(recipe.Case):
    """Turned into Ignition's JSON by the rules for the few fields that it uses, which ignition-validate then reads."""

    # What of Butane's fields for fcos 1.4.0 the file may use, and what each becomes in Ignition 3.3.0.
    KNOWN = {
        "name": "name", "system": "system", "no_create_home": "noCreateHome", "home_dir": "homeDir", "shell": "shell",
        "path": "path", "mode": "mode", "contents": "contents", "enabled": "enabled", "passwd": "passwd",
        "users": "users", "storage": "storage", "files": "files", "systemd": "systemd", "units": "units",
    }  # fmt: skip

    def test_it_is_valid_and_finds_its_files(self):
        file = RECIPES / "ignition/larder.bu"
        run(RECIPES / "sysext/build.sh", PACKAGE, "--out", self.folder / "larder.raw")
        # As its first lines tell the reader to.
        for line in re.findall(r"^#   cp (.*) \.$", file.read_text(), re.MULTILINE):
            for path in line.split():
                shutil.copy(file.parent / path, self.folder)
        butane = load(file)
        self.assertEqual((butane.pop("variant"), butane.pop("version")), ("fcos", "1.4.0"))
        ignition = {"ignition": {"version": "3.3.0"}, **self.turned(butane)}
        out = self.folder / "larder.ign"
        out.write_text(json.dumps(ignition))
        validate = debian.unpacked("ignition") / "usr/bin/ignition-validate"
        run(validate, out)

        wrong = self.folder / "wrong.ign"
        wrong.write_text(json.dumps({**ignition, "storage": {"files": [{"path": "not/absolute"}]}}))
        self.assertNotEqual(run(validate, wrong, check=False).returncode, 0, "the check can fail")

    def turned(self, value):
        if isinstance(value, list):
            return [self.turned(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "local" in value:
            self.assertEqual(list(value), ["local"])
            content = base64.b64encode((self.folder / value["local"]).read_bytes()).decode()
            return {"source": f"data:;base64,{content}"}
        return {self.KNOWN[key]: self.turned(each) for key, each in value.items()}


class Sysext(recipe.Case):
    def test_systemd_lays_it_over_a_system(self):
        root = self.root()
        (root / "var/lib/extensions").mkdir(parents=True, exist_ok=True)
        run(RECIPES / "sysext/build.sh", PACKAGE, "--out", root / "var/lib/extensions/larder.raw")
        self.assertFalse((root / "usr/bin/larder").exists())
        # In a mount namespace of its own, and on a system that does not run.
        said = run(
            *("unshare", "--mount", "--propagation=private", "sh", "-euc"),
            'mount --make-rshared /; mount -t tmpfs none /run; systemd-sysext --root="$1" merge; chroot "$1" larder --version; '
            'cat "$1/usr/share/larder/larder.toml" "$1/usr/lib/systemd/system/larder.service"; '
            'chroot "$1" systemd-sysusers larder.conf; grep ^larder: "$1/etc/passwd"; '
            'systemd-sysext --root="$1" unmerge; test ! -e "$1/usr/bin/larder"',
            *("sh", root),
        ).stdout
        self.assertIn(f"larder {VERSION}", said)
        self.assertIn("larder:x:", said)
        for path in ("firmware-config/larder.toml", "systemd/larder.service"):
            self.assertIn((TOP / path).read_text(), said)


if __name__ == "__main__":
    unittest.main()
