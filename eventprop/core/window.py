"""Where the receptive fields of a convolution or a pooling lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from .spikes import Spikes

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
            ValueError: if their shape is not that of an image.
        """
        shape = spikes._shape
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) != 3:
            raise ValueError(
                f"the input must have the shape (channels, height, width) or (height, width), got {shape}; encode images of "
                f"that shape, or use spikes.reshape(channels, height, width)"
            )
        return cls(shape[0], (shape[1], shape[2]), kernel_size, stride, padding)
