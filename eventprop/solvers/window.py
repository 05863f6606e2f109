"""Where the receptive fields of a convolution or a pooling lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from eventprop.core.spikes import Spikes

from .solver import check_arrivals, check_kind

Pair = tuple[int, int]


class Window(NamedTuple):
    """The receptive fields of a convolution or a pooling."""

    channels: int
    image: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair

    @property
    def numbers(self) -> list[int]:
        """All numbers in a row, as operators of torch take them."""
        return [self.channels, *itertools.chain(*self[1:])]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Window:
        """The window with these ``numbers``."""
        channels, *rest = numbers
        return cls(channels, *zip(rest[::2], rest[1::2], strict=True))

    @property
    def out(self) -> Pair:
        """Height and width of the output.

        Raises:
            ValueError: if the kernel does not fit into the image.
        """
        sizes = [
            (size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in zip(*self[1:], strict=True)
        ]
        if min(sizes) < 1:
            raise ValueError(
                f"kernel_size={self.kernel_size} exceeds the image of {self.image[0]} x {self.image[1]} with "
                f"padding={self.padding}; choose a smaller kernel or more padding"
            )
        return sizes[0], sizes[1]

    @classmethod
    def on(cls, spikes: Spikes, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)) -> Window:
        """The fields on the image that ``spikes`` come from.

        Raises:
            TypeError, ValueError: if they are no spikes, or their shape is not that of an image.
        """
        check_arrivals(spikes)
        shape = spikes._shape
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) != 3:
            raise ValueError(
                f"the input must have the shape (channels, height, width) or (height, width), got {shape}; encode images of "
                f"that shape, or use spikes.reshape(channels, height, width)"
            )
        return cls(shape[0], (shape[1], shape[2]), kernel_size, stride, padding)

    @classmethod
    def of(cls, arrivals: Spikes, weight: Tensor, stride: Pair, padding: Pair) -> Window:
        """The fields of a convolution with ``weight`` [C, channels, height, width].

        Raises:
            TypeError, ValueError: if the arrivals do not fit to the weight.
        """
        check_kind(arrivals, weight)
        window = cls.on(arrivals, (weight.shape[2], weight.shape[3]), stride, padding)
        if window.channels != weight.shape[1]:
            raise ValueError(
                f"the input has {window.channels} channels but weight {list(weight.shape)} takes {weight.shape[1]}"
            )
        return window
