# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradient exactness, and convergence in dt
#
# We compare the gradient of a two-layer network, in which neurons spike several times, with central differences, for several
# ratios of the time constants. Then we see how far a central difference itself can be trusted. We solve the same network on
# time grids and watch its loss and gradient approach those of the event-driven solver. Last, we set surrogate gradients beside
# the exact one.

# %%
import itertools

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F

from eventprop import (
    LIF,
    EventDriven,
    LeakyReadout,
    Spikes,
    SpikingLinear,
    TimeStepped,
    check_gradients,
    study_convergence,
)
from eventprop.tools.plots import plot_gradient_check, plot_gradients, plot_raster
from surrogate_baseline.solver import SurrogateTimeStepped
from surrogate_baseline.surrogates import FastSigmoid

plt.rcParams["figure.dpi"] = 90
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the problems are tiny
T_END = 40.0  # ms


def spiking_network(sizes, neuron, solver):
    torch.manual_seed(3)
    layers = [SpikingLinear(m, n, neuron=neuron, solver=solver) for m, n in itertools.pairwise(sizes)]
    for layer in layers:
        layer.reset_parameters(mean=2.0, std=1.0)
    return torch.nn.Sequential(*layers)


def random_spikes(samples, inputs, seed=1):
    torch.manual_seed(seed)
    return Spikes.from_times(20.0 * torch.rand(samples, inputs, 2))  # two spikes per input, in the first 20 ms


# %% [markdown]
# ## The network
#
# Six inputs, eight hidden and four output neurons. The loss asks every output spike to come at 15 ms, so all spikes count.

# %%
network = spiking_network([6, 8, 4], LIF(tau_mem=20.0, tau_syn=5.0), EventDriven(T_END))
arrivals = random_spikes(2, 6)


def loss_of(network, time):
    output = network(Spikes(time, arrivals.index, arrivals.num_neurons))
    return 0.5 * ((output.time[output.index >= 0] - 15.0) / 10.0).square().mean()


hidden = network[0](arrivals)
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
plot_raster({"input": arrivals, "hidden": hidden, "output": network[1](hidden)}, ax=ax)
plt.show()

# %% [markdown]
# ## The gradient against central differences
#
# `check_gradients` compares every entry: the weights of both layers and the times of the input spikes. It extrapolates central
# differences to step 0, and sets apart the entries whose perturbation changes the number or the order of spikes. Entries that
# are 0, those of silent neurons, are drawn in the corner on the left.

# %%
time = arrivals.time.clone()
report = check_gradients(lambda *_: loss_of(network, time), [network[0].weight, network[1].weight, time])
print(report)

fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
plot_gradient_check(report, ax=ax)
ax.legend(["weights 1", "weights 2", "input times", "relative error 1e-7"], frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# ## Other time constants
#
# The closed forms of the neuron change with tau_mem / tau_syn; at 1 the usual formula is 0/0. The gradient is equally exact
# for all of them. Colours are as above.

# %%
fig, axes = plt.subplots(2, 2, figsize=(8, 5.6), sharex=True, sharey=True, layout="constrained")
print("tau_mem  tau_syn  ratio  output spikes  largest relative error")
for ax, (tau_mem, tau_syn) in zip(axes.flat, [(20.0, 5.0), (20.0, 10.0), (10.0, 10.0), (6.0, 10.0)], strict=True):
    other = spiking_network([6, 8, 4], LIF(tau_mem, tau_syn), EventDriven(T_END))
    found = check_gradients(lambda *_, net=other: loss_of(net, time), [other[0].weight, other[1].weight, time])
    spikes = int(other(arrivals).count().sum())
    print(f"{tau_mem:7g} {tau_syn:8g} {tau_mem / tau_syn:6g} {spikes:14d} {found.relative_error:23.1e}")
    plot_gradient_check(found, ax=ax).set_title(f"tau_mem / tau_syn = {tau_mem / tau_syn:g}", fontsize="medium")
    ax.get_legend().remove()
    ax.set(xlabel="", ylabel="")
fig.supxlabel("|central difference|", fontsize="medium")
fig.supylabel("|exact gradient - central difference|", fontsize="medium")
plt.show()

# %% [markdown]
# ## How good is a central difference?
#
# With a large step it is wrong by truncation, which falls as eps². With a small step it is wrong by rounding, which grows as
# 1/eps, because two nearly equal losses are subtracted. At the largest steps it reaches across the birth or death of a spike
# and is no derivative at all. The error of the exact gradient does not show up: what limits the comparison is the difference,
# and the extrapolation of `check_gradients` (dashed) gets further.

# %%
weight = network[1].weight
(exact,) = torch.autograd.grad(loss_of(network, time), weight)
steps = np.logspace(-12, -0.5, 24)


@torch.no_grad()
def central_differences(eps):
    found = torch.empty_like(weight)
    for entry in itertools.product(*map(range, weight.shape)):
        here = weight[entry].item()
        values = []
        for offset in (eps, -eps):
            weight[entry] = here + offset
            values.append(loss_of(network, time).item())
        weight[entry] = here
        found[entry] = (values[0] - values[1]) / (2 * eps)
    return found


errors = np.array([float((central_differences(eps) - exact).norm() / exact.norm()) for eps in steps])
best = int(errors.argmin())
print(f"best step {steps[best]:.1e}, relative error {errors[best]:.1e}; extrapolated {report.relative_errors[1]:.1e}")

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.loglog(steps, errors, "o-", color="#0072B2", markersize=4, label="central difference")
ax.loglog(steps[:10], errors[4] * steps[4] / steps[:10], ":", color="0.3", label="1 / eps (rounding)")
ax.loglog(steps[14:21], errors[16] * (steps[14:21] / steps[16]) ** 2, "-.", color="0.3", label="eps² (truncation)")
ax.axhline(report.relative_errors[1], color="#D55E00", linestyle="--", label="extrapolated, check_gradients")
ax.set(xlabel="step eps (units of the weight)", ylabel="relative difference to the exact gradient")
ax.legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# ## Convergence in dt
#
# `TimeStepped` solves a network on a grid. Its gradient is exact for what its forward pass computes, which approaches the
# network in continuous time as dt falls. We take a 4-5-3 network with a leaky readout and cross-entropy on its mean
# potential, and compare each sample with the event-driven solution.


# %%
def readout_network(sizes, solver):
    torch.manual_seed(0)
    layers = [SpikingLinear(sizes[0], sizes[1], solver=solver), LeakyReadout(*sizes[1:], solver=solver, reduce="mean")]
    for layer in layers:
        layer.reset_parameters(2.0, 2.0)
    return torch.nn.Sequential(*layers)


samples = random_spikes(24, 4)
target = torch.randint(3, (24,))
studies = study_convergence(
    lambda solver: readout_network([4, 5, 3], solver), samples, target, F.cross_entropy,
    t_end=T_END, dts=(2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02),
)  # fmt: skip

print(f"{'dt (ms)':27s}" + "".join(f"{dt:9g}" for dt in studies[0].dt))
for study in studies:
    for name in ("loss_error", "gradient_error", "counts_changed"):
        print(f"{study.scheme + ' ' + name:27s}" + "".join(f"{value:9.1e}" for value in getattr(study, name)))

# %% [markdown]
# On a grid, all that arrives in one step counts as one arrival. The exponential scheme solves each spike time within its
# step, so it errs only where a neuron spikes among arrivals at several times of one step. That gets rare as dt falls, and
# once no step has such arrivals, what is left is rounding. The Euler scheme puts spikes on grid points: it emits more or
# fewer spikes than it should in most samples unless dt is small, and converges slowly. `benchmarks/convergence.py` takes
# more samples, and trained networks.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
labels = {"loss_error": "error of the loss", "gradient_error": "relative error of the gradient"}
for ax, (name, label) in zip(axes, labels.items(), strict=True):
    for study, color, marker in zip(studies, ("#0072B2", "#D55E00"), "os", strict=True):
        ax.loglog(
            study.dt, getattr(study, name), marker + "-", color=color, markersize=5, linewidth=1, label=study.scheme
        )
    ax.set(xlabel="dt (ms)", ylabel=label)
    ax.legend(frameon=False, fontsize="small")
    ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Surrogate gradients
#
# `SurrogateTimeStepped` has the forward pass of `TimeStepped`: equal weights give equal spikes, and only the gradient differs.
# The derivative of a spike is replaced by 1 / (1 + k |V - v_th|)², with slope k. Here is a 20-30-5 network, first layer, with a
# step of 1 ms.

# %%
SLOPES = (1.0, 25.0)
batch = random_spikes(16, 20)
labels = torch.randint(5, (16,))


def first_layer(solver):
    net = readout_network([20, 30, 5], solver)
    F.cross_entropy(net(batch), labels).backward()
    return net[0](batch), net[0].weight.grad


spikes, on_grid = first_layer(TimeStepped(T_END, dt=1.0))
_, event_driven = first_layer(EventDriven(T_END))
surrogates = [first_layer(SurrogateTimeStepped(T_END, dt=1.0, surrogate=FastSigmoid(k))) for k in SLOPES]
print("same spikes as on the grid:", all(torch.equal(spikes.time, other.time) for other, _ in surrogates))

# %% [markdown]
# Each dot is a weight, and on the dashed diagonal two gradients agree. On the left, the exact gradient of the grid against that
# of the event-driven solver: the difference is due to dt alone. In the middle and on the right, two surrogates against the
# exact gradient of the same grid. The title tells the cosine of the two gradients, and how much longer the other one is.

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
plot_gradients(event_driven, on_grid, "exact gradient, dt = 1 ms", ax=axes[0]).set_xlabel(
    "exact gradient, event-driven"
)
for ax, k, (_, gradient) in zip(axes[1:], SLOPES, surrogates, strict=True):
    plot_gradients(on_grid, gradient, f"surrogate gradient, slope {k:g}", ax=ax).set_xlabel("exact gradient, dt = 1 ms")
plt.show()

# %% [markdown]
# The surrogate is another vector, not a noisy exact gradient: direction and length depend on a slope that is chosen freely.
# It also gives a gradient to neurons that do not spike, where the exact gradient is 0; those are the dots on the vertical
# line at 0.

# %%
silent = spikes.count().sum(0) == 0
print(f"hidden neurons that never spike in this batch: {int(silent.sum())} of {len(silent)}")
print(f"largest exact gradient of their weights: {on_grid[silent].abs().max():.1e}")
for k, (_, gradient) in zip(SLOPES, surrogates, strict=True):
    print(f"largest surrogate gradient, slope {k:g}: {gradient[silent].abs().max():.1e}")
