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
# # EventProp and surrogate gradients, side by side
#
# The same two experiments are trained with exact gradients (`eventprop`) and with surrogate gradients
# (`surrogate_baseline`). This notebook draws their accuracy, time and spikes, and how far the two gradients agree.
# It trains nothing: it reads the runs in `results/`, every seed that is there.

# %%
import json
import statistics
from pathlib import Path

from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from eventprop.collect import collect, markdown
from eventprop.tools.plots import COLORS, plot_training

RESULTS = Path("results") if Path("results").is_dir() else Path("../results")
METHODS = {"EventProp": "eventprop", "surrogate": "surrogate"}
EXPERIMENTS = ("mnist_gray", "yin_yang")
SMALL = {"frameon": False, "fontsize": "small", "title_fontsize": "medium"}
plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## What is equal, and what is not
#
# Equal: data, encoder, network, initial weights of a seed, loss, optimizer, learning rate, epochs and training loop.
#
# Not equal:
#
# - **Tuning.** The settings were tuned for EventProp. Nothing was tuned for the surrogates: not the learning rate, not
#   the initial weights, not the surrogate (arctan, slope 2, the default). On `yin_yang` that probably matters: the gap
#   there is no measure of what surrogate gradients can reach.
# - **Time.** The EventProp runs are event-driven, in continuous time. The surrogate runs have a grid of 1 ms.
# - **Load.** All runs had one thread each, and two ran at a time on a machine that others used too. Their wall time is
#   indicative only; [04_speed_and_memory](04_speed_and_memory.ipynb) has the measured speed.
#
# The runs come from these commands, with `seed=0`, `1` and so on:
#
# ```bash
# python -m eventprop.train +experiment=mnist_gray seed=0
# python -m surrogate_baseline.train +experiment=mnist_gray seed=0
# python -m eventprop.train +experiment=yin_yang seed=0
# python -m surrogate_baseline.train +experiment=yin_yang seed=0
# ```


# %%
def runs(experiment):
    """The metrics of every seed, by method."""
    return {
        name: sorted((RESULTS / method / experiment).glob("seed_*/metrics.jsonl")) for name, method in METHODS.items()
    }


def compare(metric, against="epoch"):
    """One panel per experiment: the mean of the seeds, and from the smallest to the largest."""
    _, panels = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for ax, experiment in zip(panels, EXPERIMENTS, strict=True):
        plot_training(runs(experiment), metric, against, ax=ax)
        ax.set_title(experiment)
        ax.grid(alpha=0.3)
        ax.margins(y=0.12)
    return panels


# %% [markdown]
# ## Accuracy over epochs
#
# Lines are means over seeds, bands reach from the worst to the best seed. A line without a band is a single run.

# %%
for ax in compare("test_accuracy"):
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1, symbol=" %"))
    ax.set_ylabel("test accuracy")

# %% [markdown]
# ## Accuracy over wall time
#
# The time axis is logarithmic. The first epoch includes the compilation of the kernels; a jump along the axis is an epoch
# in which the machine was busy. Much of the distance between the curves is the work on every step of a grid, which exact
# gradients do not need (next notebook). Four of the five surrogate runs on `mnist_gray` and all on `yin_yang` are from
# before fully connected layers on a grid went from arrival to arrival; they would be up to twice as fast now.

# %%
for ax in compare("test_accuracy", against="seconds"):
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1, symbol=" %"))
    ax.set(ylabel="test accuracy", xscale="log")

# %% [markdown]
# ## Hidden spikes
#
# Neither loss has a term for the number of spikes. How many a network emits is what its gradients made of it. On
# `yin_yang`, both methods raise the weights of neurons that are silent (`train.silent=bump`), which shows in the first
# epochs.

# %%
for ax in compare("hidden_spikes_per_sample"):
    ax.set_ylabel("hidden spikes per sample")
    ax.set_ylim(bottom=0)

# %% [markdown]
# ## After the last epoch
#
# Accuracy is mean ± standard deviation over the n seeds; without ± there is one seed. This is what
# `python -m eventprop.collect` prints.

# %%
rows = [
    row
    for experiment in EXPERIMENTS
    for method in METHODS.values()
    for row in collect(RESULTS / method / experiment)[0]
]
Markdown(markdown(rows))

# %% [markdown]
# The median time of an epoch is less sensitive to compilation, and to what else ran, than the sum.

# %%
for experiment in EXPERIMENTS:
    for name, paths in runs(experiment).items():
        seconds = [json.loads(line)["seconds"] for path in paths for line in path.read_text().splitlines()]
        print(f"{experiment:<10}  {name:<9}  {statistics.median(seconds):5.2f} s per epoch")

# %% [markdown]
# ## Do the gradients agree?
#
# Another question, asked on equal terms: one network of `mnist_gray` is trained with exact gradients on the grid. At some
# epochs, every surrogate computes its gradient of the same loss, on the same samples, with the same spikes. It is compared
# with the exact gradient of that grid, layer by layer, by the cosine of the angle between them and by the ratio of their
# norms. `python benchmarks/alignment.py` wrote the file.

# %%
report = json.loads((RESULTS / "alignment_mnist_gray.json").read_text())
alignment = report["rows"]
epochs = sorted({row["epoch"] for row in alignment})
print(f"seed {report['seed']}, {report['samples']} samples, grid of {report['dt']:g} ms, torch {report['torch']}")
for epoch in epochs:
    accuracy = next(row["test_accuracy"] for row in alignment if row["epoch"] == epoch)
    print(f"after epoch {epoch}: test accuracy {accuracy:.2%}")

# %% [markdown]
# **The readout** does not spike, so no surrogate is in its gradient: cosine and norm are 1. The event-driven gradient
# differs a little, as its hidden spikes are not on the grid.

# %%
for kind in ("surrogates", "event-driven"):
    rows = [
        r for r in alignment if r["layer"] == "1.weight" and (r["gradient"] == "event-driven") == (kind != "surrogates")
    ]
    for key in ("cosine", "relative_norm"):
        values = [row[key] for row in rows]
        print(f"readout, {kind}: {key} {min(values):.3f} to {max(values):.3f}")


# %%
def draw_alignment(key, label, **axes):
    """A panel per surrogate, a line per slope; the event-driven gradient is the reference for what the grid alone does."""
    hidden = [row for row in alignment if row["layer"] == "0.weight"]
    names = [name for name in dict.fromkeys(row["gradient"] for row in hidden) if name != "event-driven"]
    figure, panels = plt.subplots(2, 3, figsize=(9.5, 5.4), sharex=True, sharey=True, layout="constrained")
    for ax, name in zip(panels.flat, names, strict=True):
        reference = [row[key] for row in hidden if row["gradient"] == "event-driven"]
        (exact,) = ax.plot(epochs, reference, "--", color="0.35", linewidth=1.2)
        slopes = sorted({row["slope"] for row in hidden if row["gradient"] == name})
        for color, marker, slope in zip(COLORS, "osD^", slopes, strict=False):
            values = [row[key] for row in hidden if row["gradient"] == name and row["slope"] == slope]
            ax.plot(epochs, values, marker=marker, markersize=4, color=color, label=f"{slope:g}")
        ax.set(xticks=epochs, **axes)
        ax.grid(alpha=0.3)
        above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 1, "handlelength": 1.2}
        ax.legend(title=f"{name.replace('_', ' ')}, slope", ncols=4, **above, **SMALL)
    figure.legend([exact], ["event-driven: exact in continuous time"], loc="outside upper center", **SMALL)
    figure.supxlabel("epoch")
    figure.supylabel(label)


# %% [markdown]
# **The hidden layer, direction.** A cosine of 1 is the exact direction, 0 is at right angles. Within limits, steeper
# surrogates point closer to the exact gradient; the slope of the triangular one is only its height. The steepest slope of
# several families has no direction left.

# %%
draw_alignment("cosine", "cosine with the exact gradient", ylim=(-0.4, 1.05))

# %% [markdown]
# **The hidden layer, size.** The same steepest slopes explode. The reset passes the gradient from step to step with a
# factor of about 1 minus the surrogate derivative; where that derivative is above 2, the gradient grows with each step.
# The fast sigmoid never exceeds 1 and does not explode. Otherwise flatter surrogates give longer gradients. Adam divides
# each weight's step by the size of its own gradients, so a wrong size harms it less than a wrong direction. The exploding
# ones lie above the figure; their range is printed below it.

# %%
draw_alignment("relative_norm", "norm, times that of the exact gradient", yscale="log", ylim=(0.2, 50))

# %%
hidden = [row for row in alignment if row["layer"] == "0.weight"]
for name, slope in dict.fromkeys((row["gradient"], row["slope"]) for row in hidden):
    norms = [row["relative_norm"] for row in hidden if (row["gradient"], row["slope"]) == (name, slope)]
    if max(norms) > 50:
        print(f"{name}, slope {slope:g}: norm {min(norms):,.0f} to {max(norms):,.0f} times that of the exact gradient")

# %% [markdown]
# ## How to read it
#
# A low cosine does not mean that training fails: the surrogate runs above learned with such gradients. It says that a
# surrogate descends on another surface than the loss that is reported. A fair ranking of the methods would tune both
# with the same effort, on validation data; this one did not.
