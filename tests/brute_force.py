"""Recurrent layers by brute force: V as a sum over all that ever arrived, its crossings by looking everywhere, and gradients
by the implicit function theorem. Nothing of the package: the definitions alone.

A neuron whose V was last at 0 at the time f, the end of its last spike's hold, has

    V(t) = sum_j w_j exp(-(b_j - t_j)/tau_syn) psp(t - b_j) + bias (1 - exp(-(t - max(f, 0))/tau_mem)),    b_j = max(t_j, f),

with a sum over all arrivals: what came before f is a current that has decayed since, and acts on V from f on.

Shapes: K arrivals, M inputs, N neurons, S spikes, J = K + S of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

LOOKS = 200  # at V in the window: a peak between two lies less than NEAR below the higher of them
NEAR = 0.9  # of the threshold: local maxima above are looked at closely
DOUBT = 1e-9  # of the threshold, or ms: what is closer is decided by rounding


@dataclass(frozen=True)
class Network:
    """A recurrent layer and what arrives at it; the tensors, all but ``source``, are what gradients are of."""

    time: Tensor  # [K]
    source: Tensor  # [K]
    weight: Tensor  # [N, M]
    recurrent: Tensor  # [N, N]
    tau_mem: Tensor  # [N], as the others below
    tau_syn: Tensor
    v_th: Tensor
    bias: Tensor
    refractory: float
    delay: float
    t_end: float

    def received(self, times: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """[J] when what arrives, and [N, J] the weights, if neurons ``index`` [S] spike at ``times`` [S]."""
        weights = torch.cat([self.weight[:, self.source], self.recurrent[:, index]], 1)
        return torch.cat([self.time, times + self.delay]), weights


def psp(since: Tensor, tau_mem: Tensor, tau_syn: Tensor) -> Tensor:
    """V after a unit arrival, (exp(-t/tau_mem) - exp(-t/tau_syn)) tau_syn/(tau_mem - tau_syn), as a hyperbolic sine, which also
    holds for equal time constants."""
    slow, fast = since / tau_mem, since / tau_syn
    x = 0.5 * (fast - slow)
    y, small = x * x, x.abs() < 0.05  # the series leaves out x^8/9!
    large = torch.where(small, 1.0, x)
    ratio = torch.where(small, 1 + y / 6 * (1 + y / 20 * (1 + y / 42)), torch.sinh(large) / large)
    return slow * torch.exp(-0.5 * (slow + fast)) * ratio


def potential(at, free, time, weight, tau_mem, tau_syn, bias) -> Tensor:
    """V, of the formula above, for arguments that broadcast to [..., J]."""
    begin = torch.maximum(time, free)
    since = (at - begin).clamp(min=0.0)  # psp(0) = 0 of what is still to come
    arrivals = weight * torch.exp((time - begin) / tau_syn) * psp(since, tau_mem, tau_syn)
    charged = (at - free.clamp(min=0.0)).clamp(min=0.0)
    return (arrivals.sum(-1, keepdim=True) - bias * torch.expm1(-charged / tau_mem)).squeeze(-1)


def first_crossing(curve, grid: list[float], v: list[float], threshold: float) -> tuple[float, bool]:
    """When ``curve``, which is ``v`` on the ``grid``, first reaches the threshold, or inf; and whether rounding decides it."""
    doubt = False

    def gap(t: float) -> float:
        return curve(t) - threshold

    for k in range(len(v)):
        if v[k] >= threshold:
            return (brentq(gap, grid[k - 1], grid[k], xtol=1e-14), doubt) if k > 0 else (grid[0], True)
        if 0 < k < len(v) - 1 and v[k] > NEAR * threshold and v[k - 1] <= v[k] and v[k + 1] <= v[k]:
            peak = minimize_scalar(
                lambda t: -gap(t), bounds=(grid[k - 1], grid[k + 1]), method="bounded", options={"xatol": 1e-9}
            )
            height = max(-peak.fun, v[k] - threshold)  # the peak may be an edge, at an arrival
            doubt = doubt or abs(height) < DOUBT * threshold
            if height >= 0:
                return brentq(gap, grid[k - 1], peak.x, xtol=1e-14), doubt
    return math.inf, doubt


@torch.no_grad()
def simulate(network: Network) -> tuple[Tensor, Tensor, bool]:
    """Spike times [S] and their neurons [S]; and whether rounding decides which spikes there are."""
    times, index = network.time.new_empty(0), network.source.new_empty(0)
    free = torch.full_like(network.v_th, -math.inf)
    now, doubt = min(0.0, float(network.time[0])), False
    while True:
        first, close = next_spikes(network, now, free, *network.received(times, index))
        now, doubt = float(first.min()), doubt or close
        if now >= network.t_end - DOUBT:
            return times, index, doubt or now < network.t_end
        spiking = (first == now).nonzero()[:, 0]
        times, index = torch.cat([times, first[spiking]]), torch.cat([index, spiking])
        free[spiking] = now + network.refractory


def next_spikes(network: Network, now: float, free: Tensor, time: Tensor, weight: Tensor) -> tuple[Tensor, bool]:
    """[N] when each neuron first crosses the threshold, or inf: sure of the earliest only, since others wait for the spike
    before them. And whether rounding decides it."""
    columns = torch.stack([network.tau_mem, network.tau_syn, network.bias])[..., None, None]
    special = torch.cat([time, free, torch.zeros_like(free[:1])])  # where V has edges
    grid = torch.linspace(now, network.t_end, LOOKS, dtype=time.dtype)
    grid = torch.cat([grid, special[(special > now) & (special < network.t_end)]]).unique()
    v = potential(grid[:, None], free[:, None, None], time, weight[:, None], *columns)
    above = (v >= network.v_th[:, None]).any(0).nonzero()
    looked = int(above[0]) + 2 if len(above) else len(grid)
    first, doubt = torch.full_like(free, math.inf), False
    for n in range(len(free)):

        def curve(t: float, n: int = n) -> float:
            return float(potential(time.new_tensor([t]), free[n], time, weight[n], *columns[:, n, 0]))

        first[n], close = first_crossing(curve, grid[:looked].tolist(), v[n, :looked].tolist(), float(network.v_th[n]))
        doubt = doubt or close
    return first, doubt


def residuals(times: Tensor, index: Tensor, network: Network) -> Tensor:
    """[S] by how much V misses the threshold if neurons ``index`` spike at ``times``: 0 for a solution."""
    last, previous = {}, []
    for k, n in enumerate(index.tolist()):
        previous.append(last.get(n, len(index)))
        last[n] = k
    free = torch.cat([times + network.refractory, times.new_tensor([-math.inf])])[previous]
    time, weight = network.received(times, index)
    columns = (x[index, None] for x in (network.tau_mem, network.tau_syn, network.bias))
    return potential(times[:, None], free[:, None], time, weight[index], *columns) - network.v_th[index]


def gradients(
    times: Tensor, index: Tensor, network: Network, grad: Tensor, leaves: list[Tensor]
) -> tuple[list[Tensor], float]:
    """dL/d(leaves), of which the ``network`` is made, from ``grad`` [S] = dL/d(times): the residuals F stay 0, so that
    dt/dx = -(dF/dt)^-1 dF/dx. And by how much spikes may move in ms if every V is wrong by 1."""
    by_times = torch.autograd.functional.jacobian(lambda t: residuals(t, index, network), times, vectorize=True)
    inverse = torch.linalg.inv(by_times)
    loss = -(grad @ inverse) @ residuals(times, index, network)
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True)), float(inverse.abs().sum(1).max())


def has_edge(times: Tensor, index: Tensor, network: Network) -> bool:
    """Whether something arrives as a neuron spikes or is released, so that left and right derivatives by its time differ;
    a spike that arrives at its own neuron does so whatever moves."""
    time, _ = network.received(times, index)
    gaps = (time[:, None] - torch.cat([times, times + network.refractory])).abs()
    own = torch.arange(len(times))
    gaps[len(network.time) + own, own] = gaps[len(network.time) + own, len(times) + own] = math.inf
    return bool((gaps < DOUBT).any())
