"""A recording in chunks of time: what the layers of a network carry over from one chunk to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from eventprop.core.spikes import Spikes

from .problem import Problem

_current: ContextVar[Stream | None] = ContextVar("stream", default=None)


class Stream:
    """Passes of a network over the chunks of a recording. What a layer carries over is known by the place of its call in the
    pass, so that a layer that is called twice has two states."""

    def __init__(self, truncated: bool) -> None:
        self._truncated = truncated
        self._carried: list[tuple[tuple, Any]] = []  # of each call: what was solved, and what the solver carries over
        self._calls = 0
        self._begun = self._last = False

    @contextmanager
    def chunk(self, last: bool) -> Iterator[None]:
        """Within this context all solvers solve one chunk of their layers, and the ``last`` one up to the end."""
        self._calls, self._last = 0, last
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
        if self._calls != len(self._carried):
            raise ValueError(f"{_SAME}; this chunk met {self._calls}, those before it {len(self._carried)}")
        self._begun = True
        if self._truncated:
            self._carried = [(what, pytree.tree_map_only(Tensor, Tensor.detach, x)) for what, x in self._carried]

    def solve(self, solver: Any, problem: Problem, arrivals: Spikes) -> Any:
        """The output of a layer for one chunk, by a ``Solver``."""
        what = solver, problem.kind(solver.step), *(x.shape for x in problem.synapses if isinstance(x, Tensor))
        place, before = self._calls, None
        self._calls += 1
        if self._begun:
            if place == len(self._carried) or self._carried[place][0] != what:
                raise ValueError(f"{_SAME}; call {place + 1} of this chunk is another one")
            before = self._carried[place][1]
        output, carried = solver.solve_chunk(problem, arrivals, before, self._last)
        self._carried[place : place + 1] = [(what, carried)]
        return output


_SAME = "network must call the same layers in the same order for every chunk of a stream"


def current() -> Stream | None:
    """The stream of which a chunk is being solved, if any."""
    return _current.get()
