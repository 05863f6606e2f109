"""Classify image files: ``python -m eventprop.predict checkpoint=runs/.../checkpoint.pt image=digit.png``.

Several files: ``image=a.png,b.png``. Images are bright on dark, as MNIST is; ``invert=true`` for those that are not. ``device``
is ``cpu`` unless given.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from eventprop.core.spikes import Spikes
from eventprop.layers.linear import SpikingModule
from eventprop.training.command_line import command, options
from eventprop.training.config import ConfigError, mistakes_in, parse
from eventprop.training.restore import restore


def read_image(path: str, shape: Sequence[int], invert: bool = False) -> Tensor:
    """[*shape] uint8 grey values of an image file, scaled to ``shape`` = [height, width] where it has another size.

    Raises:
        ConfigError: if there is no such file, or it is no image that can be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ConfigError(f"image {path} must have 8 bits per channel, got mode {image.mode}; convert it")
            grey = image.convert("L")
    except FileNotFoundError as error:
        raise ConfigError(f"image must be a file, there is no {path}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error
    height, width = shape
    if grey.size != (width, height):
        print(f"{path}: scaled from {grey.height} x {grey.width} to {height} x {width} pixels")
        grey = grey.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(grey))
    return 255 - pixels if invert else pixels


@torch.no_grad()
def run(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Print and return class, confidence and spike times for each image."""
    given = options(arguments, {"checkpoint": None, "image": [], "invert": False, "device": "cpu"})
    config, network, state = restore(given["checkpoint"], parse, device=given["device"])
    shape = state["task"]["sample_shape"]
    if len(shape) != 2 or math.prod(shape) != state["task"]["num_inputs"]:
        raise ConfigError(f"checkpoint must be of a network for images, this one takes samples of shape {shape}")
    files = given["image"]
    images = torch.stack([read_image(file, shape, given["invert"]) for file in files])
    values: Any = config.encoder(images).to(getattr(torch, config.train.dtype)).to(config.train.device)
    spiking: list[tuple[str, Spikes]] = []
    for k, module in enumerate(network):
        with mistakes_in():
            values = module(values)
        if isinstance(module, SpikingModule):
            spiking.append(("output" if k == len(network) - 1 else f"layer {k}", values))
    classes, confidence = config.loss.predict(values), config.loss.probabilities(values).amax(1)
    results = []
    for row, file in enumerate(files):
        result: dict[str, Any] = {"image": file, "class": int(classes[row]), "confidence": float(confidence[row])}
        print(f"{file}: class {result['class']}, confidence {100 * result['confidence']:.1f} %")
        for name, spikes in spiking:
            times = spikes.time[row][spikes.index[row] >= 0].tolist()
            span = f", from {times[0]:.2f} to {times[-1]:.2f} ms" if times else ""
            print(f"  {name}: {len(times)} spikes{span}")
            if name == "output":
                first = spikes.first_spike_time()[row].tolist()
                print(
                    "  first spike of each class: "
                    + ", ".join(f"{t:.2f} ms" if math.isfinite(t) else "silent" for t in first)
                )
            result[name] = times
        results.append(result)
    return results


if __name__ == "__main__":
    command(lambda: run(sys.argv[1:]), __doc__)
