"""Modules: parameters, shapes and initialisation. The mathematics is the solver's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import readouts
from .checks import choice, finite, finite_exponential, is_finite, names_parameters, not_negative, positive, whole
from .event_driven import EventDriven
from .learnable import LearnableLIF
from .neuron import LIF
from .solver import READOUTS, Solver, check_weight
from .spikes import FLOATS, Spikes, traced
from .tape import check_finite
from .time_stepped import GridSpikes, TimeStepped


class SpikingModule(nn.Module):
    """A layer whose output is spikes: ``Spikes``, or a raster [T, B, ...] of a number of spikes in each step."""


class _Synapses(nn.Module):
    """A fully connected layer of synapses onto neurons."""

    neurons: tuple[type, ...] = (LIF,)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        solver: Solver,
        neuron: LIF | LearnableLIF | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = whole("in_features", in_features, minimum=1)
        self.out_features = whole("out_features", out_features, minimum=1)
        self.neuron = LIF() if neuron is None else neuron
        self.solver = solver
        if not isinstance(self.neuron, self.neurons):
            allowed = " or ".join(kind.__name__ for kind in self.neurons)
            raise TypeError(f"neuron of a {type(self).__name__} must be {allowed}, got {type(neuron).__name__}")
        if isinstance(self.neuron, LearnableLIF) and self.neuron.num_neurons != out_features:
            raise ValueError(f"neuron must have num_neurons={out_features}, as many as the layer, got {self.neuron}")
        if not isinstance(solver, Solver):
            raise TypeError(f"solver must be an EventDriven or a TimeStepped, got {type(solver).__name__}")
        if dtype is not None and dtype not in FLOATS:
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights from a normal distribution that makes neurons fire, whatever the number of inputs.

        With w_min the smallest weight with which a single spike fires the neuron (``LIF.minimum_weight``), M inputs of
        mean weight ``mean`` w_min / M that all spiked at once would raise V to ``mean`` v_th; the standard deviation
        ``std`` w_min / sqrt(M) makes V fluctuate by about ``std`` v_th. So sparse input fires some neurons and dense input
        about half of them, in one layer after another.
        """
        unit = self.neuron.minimum_weight
        nn.init.normal_(self.weight, mean * unit / self.in_features, std * unit / math.sqrt(self.in_features))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, neuron={self.neuron}, solver={self.solver}"


class SpikingLinear(_Synapses, SpikingModule):
    """Leaky integrate-and-fire neurons behind fully connected synapses: maps spike trains to spike trains.

    Args:
        in_features: number of input neurons M.
        out_features: number of neurons N.
        neuron: their parameters, ``LIF()`` by default; or a ``LearnableLIF``.
        solver: how to compute their spikes and gradients, e.g. ``EventDriven(t_end=40.0)``.
        device, dtype: of the weight; float32 or float64.

    Attributes:
        weight: [N, M] Parameter.

    >>> from eventprop import EventDriven
    >>> layer = SpikingLinear(2, 1, solver=EventDriven(t_end=40.0))
    >>> _ = layer.weight.data.fill_(5.0)
    >>> spikes = layer(Spikes.from_times(torch.tensor([[1.0, 2.0]])))
    >>> spikes.count()
    tensor([[1]])
    """

    neurons = (LIF, LearnableLIF)

    @names_parameters
    def forward(self, spikes: Spikes) -> Spikes:
        return self.solver.spikes(spikes, self.weight, self.neuron)


class SpikingRecurrent(SpikingLinear):
    """A ``SpikingLinear`` whose neurons also receive each other's spikes, and their own, after a delay.

    Args:
        in_features, out_features, neuron, device, dtype: as for ``SpikingLinear``.
        solver: how to compute spikes and gradients.
        delay: from a spike to its arrival within the layer in ms; >= 0 with ``EventDriven``, at least a step with
            ``TimeStepped``, which repeats its work ``t_end`` / ``delay`` times.
        recurrent_std: standard deviation of the initial recurrent weights, in units of ``minimum_weight`` / sqrt(N); their
            mean is 0.

    Attributes:
        weight: [N, M] Parameter.
        recurrent_weight: [N, N] Parameter; its row is the receiving neuron.

    >>> from eventprop import EventDriven
    >>> layer = SpikingRecurrent(2, 3, solver=EventDriven(t_end=40.0), delay=1.0)
    >>> layer(Spikes.from_times(torch.tensor([[1.0, 2.0]]))).num_neurons
    3
    """

    def __init__(
        self, in_features: int, out_features: int, *, delay: float = 1.0, recurrent_std: float = 0.5, **synapses
    ) -> None:
        delay, recurrent_std = not_negative("delay", delay), not_negative("recurrent_std", recurrent_std)
        super().__init__(in_features, out_features, **synapses)
        self.delay, self.recurrent_std = delay, recurrent_std
        self.recurrent_weight = nn.Parameter(self.weight.new_empty(out_features, out_features))
        self._draw_recurrent()

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights as ``SpikingLinear.reset_parameters`` does, and the recurrent weights."""
        super().reset_parameters(mean, std)
        if hasattr(self, "recurrent_weight"):  # not yet, while the constructor of SpikingLinear draws the weights
            self._draw_recurrent()

    def _draw_recurrent(self) -> None:
        std = self.recurrent_std * self.neuron.minimum_weight / math.sqrt(self.out_features)
        nn.init.normal_(self.recurrent_weight, 0.0, std)

    @names_parameters
    def forward(self, spikes: Spikes) -> Spikes:
        return self.solver.recurrent_spikes(spikes, self.weight, self.neuron, self.recurrent_weight, self.delay)


class BiasSpike(nn.Module):
    """Append one neuron that spikes once in every sample, so that the next layer, of one input more, has a bias.

    Its height is that of the other spikes.

    Args:
        time: of the spike in ms, finite; on a grid, within its window.

    >>> BiasSpike(5.0)(Spikes.from_times(torch.tensor([[1.0, 9.0]]))).to_times(1).flatten()
    tensor([1., 9., 5.])
    """

    def __init__(self, time: float = 0.0) -> None:
        super().__init__()
        self.time = finite("time", time)

    def forward(self, spikes: Spikes) -> Spikes:
        if isinstance(spikes, GridSpikes) and not 0 <= self.time <= spikes.t_end:
            raise ValueError(f"time must lie in [0, t_end={spikes.t_end}], got {self.time}")
        column = (spikes.batch_size, 1)
        time = torch.cat([spikes.time, spikes.time.new_full(column, self.time)], dim=1)
        neuron = torch.full(column, spikes.num_neurons, device=spikes.device)
        slope = (
            None if spikes.slope is None else torch.cat([spikes.slope, spikes.slope.new_full(column, math.inf)], dim=1)
        )
        index = torch.cat([spikes.index.long(), neuron], dim=1)
        return spikes.reordered(time, index, slope, (spikes.num_neurons + 1,))

    def extra_repr(self) -> str:
        return f"time={self.time}"


class SpikingLayer(SpikingModule):
    """Leaky integrate-and-fire neurons behind any linear map, on a time grid: maps spike trains to spike trains.

    The map acts alike on the two numbers that a step of a spike train is, eq. (11), and so trains with exact gradients of
    the spike times: a convolution, a pooling by averages, a sparse or low-rank map, or a sequence of these.

    Args:
        synapses: a linear module from [batch, *shape] to [batch, *shape of this layer]. The input has the shape of the
            layer that it comes from; ``Spikes`` without a grid, as from an encoder, come flat, so begin with
            ``nn.Unflatten`` where that matters.
        neuron: parameters of the neurons, ``LIF()`` by default.
        solver: a ``TimeStepped``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``synapses`` has a bias or is not linear. Modules of torch are known; those of others are tried on
            one sample whenever they are used.

    >>> from eventprop import TimeStepped
    >>> synapses = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 4, 5, stride=2, bias=False))
    >>> layer = SpikingLayer(synapses, solver=TimeStepped(t_end=40.0, dt=1.0))
    >>> layer(Spikes.from_times(20 * torch.rand(8, 784))).shape
    (4, 12, 12)
    """

    def __init__(self, synapses: nn.Module, *, solver: Solver, neuron: LIF | None = None) -> None:
        super().__init__()
        self.neuron = LIF() if neuron is None else neuron
        if not isinstance(self.neuron, LIF):
            raise TypeError(f"neuron must be an eventprop.LIF, got {type(neuron).__name__}")
        if not isinstance(solver, TimeStepped):
            raise TypeError(
                f"solver must be TimeStepped(...), got {type(solver).__name__}; EventDriven(...) solves SpikingLinear"
            )
        self.solver = solver
        self._known_linear = check_linear(synapses)
        self.synapses = synapses

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights of all synapses as ``SpikingLinear.reset_parameters`` does; the inputs of a neuron are counted
        by the shape of each weight, [outputs, ...]."""
        unit = self.neuron.minimum_weight
        for weight in self.synapses.parameters():
            inputs = math.prod(weight.shape[1:])
            nn.init.normal_(weight, mean * unit / inputs, std * unit / math.sqrt(inputs))

    @names_parameters
    def forward(self, spikes: Spikes) -> GridSpikes:
        return self.solver.spikes_behind(self.synapses if self._known_linear else self._tried, spikes, self.neuron)

    def _tried(self, effects: Tensor) -> Tensor:
        drive = self.synapses(effects)
        with torch.no_grad():
            fullest = effects.flatten(1).abs().sum(1).argmax() if len(effects) else 0
            sample = effects[fullest : fullest + 1]
            if not torch.allclose(
                self.synapses(-2.0 * sample), -2.0 * drive[fullest : fullest + 1], rtol=1e-3, atol=1e-6
            ):
                raise ValueError(
                    f"synapses must be linear, without bias: f(-2 x) differs from -2 f(x) in {self.synapses}"
                )
        return drive

    def extra_repr(self) -> str:
        return f"neuron={self.neuron}, solver={self.solver}"


LINEAR_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Sequential, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d,
)  # fmt: skip


def check_linear(module: nn.Module) -> bool:
    """Whether ``module`` is made of torch's linear modules alone; False if it holds others, that must be tried.

    Raises:
        ValueError: if it has a bias, or is one of torch's nonlinear modules.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"synapses must be a torch.nn.Module, got {type(module).__name__}")
    known = True
    for name, part in module.named_modules():
        label = f"{name or 'the module'} ({type(part).__name__})"
        if getattr(part, "bias", None) is not None:
            raise ValueError(f"synapses must have no bias, {label} has one; build it with bias=False")
        if not isinstance(part, LINEAR_MODULES):
            if type(part).__module__.startswith("torch.nn."):
                raise ValueError(f"synapses must be linear, {label} is not; average pooling and convolutions are")
            known = False
    return known


class LeakyReadout(_Synapses):
    """Neurons without threshold behind fully connected synapses: maps spike trains to potentials.

    Args:
        in_features, out_features, neuron, solver, device, dtype: as for ``SpikingLinear``; ``v_th`` of the neuron only
            scales the initial weights.
        reduce: what the output is, always with the exact gradient of its closed form:

            - "max": [B, N] the maximum of the potential over time (rest, 0, included);
            - "mean": [B, N] its average over [0, t_end];
            - "weighted": [B, N] its average with weights exp(-t / ``tau_weight``), so that early times count more;
            - "samples": [B, S, N] its values at the ``times`` [S], for a loss of your own.
        tau_weight: in ms, for reduce="weighted".
        times: in ms, for reduce="samples".
        learn_tau: learn the two time constants, one pair for the layer; they stay positive, since the parameters
            ``log_tau_mem`` and ``log_tau_syn`` are their logarithms.

    >>> from eventprop import EventDriven
    >>> readout = LeakyReadout(2, 3, solver=EventDriven(40.0), reduce="samples", times=[10.0, 20.0])
    >>> readout(Spikes.from_times(torch.tensor([[1.0, 2.0]]))).shape
    torch.Size([1, 2, 3])
    """

    times: Tensor | None
    log_tau_mem: Tensor
    log_tau_syn: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        solver: Solver,
        reduce: str = "max",
        tau_weight: float | None = None,
        times: Sequence[float] | Tensor | None = None,
        learn_tau: bool = False,
        **synapses,
    ) -> None:
        choice("reduce", reduce, (*READOUTS, "weighted", "samples"))
        for name, value, needed in (("tau_weight", tau_weight, "weighted"), ("times", times, "samples")):
            if (value is not None) != (reduce == needed):
                raise ValueError(
                    f"{name} must be given with reduce={needed!r}, and only then; got {value} with {reduce!r}"
                )
        super().__init__(in_features, out_features, solver=solver, **synapses)
        self.reduce, self.learn_tau = reduce, learn_tau
        self.tau_weight = None if tau_weight is None else positive("tau_weight", tau_weight)
        self._times = None if times is None else _row("times", times, solver.t_end)
        self.register_buffer("times", None if self._times is None else self.weight.new_empty(len(self._times)))
        for name in ("tau_mem", "tau_syn") if learn_tau else ():
            self.register_parameter(f"log_{name}", nn.Parameter(self.weight.new_empty(())))
        self._set_constants()
        exact = type(solver) is EventDriven or (type(solver) is TimeStepped and solver.scheme == "exponential")
        if (learn_tau or reduce not in READOUTS) and not exact:
            raise ValueError(
                f"reduce={reduce!r} with learn_tau={learn_tau} needs EventDriven or TimeStepped with scheme='exponential', "
                f"got {solver}; 'max' and 'mean' with learn_tau=False work with all solvers"
            )

    def reset_parameters(self, mean: float = 0.5, std: float = 2.0) -> None:
        """Draw the weights as ``SpikingLinear.reset_parameters`` does; ``times`` and time constants become what the constructor
        was given."""
        super().reset_parameters(mean, std)
        if "times" in self._buffers:  # not yet, while the constructor of all synapses draws the weights
            self._set_constants()

    @torch.no_grad()
    def _set_constants(self) -> None:
        if self.times is not None:
            self.times.copy_(torch.tensor(self._times, dtype=torch.float64, device="cpu"))
        for name in ("tau_mem", "tau_syn") if self.learn_tau else ():
            nn.init.constant_(getattr(self, f"log_{name}"), math.log(getattr(self.neuron, name)))

    @names_parameters
    def forward(self, spikes: Spikes) -> Tensor:
        self._check_times()  # others may have been assigned or loaded
        output = self._reduced(spikes)
        check_finite(is_finite(output))
        return output

    def _check_times(self) -> None:
        if self.times is not None and not traced(self.times):
            _row("times", self.times, self.solver.t_end)

    def _reduced(self, spikes: Spikes) -> Tensor:
        neuron, solver = self.neuron, self.solver
        assert isinstance(neuron, LIF)
        if self.reduce in READOUTS and not self.learn_tau:
            return solver.readout(spikes, self.weight, neuron, self.reduce)
        check_weight(spikes, self.weight)
        solver.check_begin(spikes)
        weight = spikes.scaled(self.weight)
        if self.learn_tau:
            for name in ("log_tau_mem", "log_tau_syn"):
                finite_exponential(f"LeakyReadout.{name}", getattr(self, name))
            tau_mem, tau_syn = self.log_tau_mem.exp(), self.log_tau_syn.exp()
        else:
            tau_mem, tau_syn = self.weight.new_tensor(neuron.tau_mem), self.weight.new_tensor(neuron.tau_syn)
        if self.times is not None:
            return readouts.at_times(spikes, weight, tau_mem, tau_syn, self.times)
        if self.reduce != "max":
            return readouts.mean(spikes, weight, tau_mem, tau_syn, solver.t_end, self.tau_weight or math.inf)
        when = solver.exact.time_of_maximum(spikes, weight, torch.stack([tau_mem, tau_syn]))
        return readouts.at_own_times(spikes, weight, tau_mem, tau_syn, when)

    def extra_repr(self) -> str:
        options = [f"reduce={self.reduce!r}"]
        options += [] if self.tau_weight is None else [f"tau_weight={self.tau_weight}"]
        options += ["learn_tau=True"] if self.learn_tau else []
        return ", ".join([super().extra_repr(), *options])


def _row(name: str, values: Sequence[float] | Tensor, t_end: float) -> list[float]:
    """The numbers in ``values``, all of which lie in [0, ``t_end``]."""
    if isinstance(values, Tensor) and values.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on the meta device; give a list of numbers")
    row = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if row.dim() != 1:
        raise ValueError(f"{name} must be a row of numbers, got shape {list(row.shape)}")
    if not ((row >= 0) & (row <= t_end)).all():
        raise ValueError(f"{name} must lie in [0, t_end={t_end}], got {row.tolist()}")
    return row.tolist()
