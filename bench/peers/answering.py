"""How a peer is driven: one JSON object a line on standard input, one on standard output; it ends with its input.

Peers run in interpreters of their own, which have torch; this file needs neither torch nor medkg.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def versions(*distributions: str) -> dict[str, str]:
    """Their installed versions."""
    return {name: version(name) for name in distributions}


def serve(load: Callable[..., tuple[dict[str, str], Mapping[str, Callable[..., Any]]]]) -> None:
    """Loads with the arguments out of argv[1] (JSON), says its versions, then answers each request by its key `do`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        versions_of_peer, actions = load(**json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - whatever it is, the results have to name it
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"value": versions_of_peer})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer({"value": actions[request.pop("do")](**request)})
        except Exception as error:  # noqa: BLE001 - as above
            answer({"error": f"{type(error).__name__}: {error}"})
