"""The configuration: every file builds, every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from eventprop.training import config as configuration
from eventprop.training.config import CONFIG_DIRECTORY, ConfigError
from surrogate_baseline import config as baseline

FILES = {path.stem: path.read_text() for path in Path(CONFIG_DIRECTORY, "experiment").glob("*.yaml")}
EXPERIMENTS = sorted(name for name, text in FILES.items() if "python -m eventprop.train" in text)
RATE_CODED = sorted(FILES.keys() - set(EXPERIMENTS))
SAME = ("mnist", "mnist_gray", "mnist_single_layer", "yin_yang")  # those of both packages


def composed(*overrides: str, primary: str = "config"):
    with initialize_config_dir(CONFIG_DIRECTORY, version_base="1.3"):
        return compose(primary, overrides=[*overrides, "hydra.run.dir=unused"])


def parse(config):
    return (baseline if "surrogate" in config else configuration).parse(config)


@pytest.mark.parametrize("group", baseline.GROUPS)
def test_every_choice_of_a_group_has_a_file_and_the_defaults_of_its_code(group):
    choices = {**configuration.GROUPS.get(group, {}), **baseline.GROUPS[group]}
    files = {path.stem: yaml.safe_load(path.read_text()) for path in Path(CONFIG_DIRECTORY, group).glob("*.yaml")}
    assert {node["name"] for node in files.values()} == set(choices)
    for name, node in files.items():
        assert name == node["name"]
        assert set(node) - {"name"} == set(configuration._options(choices[name]))
        if name in configuration.GROUPS.get(group, {}):
            assert getattr(parse(composed(f"{group}={name}")), group) is not None
        if name in baseline.GROUPS[group]:
            rate_coded = ["+experiment=mnist_rate"] if name in baseline.RATE_CODED.get(group, {}) else []
            parse(composed(*rate_coded, f"{group}={name}", primary="surrogate"))


@pytest.mark.parametrize("name", FILES)
def test_every_experiment_says_how_to_run_it_and_carries_its_name(name):
    package, primary = ("eventprop", "config") if name in EXPERIMENTS else ("surrogate_baseline", "surrogate")
    assert f"# python -m {package}.train +experiment={name}\n" in FILES[name]
    assert parse(composed(f"+experiment={name}", primary=primary)).experiment == name


@pytest.mark.parametrize("name", SAME)
def test_the_baseline_shares_everything_but_the_solver(name):
    exact, surrogate = (composed(f"+experiment={name}", primary=primary) for primary in ("config", "surrogate"))
    assert exact.keys() == surrogate.keys() - {"surrogate"}
    assert {group for group in exact if exact[group] != surrogate[group]} == {"solver"}
    assert exact.solver.t_end == surrogate.solver.t_end


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
        ("solver.grazing=maybe", r"solver.grazing must be one of 'raw', 'clamp', 'saturate', 'drop', got 'maybe'"),
        ("train.silent=maybe", r"train.silent must be one of 'none', 'bump'"),
        ("train.dtype=float16", r"train.dtype must be one of 'float32', 'float64'"),
        ("train.device=cpux", r"train.device 'cpux' cannot be used here"),
        ("logger.progress=no", r"logger.progress must be"),
        ("seed=-1", r"seed must be >= 0"),
        ("model.hidden=350", r"model.hidden must be of type list\[int\], got 350"),
        ("optimizer.decay=linear", r"optimizer.decay must be 'cosine' or a factor per epoch, got 'linear'"),
        ("optimizer=sgd optimizer.momentum=1", r"optimizer.momentum must lie in \[0, 1\), got 1"),
        ("train.mixed_precision=true", r"train.mixed_precision must be false: exact gradients are computed in float32"),
        ("data.name=cifar", r"data.name must be one of mnist, fashion_mnist, yin_yang, delayed_match, got 'cifar'"),
        ("~solver", r"missing key solver"),
        ("encoder.t_max=50", r"encoder.t_max=50 must not exceed solver.t_end=40.0: later spikes have no effect"),
        ("+experiment=delayed_match encoder.t_step=145", r"encoder.t_step=145 must leave time for a second row"),
        ("encoder=binary_latency solver.t_end=15", r"encoder.t_off=20.0 must not exceed solver.t_end=15"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        parse(composed(*override.split()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver=time_stepped", r"solver.name must be one of surrogate, steps, got 'time_stepped'"),
        ("solver.dt=0.7", r"solver.t_end must be a whole number of steps dt=0.7"),
        ("surrogate.slope=0", r"surrogate.slope must be positive and finite, got 0"),
        ("surrogate.name=step", r"surrogate.name must be one of arctan, sigmoid"),
        ("+surrogate.width=3", r"unknown key surrogate.width; allowed are slope"),
        ("train.mixed_precision=true", r"train.mixed_precision must be false with solver=surrogate"),
        ("+experiment=mnist_csnn train.dtype=float64", r"train.mixed_precision needs dtype=float32, got float64"),
        (
            "+experiment=mnist_rate loss=mean_voltage",
            r"loss=mean_voltage does not go with model=rate_fully_connected, which",
        ),
        (
            "loss=rate_mse",
            r"loss=rate_mse does not go with model=fully_connected, which needs loss=first_spike or max_voltage",
        ),
        (
            "+experiment=mnist_rate encoder=latency",
            r"encoder=latency does not go .* needs encoder=poisson or direct",
        ),
        ("neuron=lif_steps", r"neuron=lif_steps does not go with model=fully_connected, which needs neuron=lif$"),
        ("solver=steps", r"solver=steps does not go with model=fully_connected, which needs solver=surrogate$"),
        (
            "+experiment=mnist_rate encoder=latency_steps encoder.threshold=1.5",
            r"encoder.threshold must lie in \[0, 1\)",
        ),
        ("+experiment=mnist_rate encoder.steps=0", r"encoder.steps must be >= 1, got 0"),
        ("+experiment=mnist_rate loss=rate_cross_entropy loss.gain=-1", r"loss.gain must be positive"),
        ("+experiment=mnist_rate neuron.tau=1", r"neuron.tau must be > 1 step, got 1"),
        ("+experiment=mnist_rate neuron.v_reset=2", r"neuron.v_reset must be below v_th=1.0"),
    ],
)
def test_mistakes_in_the_baseline_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        parse(composed(*override.split(), primary="surrogate"))
