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
# # What EventProp computes, on one neuron
#
# One leaky integrate-and-fire neuron with four inputs is enough to see the whole method. We draw its potential and its
# spikes, then the two adjoint variables that run backwards in time, and read the weight gradient off them. At the end we
# look at the places where this gradient is large, missing, or blind: grazing spikes, silent neurons, and jumps of the loss.
# Equation numbers are those of `eventprop/core/neuron.py`.

# %%
import torch
from matplotlib import pyplot as plt

from eventprop import LIF, EventDriven, Spikes, SpikingLinear, adjoint_trace, silent_margin
from eventprop.tools.plots import plot_adjoint, plot_loss_along, plot_neuron

plt.rcParams["figure.dpi"] = 90
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the problems are tiny
inf = torch.inf

# %% [markdown]
# ## The neuron
#
# Four inputs; the first and the last spike twice. The third is inhibitory. Weights are in units of the threshold.

# %%
neuron = LIF(tau_mem=10.0, tau_syn=5.0, v_th=1.0)  # ms
arrivals = Spikes.from_times(torch.tensor([[[2.0, 14.0], [5.0, inf], [9.0, inf], [22.0, 26.0]]]))


def layer_with(weights):
    layer = SpikingLinear(len(weights), 1, neuron=neuron, solver=EventDriven(t_end=40.0))
    layer.weight.data[:] = torch.tensor([weights])
    return layer


layer = layer_with([3.2, 2.2, -1.2, 2.8])
emitted = layer(arrivals)
print("output spikes (ms):", [round(t, 3) for t in emitted.time[0].tolist()])

# %% [markdown]
# Between events the neuron is linear, so V and I are known in closed form (eq. 6). An arrival makes I jump, and V goes on
# continuously. At a crossing of the threshold V falls to 0, and I does not change. The curves below are sums over events,
# not a simulation on a grid.

# %%
fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
plot_neuron(layer, arrivals, ax=ax)
plt.show()

# %% [markdown]
# ## The adjoint
#
# The loss asks every output spike to come at 15 ms: L = sum over spikes of ½ ((t - 15 ms) / 10 ms)².
# After `backward()`, `emitted.time.grad` holds g_k = dL/dt_k of each output spike.


# %%
def loss_of(layer):
    emitted = layer(arrivals)
    return 0.5 * ((emitted.time[emitted.index >= 0] - 15.0) / 10.0).square().sum()


emitted = layer(arrivals)
emitted.time.retain_grad()
loss = 0.5 * ((emitted.time[emitted.index >= 0] - 15.0) / 10.0).square().sum()
loss.backward()
print(f"loss {loss.item():.4f}")
print("g_k (1/ms):", [round(g, 4) for g in emitted.time.grad[0].tolist()])

# %% [markdown]
# p(t) = dL/dV(t) and q(t) = dL/dI(t) say what a small push of V or I at time t would do to the loss. They start at 0 at the
# end of the window and are walked from right to left. p jumps at each output spike and decays in between; q follows p as
# V follows I forwards. Both panels share the time axis. The dots are q at the arrivals, with the number of the input.

# %%
times, source = arrivals.time[0], arrivals.index[0]
_, q = adjoint_trace(layer, emitted, emitted.time.grad, times)

fig, (top, bottom) = plt.subplots(2, figsize=(8, 6), sharex=True, layout="constrained")
plot_neuron(layer, arrivals, ax=top).set_xlabel("")
plot_adjoint(layer, emitted, emitted.time.grad, ax=bottom)
bottom.plot(times, q[:, 0], "o", color="black", markersize=5)
for t, j, value in zip(times.tolist(), source.tolist(), q[:, 0].tolist(), strict=True):
    bottom.annotate(str(j), (t, value), (0, 7), textcoords="offset points", ha="center", fontsize=9)
plt.show()

# %% [markdown]
# The size of each jump is eq. (9): -(g_k - (v_th / tau_mem) p) / slope, where the slope is dV/dt at the crossing and p is the
# value just after the spike, in forward time. The later spikes enter through p: to move one spike moves all that follow.

# %%
spike_times = emitted.time[0].detach()
p_after = adjoint_trace(layer, emitted, emitted.time.grad, spike_times)[0][:, 0]
p_before = adjoint_trace(layer, emitted, emitted.time.grad, spike_times - 1e-9)[0][:, 0]
jumps = -(emitted.time.grad[0] - neuron.v_th / neuron.tau_mem * p_after) / emitted.slope[0]

print("   t_k (ms)   slope (1/ms)   p after   jump, eq. (9)   p before")
rows = zip(spike_times, emitted.slope[0], p_after, jumps, p_before, strict=True)
for row in reversed(list(rows)):
    print("{:11.3f} {:14.4f} {:9.4f} {:15.4f} {:10.4f}".format(*row))

# %% [markdown]
# ## The gradient of a weight is a sum of q
#
# A larger weight is a larger jump of I at each arrival. So dL/dw_j is the sum of q at the arrivals of input j (eq. 10): the
# dots above, added up for each input. Autograd gives the same number, since this is what the backward pass does. A central
# difference of the loss agrees as well.

# %%
from_traces = torch.zeros(4).index_add(0, source, q[:, 0])


def central_difference(j, eps=1e-5):
    here, values = layer.weight[0, j].item(), []
    with torch.no_grad():
        for offset in (eps, -eps):
            layer.weight[0, j] = here + offset
            values.append(loss_of(layer).item())
        layer.weight[0, j] = here
    return (values[0] - values[1]) / (2 * eps)


print("input       sum of q       autograd   central difference")
for j in range(4):
    print(f"{j:5d} {from_traces[j]:14.9f} {layer.weight.grad[0, j]:14.9f} {central_difference(j):20.9f}")

# %% [markdown]
# ## The loss along one weight
#
# The gradient describes one smooth piece of the loss: at the dotted line, the weight from above, it is the slope of the curve.
# Where a spike is born or dies, the loss jumps, because a term enters or leaves the sum. No gradient sees such a jump coming.
# The lower panel counts the spikes.


# %%
def count(layer):
    return layer(arrivals).count().double().sum()


fig, (top, bottom) = plt.subplots(
    2, figsize=(8, 4.6), sharex=True, layout="constrained", gridspec_kw={"height_ratios": [2, 1]}
)
plot_loss_along(lambda: loss_of(layer), layer.weight, (0, 0), span=2.0, points=1601, ax=top).set_xlabel("")
plot_loss_along(lambda: count(layer), layer.weight, (0, 0), span=2.0, points=1601, ax=bottom)
bottom.set(xlabel="weight of input 0 (units of the threshold)", ylabel="spikes")
plt.show()

# %% [markdown]
# Some jumps leave the count as it is: a new spike resets the potential, and a later spike dies in the same moment. At a corner
# without a jump, an output spike passes an arrival; the gradient differs on both sides. Where the newest spike grazes the
# threshold, the curve is steep. Here are the spikes on both sides of the first corner, and of the two jumps that leave the
# count as it is:

# %%
for weight in (3.05, 3.15, 4.34, 4.37, 4.78, 4.80):
    moved = layer_with([weight, 2.2, -1.2, 2.8])(arrivals).time[0].tolist()
    print(f"weight {weight:.2f}: spikes at", " ".join(f"{t:6.2f}" for t in moved), "ms")

# %% [markdown]
# ## A grazing spike
#
# Take one input spike at 0 ms and one weight. `LIF.minimum_weight` is the smallest weight that makes the neuron fire. Just
# above it, the potential touches the threshold near its peak, where it is flat. There dt/dw = -phi(t) / slope, and the slope
# goes to 0.

# %%
one_spike = Spikes.from_times(torch.zeros(1, 1))
w_min = neuron.minimum_weight

fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for ax, factor in zip(axes, (1.3, 1.001), strict=True):
    plot_neuron(layer_with([factor * w_min]), one_spike, ax=ax).set(xlim=(0, 20), xticks=range(0, 21, 5))
    ax.legend(frameon=False, fontsize="small", title=f"weight = {factor} x minimum")
axes[1].set_ylabel("")
plt.show()

# %% [markdown]
# The exact gradient of the spike time grows without bound, as 1 / slope. It is right, but of little use: it holds for a very
# small step only. `EventDriven(grazing="clamp")` and its relatives bound the slope in the backward pass. The default, "raw",
# leaves the gradient exact.


# %%
def gradient_of_time(weight, **options):
    layer = SpikingLinear(1, 1, neuron=neuron, solver=EventDriven(40.0, **options))
    layer.weight.data.fill_(weight)
    out = layer(one_spike)
    out.first_spike_time().sum().backward()
    return out.slope[0, 0].item(), layer.weight.grad.item()


above = torch.logspace(-6, 0, 40)
raw = torch.tensor([gradient_of_time(w_min * (1 + x)) for x in above.tolist()])
clamped = torch.tensor([gradient_of_time(w_min * (1 + x), grazing="clamp", min_slope=0.02) for x in above.tolist()])

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
single = layer_with([w_min])
plot_loss_along(
    lambda: single(one_spike).first_spike_time().nan_to_num(posinf=torch.nan).sum(),
    single.weight, (0, 0), span=0.6 * w_min, points=801, ax=left,
)  # fmt: skip
left.text(0.92 * w_min, 4.0, "silent", ha="center")
left.set(xlabel="weight (dotted: the minimum)", ylabel="spike time (ms)", xlim=(0.85 * w_min, 1.6 * w_min))
right.loglog(raw[:, 0], -raw[:, 1], color="#0072B2", label='grazing="raw"')
right.loglog(raw[:, 0], -clamped[:, 1], "--", color="#D55E00", label='grazing="clamp", min_slope=0.02')
right.set(xlabel="slope at the crossing (1/ms)", ylabel="|dt/dw| (ms per unit of weight)")
right.legend(frameon=False, fontsize="small")
plt.show()

fit = torch.linalg.lstsq(torch.stack([raw[:20, 0].log(), torch.ones(20)], 1), (-raw[:20, 1:]).log()).solution[0]
print(f"|dt/dw| grows as slope to the power {fit.item():.3f}, near the minimum")

# %% [markdown]
# ## A silent neuron
#
# Below the minimum weight there is no spike, so there is no spike time to differentiate: the gradient is 0, and training
# cannot wake the neuron. `silent_margin` is by how much the potential fell short of the threshold. It has an exact gradient
# where the neuron is silent, and is 0 where it fires.

# %%
silent = layer_with([0.6 * w_min])
out = silent(one_spike)
(of_time,) = torch.autograd.grad(out.first_spike_time().nan_to_num(posinf=0.0).sum(), silent.weight)
margin = silent_margin(silent, one_spike, silent(one_spike))
(of_margin,) = torch.autograd.grad(margin.sum(), silent.weight)
print(f"gradient of the spike time {of_time.item():.4f}, of the margin {of_margin.item():.4f}")
print(f"margin {margin.item():.4f}; minimum weight {w_min:.4f}; 1 / minimum weight {1 / w_min:.4f}")

fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
plot_loss_along(
    lambda: silent_margin(silent, one_spike, silent(one_spike)).sum(),
    silent.weight, (0, 0), span=0.6 * w_min, points=401, ax=ax,
)  # fmt: skip
ax.axvline(w_min, color="0.4", linestyle="--", linewidth=1)
ax.set(xlabel="weight (dotted: where we are; dashed: the minimum)", ylabel="silent_margin")
plt.show()

# %% [markdown]
# So a training that adds the margin to its loss can wake the neuron, and then the spike time takes over. Here plain gradient
# descent brings a silent neuron to spike at 4 ms. The exact gradient of a spike just born is large, so we clamp its slope.

# %%
learner = SpikingLinear(1, 1, neuron=neuron, solver=EventDriven(40.0, grazing="clamp", min_slope=0.02))
learner.weight.data.fill_(0.6 * w_min)
optimizer = torch.optim.SGD(learner.parameters(), lr=0.8)
before = layer_with([learner.weight.item()])
for step in range(41):
    out = learner(one_spike)
    time = out.first_spike_time()
    error = torch.where(torch.isfinite(time), (time - 4.0) / 10.0, 0.0).square().sum()
    total = error + silent_margin(learner, one_spike, out).sum()
    if step % 5 == 0:
        print(f"step {step:2d}: weight {learner.weight.item():.3f}, spike at {time.item():.3f} ms")
    optimizer.zero_grad()
    total.backward()
    optimizer.step()

fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for ax, each, title in zip(axes, (before, learner), ("before", "after"), strict=True):
    plot_neuron(each, one_spike, ax=ax).set(xlim=(0, 20), xticks=range(0, 21, 5))
    ax.legend(frameon=False, fontsize="small", title=title)
axes[1].set_ylabel("")
plt.show()
