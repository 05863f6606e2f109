"""Arguments that are numbers: any of Python or NumPy will do, booleans and text will not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eventprop import (
    LIF,
    AveragePool2d,
    BackgroundSpikes,
    BiasSpike,
    Delay,
    DelayedSpikingLinear,
    EventDriven,
    GridSpikes,
    LeakyReadout,
    LearnableLIF,
    ShiftImage,
    SpikeDropout,
    Spikes,
    SpikeTimeJitter,
    SpikingConv2d,
    SpikingLinear,
    SpikingRecurrent,
    TimeStepped,
    binary_latency_encode,
    first_spike_cross_entropy,
    latency_encode,
    sequence_encode,
    smooth_count,
    spike_time_mse,
)

OPTIONAL = ("tau_weight", "k")  # None means that it is not given
SOLVER = EventDriven(40.0)
IMAGE, TIMES = torch.rand(1, 3, 3), torch.tensor([[1.0, 2.0]])
SPIKES, TARGET = Spikes.from_times(TIMES), torch.tensor([1])

# what takes the number, and the attribute that stores it, or None
REAL = {
    "tau_mem": (lambda x: LIF(tau_mem=x), "tau_mem"),
    "tau_syn": (lambda x: LIF(tau_syn=x), "tau_syn"),
    "v_th": (lambda x: LIF(v_th=x), "v_th"),
    "t_end": (lambda x: EventDriven(t_end=x), "t_end"),
    "min_slope": (lambda x: EventDriven(40.0, min_slope=x), "min_slope"),
    "dt": (lambda x: TimeStepped(4.0, dt=x), "dt"),
    "delay": (lambda x: SpikingRecurrent(2, 3, solver=SOLVER, delay=x), "delay"),
    "recurrent_std": (lambda x: SpikingRecurrent(2, 3, solver=SOLVER, recurrent_std=x), None),
    "tau_weight": (lambda x: LeakyReadout(2, 3, solver=SOLVER, reduce="weighted", tau_weight=x), "tau_weight"),
    "time": (lambda x: BiasSpike(x), "time"),
    "bias": (lambda x: LearnableLIF(2, bias=x), None),
    "refractory": (lambda x: LearnableLIF(2, refractory=x), "refractory"),
    "mean": (lambda x: Delay(3, mean=x), "mean"),
    "mean_delay": (lambda x: DelayedSpikingLinear(2, 3, solver=SOLVER, mean_delay=x), "mean_delay"),
    "p": (lambda x: SpikeDropout(x), "p"),
    "threshold": (lambda x: latency_encode(IMAGE, threshold=x), None),
    "std": (lambda x: SpikeTimeJitter(x), "std"),
    "rate": (lambda x: BackgroundSpikes(x, 40.0), "rate"),
    "t_min": (lambda x: latency_encode(IMAGE, t_min=x), None),
    "t_max": (lambda x: latency_encode(IMAGE, t_max=x), None),
    "t_on": (lambda x: binary_latency_encode(IMAGE, t_on=x), None),
    "t_off": (lambda x: binary_latency_encode(IMAGE, t_on=0.0, t_off=x), None),
    "t_width": (lambda x: sequence_encode(IMAGE, t_width=x), None),
    "t_step": (lambda x: sequence_encode(IMAGE, t_width=0.5, t_step=x), None),
    "tau0": (lambda x: first_spike_cross_entropy(SPIKES, TARGET, tau0=x), None),
    "tau": (lambda x: spike_time_mse(SPIKES, TIMES, tau=x), None),
    "smooth_count tau": (lambda x: smooth_count(SPIKES, 40.0, x), None),
    "height": (lambda x: Spikes(TIMES, torch.tensor([[0, 1]]), 2, height=x), None),
    "GridSpikes dt": (lambda x: GridSpikes.from_spikes(SPIKES, dt=x, t_end=4.0), "dt"),
}
WHOLE = {
    "in_features": (lambda n: SpikingLinear(n, 3, solver=SOLVER), "in_features"),
    "out_features": (lambda n: SpikingLinear(3, n, solver=SOLVER), "out_features"),
    "in_channels": (lambda n: SpikingConv2d(n, 3, 3, solver=SOLVER), "in_channels"),
    "out_channels": (lambda n: SpikingConv2d(3, n, 3, solver=SOLVER), "out_channels"),
    "kernel_size": (lambda n: SpikingConv2d(3, 3, n, stride=n, padding=n, solver=SOLVER), None),
    "num_neurons": (lambda n: LearnableLIF(n), "num_neurons"),
    "Delay num_neurons": (lambda n: Delay(n), "num_neurons"),
    "pixels": (lambda n: ShiftImage(n), "pixels"),
    "pool kernel_size": (lambda n: AveragePool2d(n), None),
    "Spikes num_neurons": (lambda n: Spikes(TIMES, torch.tensor([[0, 1]]), n), None),
    "shape": (lambda n: SPIKES.reshape(n, 1), None),
    "k": (lambda n: SPIKES.to_times(n), None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_numbers(name):
    build, attribute = REAL[name]
    for kind in (np.float32, np.float64, np.float16, np.int64, np.uint8, int, float):
        made = build(kind(0 if name in ("p", "threshold") else 1))  # these lie in [0, 1)
        assert attribute is None or type(getattr(made, attribute)) is float
    for bad in (True, np.True_, "1", None, 1j):
        if name not in OPTIONAL or bad is not None:
            with pytest.raises(TypeError, match=f"{name.split()[-1]} must be a"):
                build(bad)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    build, attribute = WHOLE[name]
    for kind in (np.int64, np.int32, np.uint8, int):
        made = build(kind(2))
        assert attribute is None or type(getattr(made, attribute)) is int
    for bad in (True, np.True_, 2.0, np.float64(2.0), "2", None):
        if name not in OPTIONAL or bad is not None:
            with pytest.raises(TypeError, match=f"{name.split()[-1]} must be an int"):
                build(bad)
