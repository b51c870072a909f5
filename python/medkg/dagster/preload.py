"""Imports what the steps need, once, for a forkserver to fork from.

Dagster's multiprocess executor starts a fresh Python for every step, and importing Dagster and Docling takes seconds
of it. `forkserver_executor` names this module as the one to preload. Only imports happen here: medkg builds no
runtime, thread or connection before the first call, so nothing breaks in the fork.
"""

from contextlib import suppress
from importlib import import_module
from typing import Final

_WANTED: Final = (
    "medkg.dagster",
    # What a step imports through Dagster: its command line (the main module of the run's process is imported again in
    # each child), and the storages and I/O of a default instance.
    "dagster._cli",
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.fs_io_manager",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage",
    "fsspec.implementations.local",
    "upath",
    # Documents and chunks; a project may chunk elsewhere.
    "medkg.chunking.chunker",
    "medkg.chunking.loading",
    "docling.backend.html_backend",
    "docling.backend.md_backend",
    "docling.backend.msword_backend",
    "docling.backend.xml.jats_backend",
)

for _name in _WANTED:
    with suppress(ImportError):  # the step that needs what is missing says so
        import_module(_name)
