"""Eventax: a feed-forward ``FFEvNN`` of ``LIF`` neurons, integrated by diffrax from event to event, jitted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import Job

NOT_EQUAL = (
    "forward Euler between events; trained bias currents; loss on first spikes, simulated until all outputs fired"
)
PACKAGES = ("eventax", "jax", "diffrax", "equinox", "optax")


def training_step(job: Job) -> Callable[[int], float]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from eventax.adjoint import EventPropAdjoint
    from eventax.evnn import FFEvNN
    from eventax.neuron_models import LIF

    weights = np.zeros((job.hidden + job.classes + job.inputs, job.hidden + job.classes), np.float32)
    weights[-job.inputs :, : job.hidden], weights[: job.hidden, job.hidden :] = job.weights
    network = FFEvNN(
        layers=[job.hidden, job.classes], in_size=job.inputs, neuron_model=LIF, key=jax.random.PRNGKey(job.seed),
        tmem=job.tau_mem, tsyn=job.tau_syn, thresh=job.v_th, init_weights=jnp.array(weights), init_bias=0.0,
        max_solver_time=job.t_end, solver_stepsize=job.dt, max_event_steps=4096, adjoint=EventPropAdjoint(),
    )  # fmt: skip
    optimizer = optax.adam(job.lr)
    state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))

    @eqx.filter_value_and_grad
    def loss(network, times, labels):
        logits = -jnp.minimum(jax.vmap(network.ttfs)(times), job.t_end) / job.tau_syn
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit
    def update(network, state, times, labels):
        value, gradient = loss(network, times, labels)
        change, state = optimizer.update(gradient, state)
        return eqx.apply_updates(network, change), state, value

    batches, labels = jnp.array(job.times)[..., None], jnp.array(job.labels)

    def step(k: int) -> float:
        nonlocal network, state
        network, state, value = update(network, state, batches[k], labels[k])
        jax.block_until_ready(eqx.filter((network, state), eqx.is_array))
        return float(value)

    return step
