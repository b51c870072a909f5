"""`open_store` chooses a home, and what is stored in a local home outlives the process that stored it."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from medkg.filters import Exists
from medkg.vectors import GpuServerStore, LanceStore, MilvusStore, open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

VECTORS = np.eye(3, dtype=np.float32)


def test_a_server_with_the_role_is_the_home(server: LocalServer, tmp_path: Path) -> None:
    tenant = f"open-{uuid.uuid4().hex[:8]}"
    with medkg.connect(address=server.address, tenant=tenant) as services:
        for connection in (services, services.vector):
            with open_store(connection, uri=tmp_path) as store:
                assert isinstance(store, GpuServerStore)
                assert store.tenant == tenant
        # Closing a store leaves the connection to its owner.
        assert services.vector.collections() == []
        with open_store(services, tenant="another") as store:
            assert store.tenant == "another"
        with open_store(services, uri=tmp_path, home="lance") as store:
            assert isinstance(store, LanceStore)


def test_lance_is_the_home_where_the_server_has_no_such_role(
    start_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    server = start_server(services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None)
    with medkg.connect(address=server.address, tenant="demo") as services:
        with open_store(services, uri=tmp_path) as store:
            assert isinstance(store, LanceStore)
            assert store.tenant == "demo"
        with pytest.raises(medkg.ConfigError) as caught:
            open_store(services)
        assert caught.value.field_violations[0][0] == "uri"


def test_a_server_that_is_away_is_no_reason_to_store_elsewhere(tmp_path: Path) -> None:
    services = medkg.connect(address="http://127.0.0.1:1", tenant="demo", timeout=2.0)
    with services, pytest.raises(medkg.ServiceError):
        open_store(services, uri=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"uri": "somewhere"}, "tenant"),
        ({"uri": "somewhere", "tenant": "../up"}, "tenant"),
        ({"tenant": "demo"}, "uri"),
        ({"tenant": "demo", "home": "milvus"}, "uri"),
        ({"tenant": "demo", "home": "gpu-server"}, "connection"),
        ({"uri": "somewhere", "tenant": "demo", "home": "elsewhere"}, "home"),
    ],
)
def test_what_is_missing_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(medkg.ConfigError) as caught:
        open_store(**options)
    assert caught.value.field_violations[0][0] == field


@pytest.mark.parametrize(("home", "place"), [("lance", "folder"), ("milvus", "vectors.db")])
def test_what_one_process_stored_another_one_finds(home: Any, place: str, tmp_path: Path) -> None:
    code = """
import sys, numpy
from medkg.vectors import open_store
with open_store(uri=sys.argv[1], tenant="demo", home=sys.argv[2]) as store:
    store.create("kept", 3, "l2")
    store.upsert("kept", ["a", "b", "c"], numpy.eye(3, dtype=numpy.float32), [None, {"n": 1}, None])
"""
    uri = str(tmp_path / place)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, uri, home],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with open_store(uri=uri, tenant="demo", home=home) as store:
        assert isinstance(store, LanceStore if home == "lance" else MilvusStore)
        assert store.list() == [medkg.CollectionInfo("kept", 3, "l2", "f32", created=False)]
        [[nearest]] = store.search("kept", VECTORS[1], 1)
        assert (nearest.id, nearest.score, nearest.payload) == ("b", 0.0, {"n": 1})
        assert store.count("kept", Exists("n")) == 1


def test_choosing_a_home_loads_no_other() -> None:
    code = """
import sys, medkg.vectors
assert not {"numpy", "lancedb", "pyarrow", "pymilvus"} & set(sys.modules)
from medkg.vectors import GpuServerStore
assert not {"lancedb", "pyarrow", "pymilvus"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
