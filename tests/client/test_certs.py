"""`medkg certs` as an operator types it: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.server.authority import Authority, forge

MEDKG = Path(sys.executable).parent / "medkg"


def medkg(*arguments: object, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    """The command that `pip install medkg` brings."""
    command = [str(MEDKG), "certs", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=lambda: os.umask(umask)
    )


def done(*arguments: object, umask: int = 0o022) -> str:
    """What it says when it succeeds."""
    ended = medkg(*arguments, umask=umask)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def inspected(folder: Path, *arguments: object) -> dict[str, Any]:
    """What `inspect --json` says of a folder: by file name, and as a whole."""
    ended = medkg("inspect", "--json", "--dir", folder, *arguments)
    told = json.loads(ended.stdout)
    assert ended.returncode == (0 if told["good"] else 1)
    return {**told, **{Path(found["file"]).name: found for found in told["certificates"]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An authority with a server's certificate and two clients'."""
    folder = tmp_path / "certs"
    done("init", "--dir", folder)
    done("issue", "server", "gpu-0", "--dns", "gpu-0.example.org", "--ip", "10.0.0.7", "--dir", folder)
    done("issue", "client", "--tenant", "oncology", "--dir", folder)
    done("issue", "client", "--service", "gateway", "--days", 40, "--dir", folder)
    return folder


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.parametrize("umask", [0o022, 0o000, 0o277])
def test_keys_are_the_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "certs"
    done("init", "--dir", folder, umask=umask)
    done("issue", "server", "gpu", "--dns", "localhost", "--dir", folder, umask=umask)
    done("rotate", "--days", 398, "--dir", folder, umask=umask)
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "server-gpu.pem": 0o644, "server-gpu.key": 0o600}


def test_inspect_lists_what_there_is(folder: Path) -> None:
    told = inspected(folder)
    assert told["good"]
    assert told["problems"] == []
    facts = {
        name: (told[name]["subject"].split()[0], told[name]["uses"], told[name]["names"], told[name]["days_left"])
        for name in ("ca.pem", "server-gpu-0.pem", "client-oncology.pem", "client-gateway.pem")
    }
    assert facts == {
        "ca.pem": ("CN=medkg", ["authority"], [], 3649),
        "server-gpu-0.pem": ("CN=gpu-0", ["server"], ["dns:gpu-0.example.org", "ip:10.0.0.7"], 89),
        "client-oncology.pem": ("CN=oncology", ["client"], ["tenant:oncology"], 89),
        "client-gateway.pem": ("CN=gateway", ["client"], ["service:gateway"], 39),
    }
    table = done("inspect", "--dir", folder).splitlines()
    assert table[0].split() == ["FILE", "SUBJECT", "USE", "NAMES", "NOT", "AFTER", "DAYS", "PROBLEM"]
    assert len(table) == 5
    one = done("inspect", folder / "client-gateway.pem").splitlines()
    assert "service:gateway" in one[1]
    assert len(one) == 2


def test_inspect_fails_when_something_expires_within_the_days(folder: Path) -> None:
    assert inspected(folder, "--days", 38)["good"]
    told = inspected(folder, "--days", 40)
    assert told["client-gateway.pem"]["problems"] == ["expires in 39 days: renew it with rotate"]
    assert told["client-oncology.pem"]["problems"] == []
    ended = medkg("inspect", "--dir", folder, "--days", 40)
    assert ended.returncode == 1
    assert "expires in 39 days" in ended.stdout


def test_inspect_flags_what_has_expired(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "own")
    hour = timedelta(hours=1)
    certificate, key = forge(authority, "late", lasts=(-3 * hour, -hour))
    ended = medkg("inspect", certificate)
    assert ended.returncode == 1
    assert "expired: renew it with rotate" in ended.stdout
    # In its folder it can still be renewed, and is itself again.
    certificate.rename(authority.folder / "client-late.pem")
    key.rename(authority.folder / "client-late.key")
    assert inspected(authority.folder)["client-late.pem"]["days_left"] == -1
    done("rotate", "--dir", authority.folder)
    told = inspected(authority.folder, "--days", 0)
    assert told["client-late.pem"]["names"] == ["ip:127.0.0.1", "dns:localhost"]
    assert told["good"]


def test_an_open_key_is_named_and_not_used(folder: Path) -> None:
    for key, fails in ((folder / "client-oncology.key", False), (folder / "ca.key", True)):
        key.chmod(0o644)
        told = inspected(folder)
        assert not told["good"]
        assert told["problems"] == [f"{key}: its mode is 0644, so others can get at keys; run `chmod 600 {key}`"]
        ended = medkg("rotate", "--days", 1, "--dir", folder)
        assert ended.returncode == (2 if fails else 0)
        assert (f"medkg: {key}: its mode is 0644" in ended.stderr) is fails
        key.chmod(0o600)


def test_a_second_init_refuses(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = medkg("init", "--dir", folder)
    assert again.returncode == 2
    assert again.stderr.startswith(f"medkg: {folder / 'ca.pem'}: is there already")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    done("init", "--force", "--dir", folder)
    told = inspected(folder)
    assert told["client-oncology.pem"]["problems"] == ["no authority of ca.pem signed it: issue it anew with --force"]
    skipped = medkg("rotate", "--dir", folder)
    assert skipped.returncode == 1
    assert skipped.stderr.count("not renewed: was signed by no authority of ca.pem") == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("issue", "server", "gpu"), "--dns or --ip"),
        (("issue", "server", "gpu", "--ip", "gpu-0"), "--ip"),
        (("issue", "server", "gpu", "--dns", "10.0.0.1"), "--dns"),
        (("issue", "server", "../gpu", "--dns", "a"), "NAME"),
        (("issue", "client"), "--tenant or --service"),
        (("issue", "client", "--tenant", "a", "--tenant", "b"), "NAME"),
        (("issue", "client", "x", "--tenant", "a b"), "--tenant"),
        (("issue", "client", "x", "--tenant", "a", "--service", "b"), "--tenant"),
        (("issue", "client", "--tenant", "a", "--days", "400"), "1 to 398"),
        (("issue", "client", "--tenant", "a", "--days", "-1"), "--days -1"),
        (("issue", "client", "--tenant", "oncology"), "is there already"),
        (("rotate", "--ca", "use"), "begin with --ca add"),
        (("rotate", "--ca", "away"), "invalid choice"),
        (("inspect", "/nowhere"), "/nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended = medkg(*arguments, "--dir", folder)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_an_authority_is_told_what_to_do(tmp_path: Path) -> None:
    ended = medkg("issue", "client", "--tenant", "a", "--dir", tmp_path)
    assert ended.returncode == 2
    assert "medkg certs init" in ended.stderr


def test_commands_that_run_at_once_wait_for_each_other(folder: Path) -> None:
    def rotate(_: int) -> int:
        return medkg("rotate", "--days", 398, "--dir", folder).returncode

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(rotate, range(6))) == {0}
    # Each key is its certificate's, and nothing half written lies about.
    assert inspected(folder)["good"]
    assert len(list(folder.iterdir())) == 8


def test_help_tells_the_defaults() -> None:
    assert "3650" in done("init", "--help")
    assert "90" in done("issue", "client", "--help")
    assert "30" in done("inspect", "--help")
