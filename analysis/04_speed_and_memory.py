# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Speed and memory
#
# How long an epoch takes and how much memory a step needs, here and in other packages; what precision costs; and how
# time and memory grow with the problem. This notebook measures nothing: it draws `results/speed.json` and
# `results/scaling.json`, which `python benchmarks/speed.py` and `python benchmarks/scaling.py` wrote.

# %%
import json
from pathlib import Path

import numpy as np
from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from eventprop.tools.plots import BLUE, GREEN, PURPLE, SKY, VERMILION, plot_growth, plot_work_precision

RESULTS = Path("results") if Path("results").is_dir() else Path("../results")
plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})

speed = json.loads((RESULTS / "speed.json").read_text())
precision = json.loads((RESULTS / "work_precision.json").read_text())
scaling = json.loads((RESULTS / "scaling.json").read_text())

# %% [markdown]
# ## Where the numbers come from
#
# A commit with `-dirty` had changes that were not committed.

# %%
for name, report in {"speed": speed, "scaling": scaling}.items():
    machine, versions = report["machine"], {"python": report["python"]} | report["versions"]
    print(f"{name + '.json':<13} commit {report['commit']}")
    print(f"{'':<13} {machine['cpu']}, {machine['threads']} threads, {machine['system']}")
    print(f"{'':<13} " + ", ".join(f"{package} {version}" for package, version in versions.items()))

# %% [markdown]
# ## The job
#
# Train a 784-350-10 network on latency-coded MNIST with batches of 64 images: forward, backward and Adam, data in memory.
# The contenders take turns on one machine. A median step, times the steps of an epoch, gives seconds per epoch. One whose
# first two steps take more than 10 s, compilation included, is measured by its second step alone and has no whisker.
# Memory is what a step adds, at its peak, to what the process holds between steps.

# %%
contenders = {name: row for name, row in speed["contenders"].items() if "skipped" not in row}
names = sorted(contenders, key=lambda name: contenders[name]["seconds_per_epoch"], reverse=True)
KINDS = {
    "exact gradient, this package": (
        BLUE,
        ("event_driven", "event_driven_untuned", "event_driven_busy", "event_driven_one_thread", "time_stepped"),
    ),
    "surrogate gradient, this repository": (SKY, ("surrogate", "rate_coded")),
    "surrogate gradient, other packages": (VERMILION, ("snntorch", "spikingjelly", "norse")),
    "exact gradient, other packages": (GREEN, ("jaxsnn", "exact_snn_nn", "eventax")),
    "matrix products alone": (PURPLE, ("dense_products",)),
}
color_of = {name: color for color, members in KINDS.values() for name in members}


def bars(ax, values, text, label):
    """Horizontal bars on a log scale, with their value as text."""
    for place, name in enumerate(names):
        ax.barh(place, values[name], color=color_of[name])
        ax.annotate(text(values[name]), (values[name], place), (12, 0), textcoords="offset points", va="center")
    ax.set(xscale="log", xlabel=label, yticks=range(len(names)), yticklabels=names)
    ax.margins(x=0.15)


# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2), sharey=True, layout="constrained")
seconds = {name: row["seconds_per_epoch"] for name, row in contenders.items()}
bars(left, seconds, lambda value: f"{value:,.3g}" if value < 100 else f"{value:,.0f}", "seconds per epoch")
for place, name in enumerate(names):
    low, median, high = contenders[name]["ms_per_step"]
    if contenders[name]["steps"] > 1:
        spread = seconds[name] / median * np.array([[median - low], [high - median]])
        left.errorbar(seconds[name], place, xerr=spread, color="black", capsize=3, linewidth=1)
bars(
    right, {name: row["peak_mib"] for name, row in contenders.items()}, "{:,.0f}".format, "peak memory of a step (MiB)"
)
patches = [Patch(color=color, label=kind) for kind, (color, _) in KINDS.items()]
_ = figure.legend(handles=patches, loc="outside upper center", ncols=3, frameon=False, fontsize="small")

# %% [markdown]
# Both axes are logarithmic: a bar twice as long is far more than twice the time. Whiskers are the quartiles of the steps.
# The dense matrix products are no training at all, but what 40 steps on a grid need at least if they do not use that
# spikes are rare.

# %% [markdown]
# ## What is not equal
#
# No two packages do the same job: they differ in neuron, loss and how spikes are placed. What matters for the comparison
# is in the last column. A package that solves another problem may be quick or slow for that reason.

# %%
lines = [
    "| contender | versions | steps measured | hidden spikes per image | what is not equal |",
    "|---|---|---|---|---|",
]
for name in reversed(names):
    row = contenders[name]
    versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
    spikes = f"{row['hidden_spikes_per_image']:.0f}" if "hidden_spikes_per_image" in row else ""
    lines.append(f"| {name} | {versions} | {row['steps']:,} | {spikes} | {row['not_equal']} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## Work and precision
#
# The gradient of the first layer of a trained network, against the event-driven gradient in float64: how wrong it is, and how
# long forward and backward take. Down and left is better. Numbers at the ends are step lengths in ms; those between are 1, 0.5
# and 0.2. Everything is computed in float32, which bounds the precision of the event-driven solver.

# %%
rows = [
    {"series": row["solver"], "ms": row["ms"], "error": row["gradient_error"], "dt": row["dt"]}
    for row in precision["rows"]
]
figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
plot_work_precision(rows, ax=ax)
_ = ax.legend(frameon=False, fontsize="small", loc="center right")

# %% [markdown]
# The error here is the distance to the gradient in continuous time. The exponential grid computes the exact gradient of
# what it computes forward; that forward pass has other spike times, so it is not the same gradient. A surrogate gradient
# does not approach it as the grid gets finer, and is not meant to.

# %% [markdown]
# ## Growth of time
#
# One size is doubled while the others stay. Forward and backward of the event-driven solver, random spikes; a longer window
# has more of them. A slope of 1 is in proportion. It is fitted to all points: where a curve starts flat, because fixed costs
# dominate small problems, its end is steeper than the slope says.


# %%
def plain_numbers(ax):
    """10 and 100 instead of powers of ten."""
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


figure, ax = plt.subplots(figsize=(7, 4.6), layout="constrained")
times = scaling["time"]
sizes = {name: row["sizes"] for name, row in times.items()}
plot_growth(sizes, {name: row["ms"] for name, row in times.items()}, "time of forward and backward (ms)", ax=ax)
plain_numbers(ax)

# %% [markdown]
# ## Growth of memory
#
# The event-driven solver stores spikes, not time steps. The same spikes in a window a hundred times as long need the same
# memory; more spikes need more, at most in proportion.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
windows = {float(t_end): mib for t_end, (_, mib) in scaling["memory_by_window"].items()}
left.plot(list(windows), list(windows.values()), "o-", color=BLUE)
left.set(
    xscale="log",
    xlabel="window length (ms)",
    ylabel="peak memory of a step (MiB)",
    ylim=(0, 1.3 * max(windows.values())),
)
spikes, mib = zip(*scaling["memory_by_spikes"].values(), strict=True)
plot_growth(
    {"window length": list(windows), "spikes": spikes},
    {"window length": list(windows.values()), "spikes": mib},
    "peak memory of a step (MiB)",
    ax=right,
)
plain_numbers(left)
plain_numbers(right)
right.set(ylim=(10, 300), yticks=[10, 20, 50, 100, 200])
for t_end, (count, peak) in scaling["memory_by_window"].items():
    print(f"window {float(t_end):5g} ms: {count:9,} emitted spikes, {peak:6.1f} MiB")
for count, peak in scaling["memory_by_spikes"].values():
    print(f"window    40 ms: {count:9,} emitted spikes, {peak:6.1f} MiB")

# %% [markdown]
# Left: memory over the length of the window, from zero. Right: the same points in log-log, beside those with more and more
# spikes.
