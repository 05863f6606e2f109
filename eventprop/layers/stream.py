"""Recordings that are too long to be in memory at once: a network over chunks of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from eventprop.core.checks import choice
from eventprop.core.spikes import Spikes
from eventprop.solvers.problem import check_arrivals
from eventprop.solvers.stream import Stream
from eventprop.solvers.support import UnsupportedError

from .augmentation import BackgroundSpikes, ShiftImage, SpikeTimeJitter
from .bias import BiasSpike
from .convolution import EarliestSpikePool2d
from .delays import Delay
from .linear import _Solved

OF_A_WHOLE = (BiasSpike, Delay, EarliestSpikePool2d)
OF_A_WHOLE_IN_TRAINING = (BackgroundSpikes, ShiftImage, SpikeTimeJitter)


def stream(network: nn.Module, chunks: Iterable[Spikes], backward: str = "truncated") -> Iterator[Any]:
    """Give a network a recording in chunks of time: the very numbers that it would give for the whole recording at once.

    Only the mean of a readout is rounded otherwise. The state of every neuron is carried over from chunk to chunk. Beside it,
    only one chunk and the next, and the spikes whose effect is still to come, are in memory.

    Args:
        network: a module whose layers are ``SpikingLinear``, ``SpikingRecurrent``, ``SpikingConv2d``, ``LeakyReadout`` of
            reduce "max" or "mean", and what has no state. Their solver is an ``EventDriven``, whose ``t_end`` is the end of the
            recording, on the CPU.
        chunks: batches of the same samples. Times are those of the whole recording: none may come before one of the same
            sample in an earlier chunk. A sample may have no spikes in a chunk.
        backward: how far back gradients go: "full", through all chunks, or "truncated", to the begin of the chunk of an output.
            There what is carried over counts as a constant, and parameters may change between two chunks.

    Yields:
        For each chunk the output of the network. Spikes are those that were not given before and that are certain now, whatever
        comes next: of each layer those up to the last spike that it has received, of a convolution those up to that of a
        position that is about to fire. A readout gives its maximum up to there, or its mean over the window by what has come so
        far. The last chunk gives all that is left, up to ``t_end``.

    Raises:
        UnsupportedError: if a layer needs the whole recording at once; it names the layer.
        TypeError, ValueError: if an argument is not as described; the message names it.

    >>> import torch
    >>> from eventprop import EventDriven, SpikingLinear
    >>> layer = SpikingLinear(2, 1, solver=EventDriven(t_end=1e6))
    >>> _ = layer.weight.data.fill_(5.0)
    >>> recording = (Spikes.from_times(torch.tensor([[t + 1.0, t + 2.0]])) for t in (0.0, 1000.0, 2000.0))
    >>> [output.count().item() for output in stream(layer, recording)]
    [0, 1, 2]
    """
    choice("backward", backward, ("truncated", "full"))
    for name, module in network.named_modules():
        if isinstance(module, OF_A_WHOLE) or (module.training and isinstance(module, OF_A_WHOLE_IN_TRAINING)):
            raise UnsupportedError(
                f"network must not have a {type(module).__name__} in a stream, as at {name!r}: it acts on a whole recording; "
                f"apply it before, or give the network the whole recording at once"
            )
        if isinstance(module, _Solved):
            module.solver.check_stream(module.problem)
    return _outputs(network, iter(chunks), Stream(truncated=backward == "truncated"))


def _outputs(network: nn.Module, chunks: Iterator[Spikes], states: Stream) -> Iterator[Any]:
    kind = None
    chunk = next(chunks, None)
    while chunk is not None:
        check_arrivals(chunk)
        if (_kind(chunk) if kind is None else kind) != _kind(chunk):
            raise ValueError(f"chunks must be of the same samples, neurons and dtype, got {_kind(chunk)} after {kind}")
        kind, following = _kind(chunk), next(chunks, None)
        with states.chunk(last=following is None):
            output = network(chunk)
        yield output
        chunk = following


def _kind(chunk: Spikes) -> tuple:
    """What all chunks of a recording have in common."""
    return len(chunk), chunk.shape, chunk.height, chunk.dtype, chunk.device
