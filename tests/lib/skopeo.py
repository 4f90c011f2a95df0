"""Copies of images by skopeo, between registries that speak plain HTTP and folders."""

from lib.process import run


def command(*arguments):
    """skopeo, and that it is to trust what it is given."""
    return ("skopeo", "--insecure-policy", *arguments)


def copy_command(source, target, *options):
    return command("copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", *options, source, target)


def copy(source, target, *options, check=True):
    return run(*copy_command(source, target, *options), check=check)


def on_loopback(port, image):
    """An image as a registry on this machine has it."""
    return f"docker://127.0.0.1:{port}/{image}"
