"""Measure an exported re-ranker again on the held-out SciFact claims.

python measure.py --base-model DIR --data ../../../shared/data [--model DIR] [--max-tokens 160]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from collection import load_held_out
from evaluate import score_split, summarise, weight_curve
from model import MAX_TOKENS, load_exported, pair_tokenizer, scorer


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with scifact/ and pubmedqa/")
    parser.add_argument("--model", type=Path, default=here.parent / "models" / "medkg-reranker-minilm")
    parser.add_argument("--work", type=Path, default=here / "work", help="embeddings are cached here")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="query and passage together")
    parser.add_argument("--splits", nargs="+", choices=["dev", "test"], default=["dev", "test"])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Print the figures of each split as JSON."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    held_out = load_held_out(arguments.data, arguments.base_model, arguments.work / "embeddings")
    score = scorer(load_exported(arguments.model), pair_tokenizer(arguments.base_model, arguments.max_tokens))
    report: dict[str, object] = {"max_tokens": arguments.max_tokens}
    for name in arguments.splits:
        split = score_split(*held_out[name], score)
        report[name] = summarise(split)
        if name == "dev":
            report["dev_ndcg_at_10_by_first_stage_weight"] = weight_curve(split)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
