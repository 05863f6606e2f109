"""A layer in chunks of time, with the very numbers that it has over the whole window; a mean with other rounding.

To stop between two arrivals would round a stretch in two places. So a layer is solved up to the last arrival that is known, of
each sample; that arrival waits for the next chunk, which begins with it, and so does the state just before it. What is emitted
up to then is certain.

Shapes: B samples, P positions of a convolution, M inputs, N neurons, K arrivals.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eventprop.core.learnable import parameters_of
from eventprop.core.neuron import LIF
from eventprop.core.observe import observe
from eventprop.core.spikes import Spikes
from eventprop.core.tensorlike import traced

from ..problem import Convolution, Dense, Problem
from ..tape import Maximum, Tape
from . import operators
from .between import MaximumBetween, RecurrentBetween, SpikesBetween
from .patches import fold, unfold


class Carried(NamedTuple):
    """What a layer carries over."""

    waiting: Spikes  # the arrivals at the time up to which it is solved
    state: Tensor  # [2, B, N] V and I just before them, float64


class Part(NamedTuple):
    """What is solved of a layer in one chunk."""

    arrivals: Spikes
    stop: Tensor  # [B] ms, float64
    waiting: Spikes  # the arrivals at ``stop``, for the next chunk
    state: Tensor  # [2, B, N] at the begin

    @classmethod
    def of(cls, arrivals: Spikes, carried: Carried | None, neurons: int, t_end: float, last: bool) -> Part:
        """Between the arrivals that waited, if any, and those that will."""
        time, index = arrivals.time, arrivals.index.long()
        state = torch.zeros((2, len(time), neurons), dtype=torch.float64) if carried is None else carried.state
        if carried is not None:
            check_order(carried.waiting, time)
            time, index = torch.cat([carried.waiting.time, time], 1), torch.cat([carried.waiting.index, index], 1)
        time, index = time.masked_fill(time >= t_end, math.inf), index.masked_fill(time >= t_end, -1)  # without effect
        known = Spikes._trusted(time, index, arrivals._shape, None, arrivals.height).reordered(time, index)
        stop = torch.full((len(time),), t_end, dtype=torch.float64) if last else last_time(known)
        early = known.time != stop[:, None]
        waiting = known.reordered(known.time.masked_fill(early, math.inf), known.index.masked_fill(early, -1))
        return cls(known, stop, waiting, state)


def check_order(waiting: Spikes, time: Tensor) -> None:
    """Raise if a spike of a chunk, ``time`` [B, K], comes before those that wait from earlier chunks."""
    known = last_time(waiting)
    late = (time < known[:, None]).any(1)
    if late.any():
        sample = int(late.nonzero()[0])
        raise ValueError(
            f"chunks must not go back in time, nor may what is between the layers of a network: sample {sample} has a spike at "
            f"{float(time[sample].detach().min())} ms, after one at {float(known[sample])} ms in an earlier chunk"
        )


def last_time(spikes: Spikes) -> Tensor:
    """[B] the time of the last spike of each sample, float64; -inf if there is none."""
    time = F.pad(spikes.time.detach().double(), (0, 1), value=-math.inf)
    return time.masked_fill(time == math.inf, -math.inf).amax(1)


def solve(solver: Any, problem: Problem, arrivals: Spikes, carried: Any, last: bool) -> tuple[Any, Any]:
    """As ``Solver.solve_chunk``, for an ``EventDriven``."""
    if problem.readout is not None:
        return (_maximum if problem.readout.reduce == "max" else _mean)(solver, problem, arrivals, carried, last)
    if isinstance(problem.synapses, Convolution):
        return _convolution(solver, problem, arrivals, carried, last)
    plain = isinstance(problem.neuron, LIF) and problem.recurrence is None
    return (_spikes if plain else _heterogeneous)(solver, problem, arrivals, carried, last)


def _spikes(solver: Any, problem: Problem, arrivals: Spikes, carried: Any, last: bool) -> tuple[Spikes, Carried]:
    assert isinstance(problem.synapses, Dense)
    weight = arrivals.scaled(problem.synapses.weight)
    part = Part.of(arrivals, carried, len(weight), solver.t_end, last)
    received = part.arrivals.time, part.arrivals.index
    time, index, slope, after, end = SpikesBetween.of(*received, weight, part.state, part.stop, problem.neuron, solver)
    observe(index, after)
    return Spikes._trusted(time, index, (len(weight),), slope), Carried(part.waiting, end)


class CarriedSpikes(NamedTuple):
    """What a layer carries over that receives its own spikes, or whose neurons differ."""

    inside: Carried  # its state is that of ``kernels.span`` [6, B, N]; in the last row, until when V is held
    bias: Tensor  # [N] b, of U = V - b
    own: Tensor  # [B, R] spikes that are still to arrive or hold their neurons, padded with +inf
    neuron: Tensor  # [B, R] of them, padded with -1
    delivered: Tensor  # [B] how many of them have arrived

    @classmethod
    def at_rest(cls, arrivals: Spikes, bias: Tensor) -> CarriedSpikes:
        state = torch.zeros((6, len(arrivals), len(bias)), dtype=torch.float64)
        state[-1] = -math.inf
        time, index = arrivals.time[:, :0], arrivals.index[:, :0].long()
        none = Spikes._trusted(time, index, arrivals._shape, None, arrivals.height)
        return cls(Carried(none, state), bias, time, index, torch.zeros(len(arrivals), dtype=torch.int64))


def _heterogeneous(
    solver: Any, problem: Problem, arrivals: Spikes, carried: Any, last: bool
) -> tuple[Spikes, CarriedSpikes]:
    assert isinstance(problem.synapses, Dense)
    weight = arrivals.scaled(problem.synapses.weight)
    back, delay = problem.recurrence or (weight.new_zeros(len(weight), 0), 0.0)
    neurons = parameters_of(problem.neuron, weight)
    bias = neurons[:, 3].double()
    carried = CarriedSpikes.at_rest(arrivals, bias) if carried is None else carried
    part = Part.of(arrivals, carried.inside, len(weight), solver.t_end, last)
    known, waited = part.arrivals, last_time(carried.inside.waiting)
    first = F.pad(known.time.detach(), (0, 1))[:, 0].double().clamp(max=0.0)  # of a layer still at rest
    begin = torch.where(waited > -math.inf, waited, first)
    # V is carried over, not U: the bias may have changed, or count as a constant before. Else this changes no bit
    moved = torch.where(begin[:, None] > 0.0, carried.bias - bias, 0.0)
    state = torch.cat([part.state[:1] + moved, part.state[1:]])
    span = begin, torch.maximum(part.stop, begin), state, carried.own, carried.neuron, carried.delivered
    learns = neurons.requires_grad or traced(neurons)
    layer = known.time, known.index, weight, back, neurons
    *columns, _, end, latest, arrived = RecurrentBetween.of(*layer, *span, delay, learns, solver)
    tape = Tape(*columns)
    observe(tape.neuron, tape.after)
    train = Spikes._trusted(tape.time, tape.neuron, (len(weight),), tape.slope)
    place, real, source = torch.arange(tape.time.shape[1]), tape.neuron >= 0, tape.neuron.clamp(min=0)
    emitted = _only(train, real & (place >= (carried.neuron >= 0).sum(1, keepdim=True)))
    has_arrived = place < arrived[:, None] if problem.recurrence else torch.ones_like(real)
    held = end[-1].detach() >= span[1][:, None]
    matters = real & (~has_arrived | (held.gather(1, source) & (latest.gather(1, source) == place)))
    own = _only(train, matters)
    delivered = (matters & has_arrived).sum(1) if problem.recurrence else arrived
    return emitted, CarriedSpikes(Carried(part.waiting, end), bias, own.time, own.index, delivered)


class CarriedPatches(NamedTuple):
    """What a convolution carries over."""

    inside: Carried  # of its positions as samples
    known: Tensor  # [B] ms, up to when the arrivals of a sample are known; float64
    emitted: Spikes  # [B P, S] spikes that wait for others, which come before


def _convolution(
    solver: Any, problem: Problem, arrivals: Spikes, carried: CarriedPatches | None, last: bool
) -> tuple[Spikes, CarriedPatches]:
    """A position is solved up to its own last arrival. Spikes go on in the order of their times; so where a position will fire
    before the last arrival of the sample, what others emit after its own last arrival waits for it."""
    assert isinstance(problem.synapses, Convolution)
    assert isinstance(problem.neuron, LIF)
    window, kernels = problem.synapses.window(arrivals), problem.synapses.weight.flatten(1)
    patches = unfold(arrivals, window, "numba")
    inside = problem._replace(synapses=Dense(kernels))
    emitted, inner = _spikes(solver, inside, patches, None if carried is None else carried.inside, last)
    known, positions = last_time(arrivals), math.prod(window.out)
    if carried is not None:
        known, waited = torch.maximum(known, carried.known), carried.emitted
        assert waited.slope is not None
        assert emitted.slope is not None
        pairs = (waited.time, emitted.time), (waited.index, emitted.index), (waited.slope, emitted.slope)
        time, index, slope = (torch.cat(pair, 1) for pair in pairs)
        emitted = emitted.reordered(time, index, slope)
    certain = torch.full_like(known, math.inf)
    if not last:
        each = known.repeat_interleave(positions)
        with torch.no_grad():
            received = inner.waiting.time, inner.waiting.index, patches.scaled(kernels)
            ahead = operators.spikes_between(*received, inner.state, each, problem.neuron.numbers)[1]
        fires = (ahead >= 0).any(1)
        certain = torch.where(fires, last_time(inner.waiting), each).unflatten(0, (-1, positions)).amin(1)
    ready = emitted.time < certain.repeat_interleave(positions)[:, None]
    train = fold(_only(emitted, ready), window, "numba")
    return train, CarriedPatches(inner, known, _only(emitted, ~ready))


def _only(spikes: Spikes, these: Tensor) -> Spikes:
    return spikes.reordered(spikes.time.masked_fill(~these, math.inf), spikes.index.masked_fill(~these, -1))


class CarriedMaximum(NamedTuple):
    """What a readout of the maximum carries over."""

    inside: Carried
    best: Tensor  # [B, N] so far


def _maximum(
    solver: Any, problem: Problem, arrivals: Spikes, carried: Any, last: bool
) -> tuple[Tensor, CarriedMaximum]:
    weight, neuron, _ = problem.to_read_out()
    weight = arrivals.scaled(weight)
    part = Part.of(arrivals, None if carried is None else carried.inside, len(weight), solver.t_end, last)
    best = weight.new_zeros((len(arrivals), len(weight))) if carried is None else carried.best
    received = part.arrivals.time, part.arrivals.index
    *columns, end = MaximumBetween.of(*received, weight, best, part.state, part.stop, neuron, solver)
    found = Maximum(*columns)
    observe(found.after, found.arrival)
    return found.value, CarriedMaximum(Carried(part.waiting, end), found.value)


def _mean(solver: Any, problem: Problem, arrivals: Spikes, carried: Any, last: bool) -> tuple[Tensor, Tensor]:
    """A sum over arrivals, of which each input's part [B, M] is carried over. It waits for nothing."""
    weight, neuron, _ = problem.to_read_out()
    return solver._mean(arrivals, arrivals.scaled(weight), neuron, carried)
