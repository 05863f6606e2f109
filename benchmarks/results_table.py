"""Rebuild the table of results in the README from the summaries in results/: ``python benchmarks/results_table.py``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import yaml

from eventprop.collect import accuracy_text, collect

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: made by benchmarks/results_table.py -->\n", "<!-- end of results -->"
METHODS = ("eventprop", "surrogate")
NAMES = {"eventprop": "exact", "surrogate": "surrogate"}


def table() -> str:
    """In Markdown; the rows in the order of results/table.yaml."""
    described = yaml.safe_load((ROOT / "results" / "table.yaml").read_text())
    rows = [row for method in METHODS for row in collect(ROOT / "results" / method)[0]]
    missing = sorted({row["experiment"] for row in rows} - set(described))
    if missing:
        raise SystemExit(
            f"results/table.yaml must describe every experiment of results/, {', '.join(missing)} is missing"
        )
    if settings := [row["experiment"] for row in rows if row["setting"]]:
        raise SystemExit(
            f"results/ must hold one setting of each experiment and method, {', '.join(settings)} has several"
        )
    lines = [
        "| experiment | network, code, loss | gradient | test accuracy, % (seeds) | published | epochs | s/epoch | spikes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for experiment, text in described.items():
        name, network, published = f"`{experiment}`", text["network"], text.get("published", "")
        for row in (row for row in rows if row["experiment"] == experiment):
            spikes = row["hidden_spikes_mean"]
            cells = (
                name, network, NAMES[row["method"]], f"{accuracy_text(row)} ({row['n']})", published, row["epochs"],
                f"{seconds_per_epoch(row):,.1f}", f"{spikes:,.0f}" if spikes else "",
            )  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            name, network, published = "", "the same, on a grid of 1 ms", ""
    return "\n".join(lines) + "\n"


def seconds_per_epoch(row: dict) -> float:
    """The median over the epochs of all seeds: some runs were paused for a while."""
    paths = (ROOT / "results" / row["method"] / row["experiment"]).glob("*/summary.json")
    return statistics.median(s for path in paths for s in json.loads(path.read_text())["seconds_per_epoch"])


def rebuilt(readme: str) -> str:
    """The README with the table as it is now."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rebuilt(path.read_text()))
