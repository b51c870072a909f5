"""What the whole suite shares: the real gpu-server, the models, and the raw wire.

`make test` builds everything first. Run by hand, the paths come from the environment variables that
ops/dev/environment.sh sets, or from where `make setup` puts things.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import medkg
from medkg.local import LocalServer
from tests import docling_serve as scripted
from tests.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CACHE = Path(
    os.environ.get("MEDKG_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medkg"
)

EMBEDDING_MODEL = "all-MiniLM-L6-v2"
RERANKING_MODEL = "medkg-reranker-minilm"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the acceptance suite's option."""
    parser.addoption(
        "--medkg-config",
        metavar="FILE",
        default=None,
        help="TOML file with the ClientConfig of the deployment that tests/acceptance accepts; absent: the local build",
    )


def pytest_configure() -> None:
    """Takes the developer's own configuration of clients out of the environment: each test says what it wants."""
    fields = {f"MEDKG_{field.name}".upper() for field in dataclasses.fields(medkg.ClientConfig)} - {"MEDKG_CACHE"}
    for name in list(os.environ):
        if name in {"MEDKG_CONFIG", *fields} or name.startswith(("MEDKG_TLS_", "MEDKG_CACHE_", "MEDKG_REGISTRY_")):
            del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Writes each test's fault into its results, where tests/reliability_table.py finds it."""
    for item in items:
        for mark in item.iter_markers("fault"):
            area, fault, expected = mark.args
            item.user_properties.append(("fault", json.dumps([area, fault, expected])))


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tells what the run saw of the test's fault, for docs/reliability.md: words and figures, no ports, no paths."""

    def tell(what: str) -> None:
        request.node.user_properties.append(("seen", what))

    return tell


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of the test's own."""
    server = Redis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def docling_serve() -> Iterator[scripted.DoclingServe]:
    """A docling-serve that does what the test says."""
    with scripted.serving() as server:
        yield server


@pytest.fixture(scope="session")
def gpu_server_binary() -> Path:
    """The gpu-server that `make server` built."""
    path = Path(os.environ.get("MEDKG_GPU_SERVER", ROOT / "build" / "gpu-server"))
    if not path.exists():
        pytest.fail(f"{path} is not there: run `make server`")
    return path


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The checkpoint of all-MiniLM-L6-v2."""
    path = Path(os.environ.get("MEDKG_TEST_MODEL_DIR", CACHE / "models" / EMBEDDING_MODEL))
    if not (path / "model.safetensors").exists():
        pytest.fail(f"{path} has no model.safetensors: run `make setup`")
    return path


@pytest.fixture(scope="session")
def reranker_dir() -> Path:
    """The checkpoint of the reranker that the repository ships."""
    return ROOT / "gpu-server" / "models" / RERANKING_MODEL


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real documents and judged queries; a fresh clone does not have them."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip("../shared/data is not there: a fresh clone has no judged queries")
    return path


@pytest.fixture(scope="session")
def start_server(
    gpu_server_binary: Path, minilm_dir: Path, reranker_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., LocalServer]]:
    """Starts servers with all roles and both models unless told otherwise; all are stopped at the end.

    They compute in f32, so that results can be compared exactly; `arguments` with a `--dtype` of their own decide.
    """
    started: list[LocalServer] = []

    def start(**options: Any) -> LocalServer:
        folder = tmp_path_factory.mktemp("gpu-server")
        defaults: dict[str, Any] = {
            "embedding_models": {EMBEDDING_MODEL: minilm_dir},
            "reranking_models": {RERANKING_MODEL: reranker_dir},
            "data_dir": folder / "data",
            "log_path": folder / "log.jsonl",
            "threads": 1,
        }
        arguments = tuple(options.pop("arguments", ()))
        if "--dtype" not in arguments:
            arguments = ("--dtype", "f32", *arguments)
        server = LocalServer(gpu_server_binary, arguments=arguments, **{**defaults, **options})
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., LocalServer]) -> LocalServer:
    """A running gpu-server on the CPU with every role. Tests that stop or break one start their own."""
    return start_server()


@pytest.fixture(scope="session")
def prompted_server(
    start_server: Callable[..., LocalServer], minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> LocalServer:
    """A gpu-server whose models "named" and "by-default" are MiniLM with the prompts "query" and "passage"; the second
    one puts "query" before the texts of calls that ask for nothing."""
    models = {EMBEDDING_MODEL: minilm_dir}
    for name, default in (("named", None), ("by-default", "query")):
        folder = tmp_path_factory.mktemp(name)
        for file in minilm_dir.iterdir():
            if file.name != "config_sentence_transformers.json":
                (folder / file.name).symlink_to(file)
        config = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": default}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
        models[name] = folder
    return start_server(services=("embedding", "gpu"), embedding_models=models, reranking_models={}, data_dir=None)


@pytest.fixture(scope="session")
def wire(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The wire without medkg's client: modules made by grpcio-tools out of proto/medkg/v1.

    `wire.embedding`, `wire.reranking`, `wire.vector`, `wire.gpu`, `wire.model`, `wire.backup`, `wire.types` hold the
    messages and the stubs.
    """
    from types import SimpleNamespace

    from grpc_tools import protoc

    folder = tmp_path_factory.mktemp("wire")
    names = ("types", "gpu", "embedding", "reranking", "model", "vector", "backup")
    files = [f"medkg/v1/{name}.proto" for name in names]
    include = str(Path(protoc.__file__).parent / "_proto")
    arguments = [f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    assert protoc.main(["protoc", *arguments, *files]) == 0
    # The generated code says `from medkg.v1 import ...`; medkg is also the package under test, so it gets another name.
    generated = folder / "medkg_wire"
    (folder / "medkg").rename(generated)
    for path in generated.rglob("*.py"):
        path.write_text(path.read_text().replace("from medkg.v1 import", "from medkg_wire.v1 import"))
    sys.path.insert(0, str(folder))
    merged = {}
    for name in names:
        messages = importlib.import_module(f"medkg_wire.v1.{name}_pb2")
        stubs = importlib.import_module(f"medkg_wire.v1.{name}_pb2_grpc")
        merged[name] = SimpleNamespace(**{**vars(stubs), **vars(messages)})
    return SimpleNamespace(**merged)
