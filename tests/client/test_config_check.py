"""`medkg config check` as an operator types it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import medkg

MEDKG = Path(sys.executable).parent / "medkg"


def check(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MEDKG_")}
    command = [str(MEDKG), "config", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**clean, **variables})


def told(*arguments: object, **variables: str) -> dict[str, dict[str, Any]]:
    """What it says with --json, by option."""
    ended = check("--json", *arguments, **variables)
    assert (ended.returncode, ended.stderr) == (0, "")
    answer = json.loads(ended.stdout)
    assert answer["good"]
    return {option["option"]: option for option in answer["options"]}


def test_every_option_is_listed_with_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "medkg.yaml"
    path.write_text("tenant: clinic\ntimeout: 5\ncache: {redis: 'redis://:hunter2@127.0.0.1'}\n")
    options = told(path, MEDKG_TIMEOUT="7.5", MEDKG_ADDRESSES="http://127.0.0.1:1,http://127.0.0.1:2")
    names = {field.name for field in dataclasses.fields(medkg.ClientConfig)} - {"cache"}
    assert set(options) == names | {"cache.memory_bytes", "cache.ttl", "cache.redis"}
    assert options["tenant"] == {"option": "tenant", "value": "clinic", "from": str(path)}
    assert options["timeout"] == {"option": "timeout", "value": 7.5, "from": "MEDKG_TIMEOUT"}
    assert options["addresses"]["value"] == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    assert options["max_attempts"] == {"option": "max_attempts", "value": 4, "from": "default"}
    assert options["cache.redis"] == {"option": "cache.redis", "value": "(hidden)", "from": str(path)}
    ended = check(MEDKG_CONFIG=str(path))
    assert ended.returncode == 0
    assert "hunter2" not in ended.stdout
    header, *rows = ended.stdout.splitlines()
    assert header.split() == ["OPTION", "VALUE", "FROM"]
    assert ["tenant", "clinic", str(path)] in [row.split() for row in rows]
    assert told("--no-env", MEDKG_TENANT="x")["tenant"]["from"] == "default"


def test_every_problem_is_listed_and_the_status_says_so(tmp_path: Path) -> None:
    path = tmp_path / "medkg.toml"
    path.write_text("timeout = -1\nadress = 'x'\n")
    ended = check(path, MEDKG_ADDRESS="http://gpu:1")
    assert (ended.returncode, ended.stdout) == (64, "")
    for problem in (f"{path}: timeout: is -1", "did you mean address?", "MEDKG_ADDRESS: ", "allow_plaintext"):
        assert problem in ended.stderr
    ended = check("--json", path)
    answer = json.loads(ended.stdout)
    assert (ended.returncode, answer["good"]) == (64, False)
    assert {problem["place"] for problem in answer["problems"]} == {f"{path}: timeout", f"{path}: adress"}


def test_tls_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "medkg.toml"
    path.write_text("address = 'https://127.0.0.1:1'\n[tls]\nca_file = 'absent.pem'\n")
    ended = check(path)
    assert ended.returncode == 64
    assert str(tmp_path / "absent.pem") in ended.stderr
