"""Figures. Each function draws one, on ``ax`` if it is given, and returns the axes; none calls ``show``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from eventprop.core.neuron import LIF
from eventprop.core.spikes import Spikes
from eventprop.layers.linear import SpikingLinear

from .gradcheck import GradientReport
from .traces import adjoint_trace, potential_trace

# Okabe & Ito's colours, which the colour-blind can tell apart
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
PROMISE = 1e-7  # of the gradients, against finite differences


def plot_raster(layers: Spikes | dict[str, Spikes], sample: int = 0, ax: Axes | None = None) -> Axes:
    """The spikes of one sample, layer above layer.

    Args:
        layers: spike trains, by the name to show; the first is at the bottom.
    """
    ax = _axes(ax)
    layers = {"": layers} if isinstance(layers, Spikes) else layers
    base, ticks = 0, []
    for color, (name, spikes) in zip(_cycle(len(layers)), layers.items(), strict=True):
        fired, few = (spikes.index[sample] >= 0).cpu(), spikes.num_neurons < 100
        time, neuron = spikes.time[sample].detach().cpu()[fired], spikes.index[sample].cpu()[fired]
        ax.scatter(time, base + neuron, s=40 if few else 3, marker="|" if few else ".", color=color, linewidths=1)
        ticks.append((base + (spikes.num_neurons - 1) / 2, f"{name}\n({spikes.num_neurons})" if name else ""))
        base += spikes.num_neurons
        if base < sum(other.num_neurons for other in layers.values()):
            ax.axhline(base - 0.5, color="0.8", linewidth=0.8)
            base += 1
    if len(layers) > 1:
        ax.set_yticks(*map(list, zip(*ticks, strict=True)))
    ax.set(xlabel="time (ms)", ylabel="" if len(layers) > 1 else "neuron", ylim=(-1, base))
    return ax


def plot_neuron(
    layer: SpikingLinear, arrivals: Spikes, sample: int = 0, neuron: int = 0, ax: Axes | None = None
) -> Axes:
    """Membrane potential, current and threshold of one neuron, as the exact curves, and its spikes."""
    ax = _axes(ax)
    with torch.no_grad():
        emitted = layer(arrivals)
    times = _dense(layer.solver.t_end, arrivals, emitted, sample)
    v, i = (trace[:, neuron] for trace in potential_trace(layer, arrivals, emitted, times, sample))
    assert isinstance(layer.neuron, LIF)  # others have no trace
    v_th = layer.neuron.v_th
    ax.plot(times, i, color=ORANGE, linewidth=1, label="current I")
    ax.plot(times, v, color=BLUE, label="potential V")
    ax.axhline(v_th, color="0.4", linestyle="--", linewidth=1, label="threshold")
    own = emitted.time[sample][emitted.index[sample] == neuron]
    ax.plot(own, torch.full_like(own, v_th), "v", color=VERMILION, markersize=6, label="spikes")
    ax.set(xlabel="time (ms)", ylabel="V, I (units of the threshold's)", xlim=(0, layer.solver.t_end))
    ax.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize="small")
    return ax


def plot_adjoint(
    layer: SpikingLinear, emitted: Spikes, grad: Tensor, sample: int = 0, neuron: int = 0, ax: Axes | None = None
) -> Axes:
    """The adjoint variables p and q of one neuron. Read from right to left: p jumps at each own spike, and decays.

    Args:
        emitted: what ``layer`` emitted.
        grad: dL/d(emitted time), as ``emitted.time.retain_grad()`` keeps it.
    """
    ax = _axes(ax)
    times = _dense(layer.solver.t_end, emitted, emitted, sample)
    p, q = (trace[:, neuron] for trace in adjoint_trace(layer, emitted, grad, times, sample))
    for t in emitted.time[sample][emitted.index[sample] == neuron].tolist():
        ax.axvline(t, color=VERMILION, linewidth=0.8, alpha=0.6)
    ax.plot(times, p, color=BLUE, label="p = dL/dV")
    ax.plot(times, q, color=ORANGE, label="q = dL/dI")
    ax.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    ax.set(xlabel="time (ms), walked from right to left", ylabel="adjoint", xlim=(0, layer.solver.t_end))
    ax.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize="small")
    return ax


def plot_gradient_check(report: GradientReport, ax: Axes | None = None) -> Axes:
    """The error of each gradient entry against central differences, over its size, with the line of 1e-7 relative error."""
    ax = _axes(ax)
    pairs = [
        (numeric[kept].abs(), (analytic - numeric)[kept].abs())
        for analytic, numeric, kept in zip(report.analytic, report.numeric, report.compared, strict=True)
    ]
    found = torch.cat([size for size, _ in pairs])
    found = found[found > 0]
    if len(found):
        span = torch.stack([found.min(), found.max()])
        for k, (size, error) in enumerate(pairs):  # on logarithmic axes, zeros are drawn at the edge
            x, y = size.clamp(min=float(span[0])), error.clamp(min=1e-3 * PROMISE * float(span[0]))
            ax.plot(x, y, ".", color=COLORS[k % len(COLORS)], markersize=4, label=f"input {k}")
        ax.plot(span, PROMISE * span, color="0.4", linestyle="--", linewidth=1, label="relative error 1e-7")
    ax.set(xscale="log", yscale="log", xlabel="|central difference|", ylabel="|exact gradient - central difference|")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_gradients(exact: Tensor, other: Tensor, label: str = "surrogate gradient", ax: Axes | None = None) -> Axes:
    """Entries of another gradient over those of the exact one; on the diagonal they agree."""
    ax = _axes(ax)
    x, y = (g.detach().flatten().cpu() for g in (exact, other))
    ax.plot(x, y, ".", color=BLUE, markersize=2, alpha=0.5, rasterized=True)
    bound = float(x.abs().max()) * 1.05 or 1.0
    ax.plot([-bound, bound], [-bound, bound], color="0.4", linestyle="--", linewidth=1)
    cosine = float(torch.nn.functional.cosine_similarity(x, y, dim=0))
    ax.set(
        xlabel="exact gradient", ylabel=label, title=f"cosine {cosine:.2f}, norm {float(y.norm() / x.norm()):.2g} times"
    )
    return ax


def plot_loss_along(
    loss: Callable[[], Tensor],
    weight: Tensor,
    entry: tuple[int, ...],
    span: float,
    ax: Axes | None = None,
    points: int = 401,
) -> Axes:
    """The loss as one weight moves by up to ``span`` to either side: smooth, with jumps where a spike is born or dies.

    Args:
        loss: computes it from ``weight`` as it is, which is moved in place and put back.
        entry: which weight.
    """
    ax = _axes(ax)
    here = weight.detach()[entry].item()
    offsets = torch.linspace(-span, span, points, dtype=torch.float64)
    values = []
    with torch.no_grad():
        try:
            for offset in offsets.tolist():
                weight[entry] = here + offset
                values.append(float(loss()))
        finally:
            weight[entry] = here
    steps = np.abs(np.diff(values))
    # a jump is large against the steps around it; the loss may be flat in one place and steep in another
    around = np.lib.stride_tricks.sliding_window_view(np.pad(steps, 5, mode="edge"), 11)
    jumps = steps > 20 * np.median(around, axis=1) + 1e-12
    broken = np.insert(np.array(values), np.flatnonzero(jumps) + 1, np.nan)
    places = np.insert(here + offsets.numpy(), np.flatnonzero(jumps) + 1, np.nan)
    ax.plot(places, broken, color=BLUE)
    ax.axvline(here, color="0.6", linestyle=":", linewidth=1)
    ax.set(xlabel=f"weight {list(entry)}", ylabel="loss")
    return ax


def plot_spike_times(layers: Spikes | dict[str, Spikes], bins: int = 80, ax: Axes | None = None) -> Axes:
    """Histograms of the spike times of layers, per sample."""
    ax = _axes(ax)
    layers = {"": layers} if isinstance(layers, Spikes) else layers
    for color, (name, spikes) in zip(_cycle(len(layers)), layers.items(), strict=True):
        time = spikes.time.detach()[spikes.index >= 0].cpu().numpy()
        weights = np.full(len(time), 1.0 / max(spikes.batch_size, 1))
        ax.hist(time, bins, weights=weights, histtype="step", color=color, label=name)
    ax.set(xlabel="time (ms)", ylabel="spikes per sample and bin")
    if len(layers) > 1:
        ax.legend(frameon=False, fontsize="small")
    return ax


def plot_training(
    runs: dict[str, Sequence[str | Path]], metric: str = "test_accuracy", against: str = "epoch", ax: Axes | None = None
) -> Axes:
    """A metric over epochs or wall time: the mean of several runs, and their spread (smallest to largest).

    Args:
        runs: run directories, or their metrics.jsonl, of each label; usually those of its seeds.
        against: "epoch", or "seconds" of training.
    """
    ax = _axes(ax)
    if against not in ("epoch", "seconds"):
        raise ValueError(f"against must be 'epoch' or 'seconds', got {against!r}")
    for color, (label, paths) in zip(_cycle(len(runs)), runs.items(), strict=True):
        curves = [_metrics(Path(path)) for path in paths]
        epochs = min(len(curve) for curve in curves)
        values = np.array([[row[metric] for row in curve[:epochs]] for curve in curves])
        x = np.arange(1, epochs + 1)
        if against == "seconds":
            x = np.mean([np.cumsum([row["seconds"] for row in curve[:epochs]]) for curve in curves], axis=0)
        ax.plot(x, values.mean(0), color=color, label=f"{label} (n = {len(curves)})")
        if len(curves) > 1:
            ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel="epoch" if against == "epoch" else "training time (s)", ylabel=metric.replace("_", " "))
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_confusion(prediction: Tensor, target: Tensor, num_classes: int, ax: Axes | None = None) -> Axes:
    """How many samples of each class were taken for which; a prediction of -1, for silence, has a column of its own."""
    ax = _axes(ax)
    columns = num_classes + bool((prediction < 0).any())
    place = target.cpu() * columns + torch.where(prediction < 0, num_classes, prediction).cpu()
    counts = torch.bincount(place, minlength=num_classes * columns).reshape(num_classes, columns)
    ax.imshow(counts.float().log1p().numpy(), cmap="Blues")
    for row in range(num_classes):
        for column in range(columns):
            n = int(counts[row, column])
            if n:
                dark = np.log1p(n) > 0.6 * np.log1p(int(counts.max()))
                ax.text(column, row, str(n), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    names = [*map(str, range(num_classes)), "silent"][:columns]
    ax.set_xticks(range(columns), names)
    ax.set_yticks(range(num_classes))
    ax.set(xlabel="predicted class", ylabel="class")
    return ax


def plot_weights(
    weight: Tensor, shape: tuple[int, int], columns: int = 8, rows: int = 4, ax: Axes | None = None
) -> Axes:
    """Maps of the input weights of the first neurons: red excites, blue inhibits.

    Args:
        weight: [N, height x width].
        shape: height and width of the input.
    """
    ax = _axes(ax)
    maps = weight.detach().cpu().float()[: rows * columns].reshape(-1, *shape)
    height, width = shape[0] + 1, shape[1] + 1
    canvas = np.full((-(-len(maps) // columns) * height - 1, min(columns, len(maps)) * width - 1), np.nan)
    for k, each in enumerate(maps):
        top, left = k // columns * height, k % columns * width
        canvas[top : top + shape[0], left : left + shape[1]] = each
    bound = np.nanpercentile(np.abs(canvas), 99)
    image = ax.imshow(canvas, cmap="RdBu_r", vmin=-bound, vmax=bound)
    ax.set_axis_off()
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="weight")
    return ax


def plot_work_precision(rows: Sequence[dict[str, Any]], ax: Axes | None = None) -> Axes:
    """The error of gradients over the time that they take.

    Args:
        rows: each with "series", "ms" and "error", in the order to connect; and "dt", in ms, if that is what varies: it
            labels the ends of a series.
    """
    ax = _axes(ax)
    series = list(dict.fromkeys(row["series"] for row in rows))
    for k, name in enumerate(series):
        points = [row for row in rows if row["series"] == name]
        color, marker = COLORS[k % len(COLORS)], "os^Dv*P"[k % 7]
        ax.plot([row["ms"] for row in points], [row["error"] for row in points], marker=marker, color=color, label=name)
        for row, side, align in ((points[0], -7, "right"), (points[-1], 7, "left")) if len(points) > 1 else ():
            ax.annotate(
                f"{row['dt']:g}", (row["ms"], row["error"]), (side, 0), textcoords="offset points",
                ha=align, va="center", color=color, fontsize=8,
            )  # fmt: skip
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="time of a forward and backward pass (ms)",
        ylabel="relative error of the gradient",
    )
    ax.legend(frameon=False, fontsize="small")
    ax.margins(0.1)
    ax.grid(alpha=0.3, which="both")
    return ax


def plot_growth(
    sizes: dict[str, Sequence[float]], values: dict[str, Sequence[float]], label: str, ax: Axes | None = None
) -> Axes:
    """How time or memory grows with the size of a problem, in log-log, with the slope of each series.

    Args:
        sizes, values: by the name of what grows, such as the window length.
        label: of the values.
    """
    ax = _axes(ax)
    for color, name in zip(_cycle(len(sizes)), sizes, strict=True):
        x, y = np.asarray(sizes[name], float), np.asarray(values[name], float)
        slope = np.polyfit(np.log(x), np.log(y), 1)[0]
        ax.plot(x / x[0], y, "o-", color=color, markersize=4, label=f"{name}: slope {slope:.2f}")
    ax.set(xscale="log", yscale="log", xlabel="times the smallest size", ylabel=label)
    ax.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize="small")
    ax.grid(alpha=0.3, which="both")
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _cycle(n: int) -> list[str]:
    return [COLORS[k % len(COLORS)] for k in range(n)]


def _dense(t_end: float, arrivals: Spikes, emitted: Spikes, sample: int) -> Tensor:
    """Times for a curve: evenly spaced, and just before and after every event."""
    events = [spikes.time[sample][spikes.index[sample] >= 0].detach().double().cpu() for spikes in (arrivals, emitted)]
    around = [event + offset for event in events for offset in (-1e-9 * t_end, 0.0, 1e-9 * t_end)]
    times = torch.cat([torch.linspace(0.0, t_end, 800, dtype=torch.float64), *around])
    return times[(times >= 0) & (times <= t_end)].sort().values


def _metrics(path: Path) -> list[dict[str, Any]]:
    path = path / "metrics.jsonl" if path.is_dir() else path
    return [json.loads(line) for line in path.read_text().splitlines()]
