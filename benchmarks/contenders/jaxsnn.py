"""jaxsnn: event-based ``LIF`` layers with ``backprop_method="eventprop"``, jitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from . import Job

NOT_EQUAL = (
    "tau_syn 10 ms, as it solves for tau_mem = tau_syn or 2 tau_syn only; loss on first spikes; "
    "room for 350 hidden and 50 output spikes of a sample, later ones are lost"
)
PACKAGES = ("jaxsnn", "jax", "optax")


def training_step(job: Job) -> Callable[[int], float]:
    import jax
    import jax.numpy as jnp
    import optax
    from jaxsnn.event.loss import first_spike
    from jaxsnn.event.modules import LIF, Linear, Source
    from jaxsnn.event.modules.lif import LIFParameters
    from jaxsnn.event.topology import Topology
    from jaxsnn.event.types import Spike

    job = replace(job, tau_syn=job.tau_mem / 2)
    neuron = LIFParameters(tau_mem=job.tau_mem, tau_syn=job.tau_syn, v_th=job.v_th)
    arrivals = int(np.isfinite(job.times).sum(2).max())
    weights = job.weights
    topology = Topology(t_max=job.t_end, backprop_method="eventprop")
    topology.add({
        "input": Source(job.inputs),
        "synapses 1": Linear(pre_weights=weights[0]), "hidden": LIF(job.hidden, arrivals + job.hidden, neuron),
        "synapses 2": Linear(pre_weights=weights[1]), "output": LIF(job.classes, job.hidden + 5 * job.classes, neuron),
    })  # fmt: skip
    names = ["input", "synapses 1", "hidden", "synapses 2", "output"]
    topology.connect(list(pairwise(names)))
    init, apply = topology.done()
    parameters = init(jax.random.PRNGKey(job.seed))
    optimizer = optax.adam(job.lr)
    state = optimizer.init(parameters)

    def spikes(times: np.ndarray) -> Spike:
        pixel = np.argsort(times)[:, :arrivals]
        time = np.take_along_axis(times, pixel, 1)
        rest = {"current": jnp.zeros_like(time), "layer_idx": jnp.zeros_like(pixel, dtype=int)}
        return Spike(time=jnp.array(time), idx=jnp.array(pixel), internal=jnp.array(np.isfinite(time)), **rest)

    def loss(parameters, batch, labels):
        output = apply({"input": batch}, parameters)["output"]
        first = jax.vmap(first_spike, (0, None))(output, job.classes)
        logits = -jnp.minimum(first, job.t_end) / job.tau_syn
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(parameters, state, batch, labels):
        value, gradient = jax.value_and_grad(loss)(parameters, batch, labels)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, change), state, value

    batches = [spikes(times) for times in job.times]
    labels = jnp.array(job.labels)

    def step(k: int) -> float:
        nonlocal parameters, state
        parameters, state, value = jax.block_until_ready(update(parameters, state, batches[k], labels[k]))
        return float(value)

    return step
