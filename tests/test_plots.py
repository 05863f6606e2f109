"""Figures and the traces that they show: what is drawn is what was computed."""

from __future__ import annotations

import json

import matplotlib
import numpy as np
import pytest
import torch
from conftest import random_spikes
from matplotlib import pyplot as plt

from eventprop import (
    LIF,
    EventDriven,
    Spikes,
    SpikingLinear,
    SpikingRecurrent,
    adjoint_trace,
    check_gradients,
    potential_trace,
)
from eventprop.tools import plots

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


@pytest.fixture
def problem(neuron):
    """A layer of four neurons that fire several times, its input, its output, and dL/d(emitted time) of a loss."""
    torch.manual_seed(0)
    layer = SpikingLinear(6, 4, neuron=neuron, solver=EventDriven(40.0), dtype=torch.float64)
    layer.reset_parameters(3.0, 4.0)
    arrivals = random_spikes(2, 6, 3)
    arrivals = Spikes(arrivals.time.requires_grad_(True), arrivals.index, 6)
    emitted = layer(arrivals)
    emitted.time.retain_grad()
    (emitted.time[emitted.index >= 0] * 0.1).sin().sum().backward()
    assert emitted.count().max() > 2
    return layer, arrivals, emitted


def test_the_potential_is_at_the_threshold_when_a_neuron_spikes_and_below_otherwise(problem):
    layer, arrivals, emitted = problem
    fired = emitted.index[1] >= 0
    times, index = emitted.time[1][fired].detach(), emitted.index[1][fired]
    v, i = potential_trace(layer, arrivals, emitted, times, sample=1)
    mine = torch.arange(len(times)), index
    assert (v[mine] - layer.neuron.v_th).abs().max() < 1e-12  # promise P2
    slope = (i[mine] - v[mine]) / layer.neuron.tau_mem
    torch.testing.assert_close(slope, emitted.slope[1][fired], rtol=1e-9, atol=0)  # eq. (1)
    anywhere, _ = potential_trace(layer, arrivals, emitted, torch.linspace(0, 40, 999, dtype=torch.float64), sample=1)
    assert anywhere.max() <= layer.neuron.v_th + 1e-12


def test_the_adjoint_gives_the_gradients_of_the_backward_pass(problem):
    """Eq. (10): dL/dw is the sum of q at the arrivals of its input, dL/dt_j = sum_n w (q/tau_syn - p/tau_mem)."""
    layer, arrivals, emitted = problem
    by_weight = torch.zeros_like(layer.weight)
    for b in range(2):
        p, q = adjoint_trace(layer, emitted, emitted.time.grad, arrivals.time[b].detach(), sample=b)
        by_weight.index_add_(1, arrivals.index[b].long(), q.t())
        w = layer.weight.detach()[:, arrivals.index[b].long()].t()
        by_time = (w * (q / layer.neuron.tau_syn - p / layer.neuron.tau_mem)).sum(1)
        torch.testing.assert_close(by_time, arrivals.time.grad[b], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(by_weight, layer.weight.grad, rtol=1e-9, atol=1e-12)


def test_traces_name_what_they_cannot_take(problem):
    layer, arrivals, emitted = problem
    with pytest.raises(ValueError, match="emitted must be the output of a layer and grad of its shape"):
        adjoint_trace(layer, arrivals, arrivals.time, torch.zeros(1))
    with pytest.raises(TypeError, match="layer must be a SpikingLinear of LIF neurons, got Identity"):
        potential_trace(torch.nn.Identity(), arrivals, emitted, torch.zeros(1))
    feedback = SpikingRecurrent(layer.in_features, layer.out_features, solver=layer.solver)
    with pytest.raises(TypeError, match="layer must be a SpikingLinear of LIF neurons, got SpikingRecurrent"):
        potential_trace(feedback, arrivals, emitted, torch.zeros(1))


def test_neuron_and_adjoint_show_their_curves(problem):
    layer, arrivals, emitted = problem
    ax = plots.plot_neuron(layer, arrivals, neuron=1)
    current, potential, threshold, spikes = ax.get_lines()
    assert threshold.get_ydata()[0] == layer.neuron.v_th
    assert len(spikes.get_xdata()) == int(emitted.count()[0, 1])
    assert max(potential.get_ydata()) == pytest.approx(layer.neuron.v_th)
    assert current.get_label() == "current I"
    ax = plots.plot_adjoint(layer, emitted, emitted.time.grad, neuron=1)
    assert {line.get_label() for line in ax.get_lines()} >= {"p = dL/dV", "q = dL/dI"}


def test_raster_has_a_mark_for_each_spike(problem):
    _, arrivals, emitted = problem
    ax = plots.plot_raster({"input": arrivals, "layer": emitted})
    marks = [len(collection.get_offsets()) for collection in ax.collections]
    assert marks == [int(arrivals.count()[0].sum()), int(emitted.count()[0].sum())]
    _, given = plt.subplots()
    assert plots.plot_raster(emitted, ax=given) is given
    assert len(plots.plot_spike_times({"input": arrivals, "layer": emitted}).patches) == 2


def test_gradients_are_shown_entry_by_entry(problem):
    layer, arrivals, _ = problem
    spikes = arrivals.detach()
    report = check_gradients(lambda _: layer(spikes).first_spike_time().nan_to_num(posinf=0.0).sum(), [layer.weight])
    points = plots.plot_gradient_check(report).get_lines()[0]
    assert len(points.get_xdata()) == int(report.compared[0].sum()) > 10
    title = plots.plot_gradients(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])).get_title()
    assert title == "cosine 1.00, norm 2 times"


def test_the_loss_along_a_weight_breaks_where_a_spike_is_born():
    layer = SpikingLinear(1, 1, neuron=LIF(), solver=EventDriven(40.0), dtype=torch.float64)
    weight = layer.neuron.minimum_weight
    layer.weight.data.fill_(weight)
    spikes = Spikes.from_times(torch.zeros(1, 1, dtype=torch.float64))
    line = plots.plot_loss_along(lambda: layer(spikes).count().double().sum(), layer.weight, (0, 0), 0.5).get_lines()[0]
    breaks = np.isnan(line.get_ydata())
    assert breaks.sum() == 1
    assert line.get_xdata()[np.flatnonzero(breaks)[0] - 1] == pytest.approx(weight, abs=0.01)  # of steps of 0.0025
    assert layer.weight.item() == weight


def test_a_loss_that_is_flat_on_one_side_is_drawn_on_the_other():
    x = torch.zeros(1, dtype=torch.float64)
    line = plots.plot_loss_along(lambda: (x - 0.3).clamp(min=0).sum(), x, (0,), 1.0).get_lines()[0]
    assert not np.isnan(line.get_ydata()).any()


def test_runs_are_averaged(tmp_path):
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        rows = [{"test_accuracy": 0.5 + 0.1 * seed + 0.01 * k, "seconds": 2.0 + seed} for k in range(4 + seed)]
        (tmp_path / str(seed) / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    runs = {"mine": [tmp_path / str(seed) for seed in range(3)]}
    line = plots.plot_training(runs).get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata().tolist() == pytest.approx([0.6, 0.61, 0.62, 0.63])
    assert plots.plot_training(runs, against="seconds").get_lines()[0].get_xdata().tolist() == [3, 6, 9, 12]
    with pytest.raises(ValueError, match="against must be 'epoch' or 'seconds', got 'time'"):
        plots.plot_training(runs, against="time")


def test_confusion_counts_silence_apart():
    ax = plots.plot_confusion(torch.tensor([0, 1, 1, -1]), torch.tensor([0, 1, 0, 1]), num_classes=2)
    shown = {(text.get_position()): text.get_text() for text in ax.texts}
    assert shown == {(0, 0): "1", (1, 0): "1", (1, 1): "1", (2, 1): "1"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "silent"]


def test_maps_and_curves_of_results():
    ax = plots.plot_weights(torch.randn(10, 12), (3, 4), columns=4)
    assert ax.get_images()[0].get_array().shape == (3 * 4 - 1, 4 * 5 - 1)  # three rows of four, a line between them
    ax = plots.plot_growth({"window": [1, 2, 4]}, {"window": [3, 6, 12]}, "ms")
    assert ax.get_legend().get_texts()[0].get_text() == "window: slope 1.00"
    rows = [{"series": "grid", "ms": k, "error": 1 / k, "dt": 1 / k} for k in (1, 2, 4)]
    assert [text.get_text() for text in plots.plot_work_precision(rows).texts] == ["1", "0.25"]
