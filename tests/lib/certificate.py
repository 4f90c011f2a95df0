"""A key and a certificate for 127.0.0.1 that it signed itself."""

from lib.process import run

RSA = ("-newkey", "rsa:2048")
ELLIPTIC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def self_signed(folder, name, kind=RSA):
    """Paths of the certificate and of the key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    run(
        *("openssl", "req", "-x509", *kind, "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
    )
    return certificate, key
