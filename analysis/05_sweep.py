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
# # A sweep, and how to read it
#
# Hydra runs an experiment for all combinations of some settings, and `eventprop.collect` makes one table of them. This
# notebook reads a sweep of the learning rate and the synaptic time constant on `yin_yang`: it chooses a setting on
# validation data, reports the test accuracy of that one, and asks which differences are larger than noise.

# %%
import json
import math
import statistics
from pathlib import Path

from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter
from omegaconf import OmegaConf

from eventprop.collect import collect, markdown
from eventprop.tools.plots import plot_training

RESULTS = Path("results/sweep")
RESULTS = RESULTS if RESULTS.is_dir() else ".." / RESULTS
plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The command
#
# `-m` runs every combination of the values after the commas, one after another:
#
# ```bash
# python -m eventprop.train -m +experiment=yin_yang train.epochs=30 \
#     optimizer.lr=0.003,0.01,0.03 neuron.tau_syn=5,10 seed=0,1,2 hydra.sweep.dir=multirun/sweep
# ```
#
# Job k writes `multirun/sweep/k/`; its `config.yaml`, `metrics.jsonl` and `summary.json` are committed as
# `results/sweep/k/`. With the extra `sweep` installed, `hydra/launcher=joblib` runs several jobs at a time. 30 epochs
# instead of the experiment's 100 make it a cheap first look.

# %% [markdown]
# ## The table
#
# `python -m eventprop.collect multirun/sweep` prints it. Runs that differ only in the seed are one row, with the mean and the
# standard deviation over the n seeds. A setting is what differs between the configurations.

# %%
rows, unfinished = collect(RESULTS)
assert not unfinished, f"not finished: {unfinished}"
Markdown(markdown(rows))


# %% [markdown]
# ## The same as a map
#
# The table has test accuracies, and they are not there to choose by: the best of several noisy numbers is too high on
# average. `yin_yang` has a validation split for choosing, and the map shows its accuracy after the last epoch.


# %%
def read_runs(directory):
    """The runs of each setting (tau_syn, learning rate): their directories and summaries."""
    found = {}
    for path in sorted(directory.glob("*/summary.json")):
        config = OmegaConf.load(path.parent / "config.yaml")
        setting = (float(config.neuron.tau_syn), float(config.optimizer.lr))
        found.setdefault(setting, []).append((path.parent, json.loads(path.read_text())))
    return dict(sorted(found.items()))


def values(setting, key):
    return [summary[key] for _, summary in runs[setting]]


runs = read_runs(RESULTS)
taus, rates = (sorted(set(column)) for column in zip(*runs, strict=True))
print(f"{sum(map(len, runs.values()))} runs of {len(runs)} settings")


# %%
def draw_map(ax, key, title, text):
    """Means over seeds as colours; mean and standard deviation as text."""
    means = [[statistics.mean(values((tau, rate), key)) for rate in rates] for tau in taus]
    image = ax.imshow(means, cmap="Blues", aspect="auto")
    for row, tau in enumerate(taus):
        for column, rate in enumerate(rates):
            found, mean = values((tau, rate), key), means[row][column]
            spread = statistics.stdev(found) if len(found) > 1 else math.nan
            color = "white" if image.norm(mean) > 0.6 else "black"
            ax.text(column, row, f"{text(mean)}\n± {text(spread)}", ha="center", va="center", color=color)
    ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    ax.set_yticks(range(len(taus)), [f"{tau:g}" for tau in taus])
    ax.set(xlabel="learning rate", ylabel="tau_syn (ms)", title=title)
    ax.spines[:].set_visible(False)


figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
draw_map(left, "validation_accuracy", "validation accuracy (%)", lambda value: f"{100 * value:.2f}")
draw_map(right, "hidden_spikes_per_sample", "hidden spikes per sample", lambda value: f"{value:.0f}")

# %% [markdown]
# Numbers are mean ± standard deviation over seeds.

# %% [markdown]
# ## Over epochs
#
# A map of last epochs hides how they were reached: whether a run is still rising, or its accuracy jumps about. Lines are
# means over seeds, bands reach from the smallest to the largest.

# %%
figure, panels = plt.subplots(1, len(taus), figsize=(9.5, 3.6), sharey=True, layout="constrained")
for ax, tau in zip(panels, taus, strict=True):
    directories = {f"lr {rate:g}": [path for path, _ in runs[tau, rate]] for rate in rates}
    plot_training(directories, "validation_accuracy", ax=ax)
    ax.set(title=f"tau_syn = {tau:g} ms", ylabel="validation accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.grid(alpha=0.3)
    ax.label_outer()

# %% [markdown]
# ## What is noise?
#
# An accuracy p of n samples has a standard error of √(p (1 - p) / n). Seeds do not average it away: all of them see the same
# validation points. The difference of two settings has up to √2 times that error, less where both err on the same points.
# The seeds add their own spread.

# %%
best = max(runs, key=lambda setting: statistics.mean(values(setting, "validation_accuracy")))
accuracy = statistics.mean(values(best, "validation_accuracy"))
n_validation = runs[best][0][1]["dataset"]["n_validation"]
error = math.sqrt(accuracy * (1 - accuracy) / n_validation)
print(f"standard error of {accuracy:.2%} of {n_validation:,} points: {error:.2%}\n")
print("tau_syn     lr   validation   below the best, in standard errors")
for tau, rate in runs:
    mean = statistics.mean(values((tau, rate), "validation_accuracy"))
    print(f"{tau:7g} {rate:6g} {mean:12.2%} {(accuracy - mean) / error:10.1f}")

# %% [markdown]
# Settings within one standard error of the best are not told apart by this sweep. Among them, take the simpler one, the
# one with fewer spikes, or the one in the middle of a good region; or run more seeds on more data.

# %% [markdown]
# ## The result
#
# Choose by validation, then look at the test accuracy of the chosen setting, and of no other.

# %%
found = values(best, "test_accuracy")
mean, n_test = statistics.mean(found), runs[best][0][1]["dataset"]["n_test"]
seeds_error = statistics.stdev(found) / math.sqrt(len(found))
points_error = math.sqrt(mean * (1 - mean) / n_test)
print(f"chosen: tau_syn = {best[0]:g} ms, learning rate {best[1]:g}")
print(f"test accuracy: {mean:.2%}, mean of {len(found)} seeds")
print(f"standard error of the mean over seeds: {seeds_error:.2%}")
print(f"standard error of {n_test:,} test points: {points_error:.2%}")

# %% [markdown]
# The last line is the floor: with these test points, smaller differences mean nothing, however many seeds are run. Seeds
# vary initial weights and the order of batches only; the points are drawn by `data.seed`.
