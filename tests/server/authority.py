"""Certificates for one test run: made by `medkg certs`, as an operator makes them; and wrong ones, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import TYPE_CHECKING

import pytest

from medkg.cli import main

if TYPE_CHECKING:
    from pathlib import Path

Pair = tuple["Path", "Path"]
"""A certificate and its key."""

OPENSSL = """
[ca]
default_ca = test
[test]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[v3]
subjectAltName = {names}
extendedKeyUsage = {use}
"""


class Authority:
    """A folder that `medkg certs init` made."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.run("init", "--name", name)
        self.certificate, self.key = self.folder / "ca.pem", self.folder / "ca.key"
        self._numbers = count(1)

    def run(self, action: str, *arguments: object) -> None:
        """An action of `medkg certs` that succeeds."""
        assert main(["certs", action, *map(str, arguments), "--dir", str(self.folder)]) == 0

    def server(self) -> Pair:
        """A new one, for 127.0.0.1 and localhost."""
        name = f"gpu-{next(self._numbers)}"
        self.run("issue", "server", name, "--dns", "localhost", "--ip", "127.0.0.1")
        return self.files(f"server-{name}")

    def client(self, *tenants: str) -> Pair:
        """A new one, bound to tenants; without any, a service's."""
        name = f"worker-{next(self._numbers)}"
        whom = [part for tenant in tenants for part in ("--tenant", tenant)] or ["--service", name]
        self.run("issue", "client", name, *whom)
        return self.files(f"client-{name}")

    def files(self, stem: str) -> Pair:
        return self.folder / f"{stem}.pem", self.folder / f"{stem}.key"

    def flags(self) -> list[str]:
        """What makes a gpu-server demand certificates."""
        certificate, key = self.server()
        files = {"--tls-cert": certificate, "--tls-key": key, "--tls-client-ca": self.certificate}
        return [str(part) for pair in files.items() for part in pair]


def forge(
    authority: Authority,
    name: str,
    *,
    lasts: tuple[timedelta, timedelta] = (timedelta(days=-1), timedelta(days=1)),
    names: str = "IP:127.0.0.1,DNS:localhost",
    use: str = "serverAuth,clientAuth",
) -> Pair:
    """What `medkg certs` does not make: a certificate of `authority` with any times, names and use."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed, and makes the wrong certificates")
    folder = authority.folder.parent / f"forged-{name}"
    folder.mkdir()
    (folder / "index").write_text("")
    (folder / "config").write_text(OPENSSL.format(folder=folder, names=names, use=use))
    certificate, key, request = (folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key)
    openssl("req", *new_key, "-out", request, "-subj", f"/CN={name}")
    now = datetime.now(timezone.utc)
    start, end = ((now + moment).strftime("%Y%m%d%H%M%SZ") for moment in lasts)
    signing = ("-cert", authority.certificate, "-keyfile", authority.key, "-extensions", "v3", "-notext", "-batch")
    times = ("-startdate", start, "-enddate", end)
    openssl("ca", "-config", folder / "config", *signing, *times, "-in", request, "-out", certificate)
    return certificate, key


def openssl(*arguments: object) -> None:
    """A command that succeeds."""
    done = subprocess.run(["openssl", *map(str, arguments)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
