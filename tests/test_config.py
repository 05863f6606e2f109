"""The configuration: every file builds, every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from eventprop import config as configuration
from eventprop.config import CONFIG_DIRECTORY, GROUPS, ConfigError, parse

EXPERIMENTS = sorted(path.stem for path in Path(CONFIG_DIRECTORY, "experiment").glob("*.yaml"))


def composed(*overrides: str):
    with initialize_config_dir(CONFIG_DIRECTORY, version_base="1.3"):
        return compose("config", overrides=[*overrides, "hydra.run.dir=unused"])


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_a_group_has_a_file_and_the_defaults_of_its_code(group):
    files = {path.stem: yaml.safe_load(path.read_text()) for path in Path(CONFIG_DIRECTORY, group).glob("*.yaml")}
    assert {node["name"] for node in files.values()} == set(GROUPS[group])
    for name, node in files.items():
        assert name == node["name"]
        assert set(node) - {"name"} == set(configuration._options(GROUPS[group][name]))
        assert getattr(parse(composed(f"{group}={name}")), group) is not None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_how_to_run_it_and_carries_its_name(name):
    text = Path(CONFIG_DIRECTORY, "experiment", f"{name}.yaml").read_text()
    assert f"# python -m eventprop.train +experiment={name}\n" in text
    assert parse(composed(f"+experiment={name}")).experiment == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+train.epoch=3", r"unknown key train.epoch; did you mean train.epochs\?"),
        ("++solver.tend=3", r"unknown key solver.tend; did you mean solver.t_end\?"),
        ("+sed=3", r"unknown key sed; did you mean seed\?"),
        ("+loss.foo=3", r"unknown key loss.foo; allowed are none"),
        ("~neuron.tau_mem", r"missing key neuron.tau_mem"),
        ("train.epochs=many", r"train.epochs must be of type int, got 'many'"),
        ("train.epochs=1.5", r"train.epochs must be of type int, got 1.5"),
        ("train.epochs=true", r"train.epochs must be of type int, got True"),
        ("train.epochs=0", r"train.epochs must be >= 1, got 0"),
        ("neuron.tau_mem=-1", r"neuron.tau_mem must be positive and finite, got -1"),
        ("neuron.tau_mem=nan", r"neuron.tau_mem must be of type float, got nan"),
        ("optimizer.lr=inf", r"optimizer.lr must be of type float, got inf"),
        ("optimizer.weight_decay=-1", r"optimizer.weight_decay must be >= 0"),
        ("solver.grazing=maybe", r"solver.grazing must be one of 'raw', 'clamp', 'drop', got 'maybe'"),
        ("train.silent=maybe", r"train.silent must be one of 'none', 'bump'"),
        ("train.dtype=float16", r"train.dtype must be one of 'float32', 'float64'"),
        ("train.device=cpux", r"train.device 'cpux' cannot be used here"),
        ("logger.progress=no", r"logger.progress must be"),
        ("seed=-1", r"seed must be >= 0"),
        ("model.hidden=350", r"model.hidden must be of type list\[int\], got 350"),
        ("data.name=cifar", r"data.name must be one of mnist, fashion_mnist, yin_yang, got 'cifar'"),
        ("~solver", r"missing key solver"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        parse(composed(override))
