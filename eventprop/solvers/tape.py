"""What a forward pass remembers, and the errors that all solvers and backends raise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MAX_SPIKES_PER_SAMPLE = 2**20


class Tape(NamedTuple):
    """The emitted spikes, each row ascending in time: all that the backward pass needs besides its inputs."""

    time: Tensor  # [B, S] ms, padded with +inf
    neuron: Tensor  # [B, S] int64, padded with -1
    slope: Tensor  # [B, S] dV/dt at the crossing, padded with +inf
    after: (
        Tensor  # [B, S] int64, the last arrival before the spike, or of those that kernels tell apart; padded with -1
    )


class Maximum(NamedTuple):
    """The maximum over time of each neuron's potential, at rest (0) or above, and where it was reached."""

    value: Tensor  # [B, N]
    time: Tensor  # [B, N] ms; -inf where V never rose above rest
    after: Tensor  # [B, N] int64, the last arrival before it; -1 where V never rose above rest
    arrival: Tensor  # [B, N] int64, the arrival that ended the rise of V; -1 where V turned by itself or at t_end
    slope: Tensor  # [B, N] dV/dt just before the maximum: 0 where V turned by itself


def check_spike_count(largest: int) -> None:
    """Raise for a layer that emits more spikes than a sample may have."""
    if largest > MAX_SPIKES_PER_SAMPLE:
        raise ValueError(
            f"weight makes one sample emit more than {MAX_SPIKES_PER_SAMPLE:,} spikes; lower the weights, raise v_th or "
            f"shorten t_end"
        )


def check_finite(finite: bool) -> None:
    """Raise where a potential became NaN or infinite."""
    if not finite:
        raise ValueError(
            "weight must be finite: it gives a membrane potential that is NaN or infinite; lower the weights and the learning "
            "rate"
        )
