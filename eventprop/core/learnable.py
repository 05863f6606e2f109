"""Neurons with parameters of their own, learnable if wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checks import choice, finite, finite_entries, finite_exponential, not_negative, whole
from .neuron import LIF

LEARNABLE = ("tau_mem", "tau_syn", "v_th", "bias")


class LearnableLIF(nn.Module):
    """Leaky integrate-and-fire neurons whose time constants, threshold and bias current can be learned.

    The gradients are exact. ``EventDriven`` solves them on the CPU; ``TimeStepped`` also elsewhere, in plain torch. Time
    constants and threshold stay positive: the parameters are their logarithms.

    Args:
        num_neurons: N, of the layer that they are for.
        neuron: time constants and threshold at the begin, ``LIF()`` by default.
        bias: a constant current b: tau_mem dV/dt = -V + I + b. It begins at time 0.
        refractory: how long V is held at 0 after a spike, in ms, >= 0.
        learn: which of "tau_mem", "tau_syn", "v_th", "bias" to learn.
        shared: learn one number for the layer instead of one for each neuron.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: if an argument is not as described; the message names it.

    >>> neuron = LearnableLIF(3, learn=["tau_mem"])
    >>> [name for name, _ in neuron.named_parameters()]
    ['log_tau_mem']

    Neurons that a constant current above the threshold makes fire without any input, at most every 5 ms:

    >>> from eventprop import EventDriven, Spikes, SpikingLinear
    >>> neuron = LearnableLIF(1, bias=2.0, refractory=5.0, learn=["bias"])
    >>> layer = SpikingLinear(2, 1, neuron=neuron, solver=EventDriven(t_end=40.0))
    >>> layer(Spikes.from_times(torch.full((1, 2), torch.inf))).to_times(2).detach()
    tensor([[[13.8629, 32.7259]]])
    """

    log_tau_mem: Tensor
    log_tau_syn: Tensor
    log_v_th: Tensor
    bias: Tensor

    def __init__(
        self,
        num_neurons: int,
        neuron: LIF | None = None,
        *,
        bias: float = 0.0,
        refractory: float = 0.0,
        learn: Sequence[str] = ("tau_mem", "tau_syn", "v_th"),
        shared: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_neurons = whole("num_neurons", num_neurons, minimum=1)
        self.initial = LIF() if neuron is None else neuron
        if not isinstance(self.initial, LIF):
            raise TypeError(f"neuron must be an eventprop.LIF, got {type(neuron).__name__}")
        bias, self.refractory = finite("bias", bias), not_negative("refractory", refractory)
        for name in learn:
            choice("learn", name, LEARNABLE)
        self.learn, self.shared = tuple(learn), shared
        self._initial_values = {
            "log_tau_mem": math.log(self.initial.tau_mem),
            "log_tau_syn": math.log(self.initial.tau_syn),
            "log_v_th": math.log(self.initial.v_th),
            "bias": bias,
        }
        for name in self._initial_values:
            tensor = torch.empty(() if shared else (self.num_neurons,), device=device, dtype=dtype)
            if name.removeprefix("log_") in learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set parameters and buffers to what the constructor was given."""
        for name, value in self._initial_values.items():
            nn.init.constant_(getattr(self, name), value)

    @property
    def minimum_weight(self) -> float:
        """As of ``LIF``, at the begin."""
        return self.initial.minimum_weight

    def table(self) -> Tensor:
        """[N, 5] tau_mem, tau_syn, v_th, bias and refractory period of each neuron."""
        columns = [self.log_tau_mem.exp(), self.log_tau_syn.exp(), self.log_v_th.exp(), self.bias]
        columns.append(torch.full_like(columns[0], self.refractory))
        return torch.stack([column.expand(self.num_neurons) for column in columns], dim=1)

    def extra_repr(self) -> str:
        return f"{self.num_neurons}, {self.initial}, refractory={self.refractory}, learn={self.learn}, shared={self.shared}"


def parameters_of(neuron: LIF | LearnableLIF, weight: Tensor) -> Tensor:
    """[N, 5] the table of the neurons behind ``weight`` [N, M], as ``LearnableLIF.table``.

    Raises:
        ValueError: if a parameter is not finite, or a time constant or threshold not positive.
    """
    if isinstance(neuron, LearnableLIF):
        for name in ("log_tau_mem", "log_tau_syn", "log_v_th"):
            finite_exponential(f"LearnableLIF.{name}", getattr(neuron, name))
        finite_entries("LearnableLIF.bias", neuron.bias)
        return neuron.table()
    return weight.new_tensor([neuron.tau_mem, neuron.tau_syn, neuron.v_th, 0.0, 0.0]).expand(len(weight), 5)
