"""Train medkg-reranker-minilm, a small cross-encoder over medical abstracts, on one CPU thread.

    python train_reranker.py --base-model DIR --data ../../../shared/data --minutes 60

Each step draws groups of one relevant and four other passages and lowers the cross-entropy of the relevant one.
The run is planned by elapsed time or by ``--steps``; it can be stopped at any moment (Ctrl-C or SIGTERM) and goes
on from its last checkpoint when started again with the same ``--work`` folder. At the end the checkpoint with the
best fused nDCG@10 on the dev claims is written out in fp16, and that file is what the test claims are measured on.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from collection import Collection, load_collection
from evaluate import score_split, summarise, weight_curve
from model import MAX_TOKENS, export, load_exported, logits, pair_tokenizer, scorer, start_from
from sampling import END_MIX, NEGATIVES, START_MIX, Sampler

if TYPE_CHECKING:
    from types import FrameType

    from transformers import BertForSequenceClassification

GROUPS_PER_STEP = 4
LEARNING_RATE = 1e-4
HEAD_FACTOR = 5.0
"""The pooler and the fresh head learn this much faster than the layers below."""
WEIGHT_DECAY = 0.01
WARM_UP = 0.05
DEV_AT = (0.4, 0.6, 0.8, 1.0)
CHECKPOINT_SECONDS = 180.0


@dataclass(frozen=True)
class Plan:
    """When the run ends: after ``minutes`` of training, or after ``steps`` when that is set."""

    minutes: float
    steps: int | None

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, in [0, 1]."""
        done = step / self.steps if self.steps else seconds / (60.0 * self.minutes)
        return min(1.0, done)


def learning_rate(progress: float) -> float:
    """Linear warm-up, then linear decay to a fiftieth."""
    if progress < WARM_UP:
        return LEARNING_RATE * max(progress / WARM_UP, 0.02)
    return LEARNING_RATE * max((1.0 - progress) / (1.0 - WARM_UP), 0.02)


class Run:
    """One training run with everything its checkpoint holds."""

    def __init__(self, arguments: argparse.Namespace, collection: Collection) -> None:
        """Start from the base model; :meth:`resume` replaces that with a checkpoint."""
        self.plan = Plan(arguments.minutes, arguments.steps)
        self.work: Path = arguments.work
        self.collection = collection
        self.tokenizer = pair_tokenizer(arguments.base_model)
        self.model = start_from(arguments.base_model, arguments.seed)
        self.sampler = Sampler(collection.training, arguments.seed)
        named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        head = [value for name, value in named if name.startswith(("bert.pooler", "classifier"))]
        body = [value for name, value in named if not name.startswith(("bert.pooler", "classifier"))]
        self.optimizer = torch.optim.AdamW(
            [{"params": body, "factor": 1.0}, {"params": head, "factor": HEAD_FACTOR}], weight_decay=WEIGHT_DECAY
        )
        self.step = 0
        self.seconds = 0.0
        self.dev: list[dict[str, float]] = []
        self.stopping = False

    def resume(self) -> None:
        """Go on from the checkpoint in the work folder, when there is one."""
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.drawn = state["drawn"]
        self.step, self.seconds, self.dev = state["step"], state["seconds"], state["dev"]
        torch.set_rng_state(state["rng"])
        print(f"resumed at step {self.step}, {self.seconds / 60:.1f} min", flush=True)

    def save(self) -> None:
        """Write the checkpoint; a stop in the middle of it leaves the previous one whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "drawn": self.sampler.drawn,
            "step": self.step,
            "seconds": self.seconds,
            "dev": self.dev,
            "rng": torch.get_rng_state(),
        }
        torch.save(state, self.work / "checkpoint.part")
        (self.work / "checkpoint.part").replace(self.work / "checkpoint.pt")

    def one_step(self) -> float:
        """One optimizer step over ``GROUPS_PER_STEP`` groups, a group at a time so that it stays in the cache."""
        progress = self.plan.progress(self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(progress)
        total = 0.0
        target = torch.zeros(1, dtype=torch.long)
        for query, passages in self.sampler.step(self.step, GROUPS_PER_STEP, progress):
            scores = logits(self.model, self.tokenizer, [(query, text) for text in passages])
            loss = torch.nn.functional.cross_entropy(scores.unsqueeze(0), target) / GROUPS_PER_STEP
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def measure_dev(self) -> None:
        """Score the dev claims; keep the model when its fused nDCG@10 is the best so far."""
        split = score_split(*self.collection.dev, scorer(self.model, self.tokenizer))
        alone = float(split.per_query(lambda n: split.cross_encoder[n])[0].mean())
        fused = float(split.fused()[0].mean())
        best = max((entry["fused"] for entry in self.dev), default=-1.0)
        self.dev.append({"step": self.step, "minutes": round(self.seconds / 60, 1), "alone": alone, "fused": fused})
        print(f"dev at step {self.step}: cross-encoder {alone:.4f} fused {fused:.4f}", flush=True)
        if fused > best:
            torch.save(self.model.state_dict(), self.work / "best.pt")

    def train(self) -> bool:
        """Train to the end of the plan; False when stopped before it."""
        self.model.train()
        saved_at = time.monotonic()
        window: list[float] = []
        while (progress := self.plan.progress(self.step, self.seconds)) < 1.0 and not self.stopping:
            if len(self.dev) < len(DEV_AT) - 1 and progress >= DEV_AT[len(self.dev)]:
                self.measure_dev()
            started = time.monotonic()
            window.append(self.one_step())
            self.seconds += time.monotonic() - started
            if self.step % 20 == 0:
                print(
                    f"step {self.step} {self.seconds / 60:.1f} min {progress:.0%} loss {sum(window) / len(window):.4f} "
                    f"{GROUPS_PER_STEP * (1 + NEGATIVES) / (time.monotonic() - started):.1f} pairs/s",
                    flush=True,
                )
                window.clear()
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                self.save()
                saved_at = time.monotonic()
        if not self.stopping and len(self.dev) < len(DEV_AT):
            self.measure_dev()
        self.save()
        return not self.stopping

    def best_model(self) -> BertForSequenceClassification:
        """The model as it was at the best dev measurement."""
        self.model.load_state_dict(torch.load(self.work / "best.pt", weights_only=True))
        return self.model.eval()


def finish(run: Run, arguments: argparse.Namespace) -> dict[str, object]:
    """Export the best checkpoint and measure the exported file on dev and, once, on test."""
    export(run.best_model(), arguments.base_model, arguments.out)
    shipped = scorer(load_exported(arguments.out), run.tokenizer)
    dev = score_split(*run.collection.dev, shipped)
    test = score_split(*run.collection.test, shipped)
    return {
        "dev": summarise(dev) | {"ndcg_at_10_by_first_stage_weight": weight_curve(dev)},
        "test": summarise(test),
        "dev_during_training": run.dev,
        "chosen": max(run.dev, key=lambda entry: entry["fused"]),
        "training": {
            "steps": run.step,
            "minutes": round(run.seconds / 60, 1),
            "pairs": run.step * GROUPS_PER_STEP * (1 + NEGATIVES),
            "queries_drawn": run.sampler.drawn,
            "queries_available": {kind: len(c.queries.queries) for kind, c in run.collection.training.items()},
            "groups_per_step": GROUPS_PER_STEP,
            "passages_per_group": 1 + NEGATIVES,
            "max_tokens": MAX_TOKENS,
            "learning_rate": LEARNING_RATE,
            "head_learning_rate": LEARNING_RATE * HEAD_FACTOR,
            "mix_at_start": dict(START_MIX),
            "mix_at_end": dict(END_MIX),
            "seed": arguments.seed,
            "threads": arguments.threads,
            "precision": "float32",
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with scifact/ and pubmedqa/")
    parser.add_argument("--work", type=Path, default=here / "work", help="embeddings and checkpoints")
    parser.add_argument("--out", type=Path, default=here.parent / "models" / "medkg-reranker-minilm")
    parser.add_argument("--minutes", type=float, default=60.0, help="time spent in training steps")
    parser.add_argument("--steps", type=int, default=None, help="end after this many steps instead")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Train, export, measure; 130 when stopped before the end."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = Run(arguments, load_collection(arguments.data, arguments.base_model, arguments.work / "embeddings"))
    run.resume()

    def stop(_number: int, _frame: FrameType | None) -> None:
        run.stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if not run.train():
        print(f"stopped at step {run.step}; start again with the same --work to go on", flush=True)
        return 130
    report = finish(run, arguments)
    (arguments.out / "training_metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
