"""What spike trains share with tensors and containers: indexing, moves, copies, and being taken apart by PyTorch's tools.

Shapes: B samples, K spikes in the longest row.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils import _pytree as pytree

FLOATS = (torch.float32, torch.float64)
UNREAL = (FakeTensor, FunctionalTensor)


def traced(*tensors: Tensor) -> bool:
    """Whether values of ``tensors`` cannot be looked at: in ``torch.compile``, within ``torch.func``, on the meta device."""
    return torch.compiler.is_compiling() or any(
        x.is_meta or isinstance(x, UNREAL) or torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors
    )


def check_float(name: str, value: object) -> None:
    """Raise unless ``value`` is a tensor of a dtype that times can have."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64, got {value.dtype}; convert with .float() or .double()")


class TensorLike(ABC):
    """A data class of tensors whose first dimension are the samples; or one sample, without that dimension.

    Attributes:
        tensors: names of the fields that are tensors, or None; all other fields are the same for all samples.
    """

    tensors: ClassVar[tuple[str, ...]] = ("time", "index", "slope")

    time: Tensor
    index: Tensor
    slope: Tensor | None

    def __init_subclass__(cls) -> None:
        """Let PyTorch's tools take every kind apart and put it together, from whatever they have in the place of tensors; and
        ``torch.load`` read it."""

        def parts(spikes: TensorLike) -> tuple[list[tuple[Any, Any]], tuple]:
            names = tuple(name for name in cls.tensors if getattr(spikes, name) is not None)
            rest = tuple((field.name, getattr(spikes, field.name)) for field in fields(cls) if field.name not in names)  # type: ignore[arg-type]
            return [(pytree.GetAttrKey(name), getattr(spikes, name)) for name in names], (names, rest)

        def flatten(spikes: TensorLike) -> tuple[list, tuple]:
            keyed, context = parts(spikes)
            return [value for _, value in keyed], context

        def unflatten(values: Iterable, context: tuple) -> TensorLike:
            names, rest = context
            spikes = object.__new__(cls)
            for name, value in (*zip(names, values, strict=True), *rest):
                setattr(spikes, name, value)
            return spikes

        name = f"{cls.__module__}.{cls.__qualname__}"
        pytree.register_pytree_node(
            cls, flatten, unflatten, flatten_with_keys_fn=parts, serialized_type_name=name,
            to_dumpable_context=json.dumps, from_dumpable_context=lambda text: _tuples(json.loads(text)),
        )  # fmt: skip
        torch.serialization.add_safe_globals([cls])

    @abstractmethod
    def _similar(self, time: Tensor, index: Tensor, slope: Tensor | None) -> Self:
        """Other spikes of the same neurons."""

    @property
    def batch_size(self) -> int:
        if self.time.dim() == 1:
            raise TypeError("this is one sample, which has no batch size; sample[None] is a batch of it")
        return self.time.shape[0]

    @property
    def device(self) -> torch.device:
        return self.time.device

    @property
    def dtype(self) -> torch.dtype:
        return self.time.dtype

    def __len__(self) -> int:
        return self.batch_size

    # There is no __iter__: Python iterates by index, and Lightning, which looks for a batch size in all that has one, would
    # look into the samples.
    def __getitem__(self, rows: int | slice | Sequence[int] | Sequence[bool] | Tensor | None) -> Self:
        """One sample, for an integer; the batch of the samples in a slice, a list, a mask [B] or an int64 tensor [b]. Padding
        that only other samples need is left out. ``sample[None]`` is a batch of one sample."""
        if self.time.dim() == 1:
            if rows is not None:
                raise TypeError(
                    "this is one sample: its spikes are sample.time and sample.index; sample[None] is a batch"
                )
            return self._each(lambda x: x[None])
        if rows is None or isinstance(rows, (bool, tuple)) or getattr(rows, "ndim", 1) > 1:
            raise TypeError(
                f"samples are chosen by an integer, a slice, a list, a mask [B] or a tensor [b], got {rows!r}"
            )
        if not isinstance(rows, (int, slice, Tensor)):
            rows = torch.as_tensor(rows, device=self.device)
            rows = rows if rows.numel() else rows.long()  # an empty list has no dtype of its own
        return self._each(lambda x: x[rows])._trimmed()

    def select(self, rows: Tensor, columns: int | None = None) -> Self:
        """The samples ``rows`` (int64 [b]), without the padding that only other samples need. Where it is known that they fill
        so many ``columns``, no one looks."""
        if columns is None:
            return self._each(lambda x: x[rows])._trimmed()
        return self._each(lambda x: x[:, :columns][rows])

    def split(self, split_size: int | list[int]) -> tuple[Self, ...]:
        """Batches of ``split_size`` samples, or of as many each as a list says; as ``Tensor.split``."""
        return tuple(self.select(rows) for rows in torch.arange(len(self), device=self.device).split(split_size))

    def to(self, *args, **kwargs) -> Self:
        """Move to a device or convert the times to a dtype, as ``Tensor.to``; to both of another spike train or tensor."""
        args = tuple(arg.time if isinstance(arg, TensorLike) else arg for arg in args)
        time = self.time.to(*args, **kwargs)
        check_float("dtype", time)
        flags: dict[str, Any] = dict(
            zip(("non_blocking", "copy"), (arg for arg in args if isinstance(arg, bool)), strict=False)
        )
        flags |= {name: kwargs[name] for name in ("non_blocking", "copy") if name in kwargs}
        slope = None if self.slope is None else self.slope.to(time, **flags)
        return self._similar(time, self.index.to(time.device, **flags), slope)

    def cpu(self) -> Self:
        return self.to("cpu")

    def cuda(self, device: torch.device | int | str | None = None, non_blocking: bool = False) -> Self:
        return self._each(lambda x: x.cuda(device, non_blocking))

    def float(self) -> Self:
        return self.to(torch.float32)

    def double(self) -> Self:
        return self.to(torch.float64)

    def clone(self) -> Self:
        return self._each(Tensor.clone)

    def detach(self) -> Self:
        """The same spikes, cut from the autograd graph."""
        return self._each(Tensor.detach)

    def pin_memory(self) -> Self:
        return self._each(Tensor.pin_memory)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Make the times gather a gradient, in place."""
        self.time.requires_grad_(requires_grad)
        return self

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        slope = None if self.slope is None else change(self.slope)
        return self._similar(change(self.time), change(self.index), slope)

    def _trimmed(self) -> Self:
        if traced(self.index):
            return self
        columns = int((torch.atleast_2d(self.index) >= 0).any(0).sum())
        return self._each(lambda x: x[..., :columns])


def _tuples(value: Any) -> Any:
    """``value`` with tuples where JSON has lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
