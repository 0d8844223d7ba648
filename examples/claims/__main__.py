"""Test common claims about LeNet-5: `python -m examples.claims` tests all of them, `... shift` one.

Every claim is a file beside this one, which says what is measured (``plan``, ``measure``) and how it is shown
(``table``, ``draw``).
"""

from examples import programs

if __name__ == "__main__":
    programs.begin("matplotlib", "tqdm")

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from examples import plots
from examples.claims import overfitting, parameters, shift
from examples.claims.shared import BATCH, LR, SMALL_BATCH, Record, Sets
from examples.runs import as_json, own_folder, read_json
from tinygrad_lenet import checkpoint, data, parallel

CLAIMS: dict[str, Any] = {"parameters": parameters, "shift": shift, "overfitting": overfitting}


def load(dataset: str, folder: Path | None, download: bool) -> Sets:
    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        return data.digits(name) if dataset == "digits" else data.mnist(folder, name, download=download)

    return Sets(*split("train"), *split("test"))


def open_results(path: Path, settings: Record) -> Record:
    """What was measured with these settings, if anything; ValueError if the file holds something else."""
    if not path.exists():
        return {"settings": settings, "measurements": {}}
    results: Record = read_json(path)
    theirs = results.get("settings") if isinstance(results, dict) else None
    if not isinstance(theirs, dict) or not isinstance(results.get("measurements"), dict):
        raise ValueError(f"{path} holds no results of claims; remove it, or choose another --out")
    differences = [
        f"{name} is {settings.get(name)} here and {theirs.get(name)} there"
        for name in sorted(settings.keys() | theirs.keys())
        if settings.get(name) != theirs.get(name)
    ]
    if differences:
        raise ValueError(f"{path} has other settings: {', '.join(differences)}; choose another --out")
    return results


def run(name: str, results: Record, sets: Sets, args: argparse.Namespace) -> None:
    """Take all measurements of a claim that ``results`` lacks, saving after each; draw the figure, print the table."""
    claim, settings, finished = CLAIMS[name], results["settings"], results["measurements"]
    records = [record for record in claim.plan(settings, args.seed) if record.get("digits", 0) <= len(sets.images)]
    for record in tqdm(records, desc=name, disable=args.no_progress):
        key = ", ".join(map(str, record.values()))
        if key not in finished:
            finished[key] = record | claim.measure(settings, sets, **record)
            checkpoint.replace(args.out / f"{name}.json", as_json(results))
    warning = "quick, not comparable" if args.quick else ""
    figure = claim.draw(list(finished.values()), sets)
    plots.stamp(figure, warning)
    plots.save(figure, args.out / f"{name}.png")
    print(f"\n{claim.__doc__}{f' ({warning})' if warning else ''}\n\n{claim.table(list(finished.values()))}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.claims",
        description="Test claims about LeNet-5; write the measurements and a figure for each. Whatever --out already "
        "holds is not measured again.",
        formatter_class=programs.Help,
    )
    parser.add_argument("claim", nargs="?", choices=CLAIMS, help="a single claim (default: all)")
    parser.add_argument("--quick", action="store_true", help="a demonstration of a few seconds; its numbers are poor")
    parser.add_argument("--dataset", choices=["digits", "mnist"], help="default: mnist; with --quick, digits")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files (default: your cache folder)")
    parser.add_argument("--download", action="store_true", help="download what is missing or damaged in --data-dir")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/claims, or runs/claims-quick)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    args = parser.parse_args(words)
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; expected at least 0")
    args.out = args.out or Path("runs", "claims-quick" if args.quick else "claims")
    parallel.tune_process()
    sets = load(args.dataset or ("digits" if args.quick else "mnist"), args.data_dir, args.download)
    common = {"data": sets.checksum, "seed": args.seed, "batch_sizes": [BATCH, SMALL_BATCH], "lr": LR}
    with own_folder(args.out, make=True):
        opened = {}
        for name in [args.claim] if args.claim else CLAIMS:
            settings = common | (CLAIMS[name].QUICK if args.quick else CLAIMS[name].THOROUGH)
            opened[name] = open_results(args.out / f"{name}.json", settings)
        for name, results in opened.items():
            run(name, results, sets, args)
    print(f"results in {args.out} after {time.process_time():.0f} s of one core")


if __name__ == "__main__":
    programs.run(main, "the same command continues from there")
