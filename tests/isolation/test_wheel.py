"""The built wheel: what is in it, and what a clean installation of it with every extra has, imports, maps and links."""

from __future__ import annotations

import io
import re
import sys
import tokenize
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import evidence
from .conftest import EXTRAS, HERE, ROOT

if TYPE_CHECKING:
    from medkg.local import LocalServer

    from .conftest import CleanEnvironment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SAMPLES = ROOT / "examples" / "documents"
NOTHING = {"installed": [], "importable": [], "imported": [], "mapped": []}
SAY = f"import json, sys; sys.path.append({str(HERE)!r}); import evidence\n"
"""First line of a snippet that says what its process holds."""
TELL = "\nprint(json.dumps(evidence.of_this_process()))"
MAX_BYTES = 12 * 1024 * 1024
C_LIBRARY = re.compile(r"(linux-vdso|ld-linux-.*|libc|libm|libgcc_s|libpthread|libdl|librt)\.so.*")


class TestContents:
    def test_it_fits_every_python_from_3_10(self, wheel: Path) -> None:
        assert re.fullmatch(r"medkg-[\w.]+-cp310-abi3-(many)?linux\w*\.whl", wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            objects = [name for name in archive.namelist() if re.search(r"\.so(\.|$)", name)]
        assert objects == ["medkg/_core.abi3.so"]

    def test_it_carries_types_and_licence(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
            told = archive.read(metadata).decode()
        assert {"medkg/py.typed", "medkg/_core.pyi"} <= names
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
        assert "License-Expression: Apache-2.0" in told
        assert sorted(re.findall(r"^Provides-Extra: (.+)$", told, re.MULTILINE)) == sorted(EXTRAS)
        assert not [name for name in names if name.startswith(("tests/", "examples/")) or "__pycache__" in name]

    @pytest.mark.requirement("isolation 15.1")
    def test_no_name_in_its_code_is_about_torch(self, wheel: Path) -> None:
        """No option, check or fallback: words in comments and messages may speak of it, names may not."""
        about = re.compile(r"torch|transformers|cuda|cudnn", re.IGNORECASE)
        found, files = [], 0
        with zipfile.ZipFile(wheel) as archive:
            for name in (name for name in archive.namelist() if name.endswith((".py", ".pyi"))):
                files += 1
                tokens = tokenize.tokenize(io.BytesIO(archive.read(name)).readline)
                found += [
                    (name, t.start[0], t.string) for t in tokens if t.type == tokenize.NAME and about.search(t.string)
                ]
        assert files > 20
        assert found == []

    def test_it_stays_small(self, wheel: Path) -> None:
        assert wheel.stat().st_size <= MAX_BYTES


@pytest.mark.requirement("isolation 15.1")
class TestWithEveryExtra:
    def test_nothing_of_torch_is_installed(self, with_extras: CleanEnvironment) -> None:
        found = with_extras.run(
            SAY + "from importlib.metadata import distributions\n"
            "print(json.dumps([evidence.of_this_process(), sorted(dist.name for dist in distributions())]))"
        )
        assert found[0] == NOTHING
        wanted = {"medkg", "numpy", "dagster", "docling-core", "starlette", "opentelemetry-api", "lancedb", "pymilvus"}
        assert wanted <= set(found[1])

    def test_importing_every_module_brings_none(self, with_extras: CleanEnvironment) -> None:
        code = """
import importlib, pkgutil, medkg
names = [module.name for module in pkgutil.walk_packages(medkg.__path__, "medkg.")]
for name in names:
    importlib.import_module(name)
for name in medkg.__all__:
    getattr(medkg, name)
print(json.dumps([evidence.of_this_process(), names, medkg.__file__]))
"""
        found, names, home = with_extras.run(SAY + code)
        assert found == NOTHING
        assert {"medkg._core", "medkg.aio", "medkg.chunking.chunker", "medkg.dagster.assets"} <= set(names)
        assert {"medkg.vectors.lance", "medkg.vectors.milvus"} <= set(names)
        assert Path(home).is_relative_to(with_extras.site)

    def test_the_whole_pipeline_brings_none(
        self, with_extras: CleanEnvironment, server: LocalServer, tmp_path: Path
    ) -> None:
        """The worker's day in one process: read, chunk, embed, index, rerank, through Dagster and by hand."""
        code = """
import dagster as dg, medkg
from medkg.dagster import GpuServicesResource, medkg_assets
import opentelemetry.trace, starlette.applications
address, documents, home = sys.argv[1:]
assets = medkg_assets(documents=documents, questions=["How soon must antibiotics be given in septic shock?"])
with dg.DagsterInstance.local_temp(home) as instance:
    resource = GpuServicesResource(address=address, tenant="isolation")
    done = dg.materialize(list(assets), resources={"gpu_services": resource}, instance=instance)
    assert done.success
    answers = done.output_for_node("reranked_answers")
with medkg.connect(address=address, tenant="isolation") as services:
    vectors = services.embedding.embed(["Aspirin inhibits platelet aggregation."]).vectors
    for collection in services.vector.collections():
        services.vector.drop_collection(collection.name)
print(json.dumps([evidence.of_this_process(), len(answers[0].passages), vectors.shape, len(sys.modules)]))
"""
        home = tmp_path / "dagster"
        home.mkdir()
        found, passages, shape, modules = with_extras.run(SAY + code, server.address, str(SAMPLES), str(home))
        assert passages > 0
        assert shape == [1, 384]
        assert modules > 1000, "the pipeline cannot have run with so few modules"
        assert found == NOTHING

    def test_nothing_that_was_installed_is_linked_against_it(self, with_extras: CleanEnvironment) -> None:
        # `ldd` resolves what our own extension needs; the hundreds of others are searched for the names.
        (extension,) = evidence.linked([with_extras.site / "medkg" / "_core.abi3.so"]).values()
        assert evidence.libraries(extension) == []
        assert [name for name in extension if not C_LIBRARY.fullmatch(name)] == []
        objects = [path for path in with_extras.site.rglob("*.so*") if path.is_file()]
        assert len(objects) > 50
        assert evidence.libraries(path.name for path in objects) == []
        names = re.compile(rb"\0lib(?:torch|c10|cudart|cublas|cudnn)[\w.-]*\.so")
        assert [path.name for path in objects if names.search(path.read_bytes())] == []

    def test_importing_medkg_is_light(self, with_extras: CleanEnvironment) -> None:
        heavy = ["numpy", "pydantic", "dagster", "docling", "docling_core", "opentelemetry", "starlette", "medkg._core"]
        heavy += ["lancedb", "pyarrow", "pymilvus", "milvus_lite"]
        code = f"import json, sys, medkg\nprint(json.dumps([name for name in {heavy} if name in sys.modules]))"
        assert with_extras.run(code) == []


class TestWithoutExtras:
    def test_only_numpy_comes_with_it(self, without_extras: CleanEnvironment) -> None:
        code = "import json\nfrom importlib.metadata import distributions\n"
        assert without_extras.run(code + "print(json.dumps(sorted(d.name for d in distributions())))") == [
            "medkg",
            "numpy",
        ]

    def test_the_clients_work(self, without_extras: CleanEnvironment, server: LocalServer) -> None:
        code = """
import asyncio, medkg
with medkg.connect(address=sys.argv[1], tenant="bare") as services:
    shape = services.embedding.embed(["one", "two"]).vectors.shape
async def twice():
    async with medkg.connect_async(address=sys.argv[1], tenant="bare") as services:
        return (await services.embedding.embed(["three"])).vectors.shape
print(json.dumps([evidence.of_this_process(), shape, asyncio.run(twice())]))
"""
        assert without_extras.run(SAY + code, server.address) == [NOTHING, [2, 384], [1, 384]]

    @pytest.mark.parametrize(
        ("extra", "use"),
        [
            ("dagster", "import medkg.dagster"),
            ("lance", "from medkg.vectors import LanceStore"),
            ("milvus", "from medkg.vectors import MilvusStore"),
            ("arrow", "from medkg.vectors.arrow import load; load()"),
            ("dagster", "from medkg.dagster import GpuServicesResource"),
            ("chunking", "from medkg.chunking import Chunker"),
            ("chunking", "from medkg.chunking import load_document; load_document(__import__('sys').argv[1])"),
        ],
    )
    def test_what_needs_an_extra_names_it(self, without_extras: CleanEnvironment, extra: str, use: str) -> None:
        code = f"""
import json
try:
    {use}
except ImportError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps("no error"))
"""
        sample = next(SAMPLES.glob("*.md"))
        assert f"pip install 'medkg[{extra}]'" in without_extras.run(code, str(sample))


class TestTheChecksThemselves:
    """Each of them sees torch where it is."""

    def test_a_process_with_torch_is_seen(self, without_extras: CleanEnvironment, tmp_path: Path) -> None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text("")
        library = tmp_path / "libtorch_cpu.so"
        library.write_bytes(b"\0" * 4096)
        for name in ("torch-2.13.0", "nvidia_cublas-13.0"):
            (tmp_path / f"{name}.dist-info").mkdir()
            (tmp_path / f"{name}.dist-info" / "METADATA").write_text(f"Name: {name.partition('-')[0]}\nVersion: 1\n")
        code = f"""
import mmap, torch
with open({str(library)!r}, "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
"""
        found = without_extras.run(SAY + code + TELL, PYTHONPATH=str(tmp_path))
        assert found == {
            "installed": ["nvidia-cublas", "torch"],
            "importable": ["torch"],
            "imported": ["torch"],
            "mapped": ["libtorch_cpu.so"],
        }

    def test_a_binary_with_libtorch_is_seen(self, gpu_server_binary: Path) -> None:
        (needed,) = evidence.linked([gpu_server_binary]).values()
        assert {"libtorch_cpu.so", "libc10.so"} <= set(evidence.libraries(needed))

    @pytest.mark.parametrize(
        "name", ["libcuda.so.1", "libcudart-13.so", "libcublasLt.so.13", "libtriton.so", "libc10.so"]
    )
    def test_library_names_are_seen(self, name: str) -> None:
        assert evidence.libraries([name, "libc.so.6", "libcrypto.so.3"]) == [name]


@pytest.mark.requirement("isolation 15.1")
def test_no_requirement_of_the_project_names_torch() -> None:
    """What the wheel asks for and what the project's own interpreter is made of; torch has lock files of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    locked = re.findall(r"^([a-z0-9][\w.-]*)==", (ROOT / "ops/requirements/dev.lock").read_text("utf-8"), re.MULTILINE)
    names = [re.split(r"[\[<>=~! ;]", need)[0] for need in asked] + locked
    assert [name for name in names if evidence.DISTRIBUTIONS.fullmatch(name)] == []
    assert evidence.importable() == []
