"""The best rate of a matrix product at MiniLM's shapes, per dtype: what model FLOP utilisation is measured against.

Tried are `linear`, and oneDNN's linear with the weights packed beforehand; with all threads in one product, and with
one product per thread at the same time. Every kernel's result is compared with an exact one first: a kernel that does
nothing is very fast.
"""
# ruff: noqa: TID251

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from answering import serve, versions

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = (
    (384, 1152),
    (384, 384),
    (384, 1536),
    (1536, 384),
)  # in, out: fused q/k/v, attention's output, the two of the MLP
ROWS = (256, 1024, 2048)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOOK, LONG = 0.03, 0.1  # seconds per case: at first, and for the few best ones later
BEST = 4


@dataclass(frozen=True)
class Case:
    """One kernel at one shape; `lanes` products run at once, with threads/lanes threads each."""

    call: Callable[[], Any]
    flops: int
    lanes: int


def kernels(rows: int, inner: int, outer: int, dtype: torch.dtype) -> list[Callable[[], Any]]:
    """`linear` and the packed one, checked against each other."""
    torch.manual_seed(3)
    states, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype) / inner**0.5
    bias = torch.randn(outer, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # noqa: SLF001 - what torch.compile calls
    linear = torch.nn.functional.linear

    def plain() -> Any:
        return linear(states, weight, bias)

    def fast() -> Any:
        return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")  # noqa: SLF001 - as above

    exact = linear(states.float(), weight.float(), bias.float())
    torch.testing.assert_close(plain().float(), exact, rtol=0.02, atol=0.05)
    torch.testing.assert_close(fast().float(), exact, rtol=0.02, atol=0.05)
    return [plain, fast]


class Rates:
    """The cases of each dtype; after the first look only the best ones are kept."""

    def __init__(self, threads: int) -> None:
        """Makes no tensors yet."""
        self.threads = threads
        self.cases: dict[str, list[Case]] = {}
        self.pool = ThreadPoolExecutor(threads)

    def lane(self, case: Case, seconds: float) -> float:
        """FLOP/s of one caller."""
        torch.set_num_threads(self.threads // case.lanes)
        with torch.inference_mode():
            case.call()
            calls, started = 0, time.perf_counter()
            while (passed := time.perf_counter() - started) < seconds:
                case.call()
                calls += 1
        return calls * case.flops / passed

    def measure(self, case: Case, seconds: float) -> float:
        """FLOP/s of all lanes together."""
        lanes = [self.pool.submit(self.lane, case, seconds) for _ in range(case.lanes)]
        return sum(lane.result() for lane in lanes)

    def rate(self, dtype: str) -> float:
        """The best FLOP/s now."""
        if dtype not in self.cases:
            with torch.inference_mode():
                cases = [
                    Case(call, 2 * rows * inner * outer, lanes)
                    for rows, (inner, outer) in product(ROWS, SHAPES)
                    for call in kernels(rows, inner, outer, DTYPES[dtype])
                    for lanes in sorted({1, self.threads})
                ]
            self.cases[dtype] = sorted(cases, key=lambda case: -self.measure(case, LOOK))[:BEST]
        return max(self.measure(case, LONG) for case in self.cases[dtype])


def load(threads: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Says what it can do."""
    torch.set_num_threads(threads)
    return versions("torch"), {"rate": Rates(threads).rate}


serve(load)
