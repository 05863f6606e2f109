"""A neuron in arithmetic of 60 digits whose exponents know no bounds (mpmath): the oracle of what happens at the edges.

The textbook's closed form and sums over events, and nothing of the package. With every state goes an estimate of the error
that arithmetic of relative error ``eps`` makes of it; where that decides whether there is a spike, either answer is right.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from mpmath import exp, inf, log, mp, mpf

mp.dps = 60
EXACT = 1e-13  # of the threshold: how exactly the package solves V = v_th at the least (promise P2 has 1e-12)
SAFETY = 16  # roundings in a row of one flow: of its coefficients, its products and its sum


@dataclass
class Train:
    """Spike times of one neuron, a bound of the error of each, and whether rounding decides how many there are."""

    times: list[mpf] = field(default_factory=list)
    errors: list[mpf] = field(default_factory=list)
    ambiguous: bool = False
    busy: bool = False  # there are more


class Neuron:
    """The flow of eq. (1), as textbooks write it."""

    def __init__(self, tau_mem: float, tau_syn: float, v_th: float, bias: float = 0.0) -> None:
        self.tau_mem, self.tau_syn, self.v_th, self.bias = mpf(tau_mem), mpf(tau_syn), mpf(v_th), mpf(bias)

    def decay(self, dt: mpf) -> tuple[mpf, mpf, mpf]:
        a, s = exp(-dt / self.tau_mem), exp(-dt / self.tau_syn)
        if self.tau_mem == self.tau_syn:
            return a, s, dt / self.tau_mem * a
        return a, s, self.tau_syn / (self.tau_mem - self.tau_syn) * (a - s)

    def flow(self, v: mpf, i: mpf, dt: mpf) -> tuple[mpf, mpf]:
        a, s, phi = self.decay(dt)
        return a * v + phi * i, s * i

    def errors_after(self, v: mpf, i: mpf, error_v: mpf, error_i: mpf, dt: mpf, eps: float) -> tuple[mpf, mpf]:
        """Of V and I: what there was, flown on, and rounding, of exp(-x) in proportion to 1 + x."""
        a, s, phi = self.decay(dt)
        by_a, by_s = (SAFETY * eps * (1 + dt / tau) for tau in (self.tau_mem, self.tau_syn))
        slower = min(by_a, by_s)
        return a * (error_v + by_a * abs(v)) + phi * (error_i + slower * abs(i)), s * (error_i + by_s * abs(i))

    def peak_time(self, v: mpf, i: mpf) -> mpf:
        """When V is highest, if it rises now to a maximum; otherwise +inf."""
        if i <= 0 or i <= v:
            return inf
        if self.tau_mem == self.tau_syn:
            return self.tau_syn * (i - v) / i
        rate = 1 / self.tau_syn - 1 / self.tau_mem
        x = 1 - rate * self.tau_syn * (i - v) / i
        return -log(x) / rate if x > 0 else inf

    def crossing(self, v: mpf, i: mpf, high: mpf, threshold: mpf) -> mpf:
        """The dt in [0, high] where V, which is below the threshold now and not below at ``high``, reaches it."""
        low, dt = mpf(0), mpf(0)
        while True:
            v_now, i_now = self.flow(v, i, dt)
            low, high = (dt, high) if v_now < threshold else (low, dt)
            rise = (i_now - v_now) / self.tau_mem
            following = dt + (threshold - v_now) / rise if rise > 0 else low - 1
            if not low <= following <= high:
                following = (low + high) / 2
            if abs(following - dt) <= mpf(10) ** -45 * following:
                return following
            dt = following

    def spikes(
        self, arrivals: list[tuple[float, float]], t_end: float, *, refractory: float = 0.0, delay: float = 0.0,
        again: float = 0.0, eps: float = 2.0**-53, most: int = 40,
    ) -> Train:  # fmt: skip
        """What a neuron emits that receives ``arrivals`` of (time, weight); and each of its own spikes, ``delay`` later, with
        the weight ``again``. The bias begins at time 0."""
        train, own = Train(), []
        arrivals = sorted((mpf(t), mpf(w)) for t, w in arrivals if t < t_end)
        now = min([mpf(0), *(t for t, _ in arrivals)])
        v = i = error_v = error_i = mpf(0)
        free = now  # when the refractory period ends
        while now < t_end:
            until = min([t for t, _ in [*arrivals[:1], *own[:1]]] + [mpf(t_end)] + ([mpf(0)] if now < 0 else []))
            bias = self.bias if now >= 0 else mpf(0)
            threshold = self.v_th - bias
            if free > now:
                stop = min(free, until)
                _, error_i = self.errors_after(v, i, error_v, error_i, stop - now, eps)
                i, v, now = i * exp(-(stop - now) / self.tau_syn), mpf(0), stop
                error_v = abs(i + bias) / self.tau_mem * (train.errors[-1] if train.errors else 0)
            else:
                u, high = v - bias, until - now
                peak = self.peak_time(u, i)
                u_high = self.flow(u, i, min(peak, high))[0]
                bound = SAFETY * self.errors_after(
                    abs(v) + abs(bias), i, error_v, error_i, min(peak, high), eps
                )[0] + SAFETY * eps * abs(threshold)  # fmt: skip
                train.ambiguous |= abs(u_high - threshold) <= bound or i > u >= threshold
                if u_high >= threshold and u < threshold:
                    dt = self.crossing(u, i, min(peak, high), threshold)
                    error_v, error_i = self.errors_after(abs(v) + abs(bias), i, error_v, error_i, dt, eps)
                    now, i = now + dt, self.flow(u, i, dt)[1]
                    rise = (i - threshold) / self.tau_mem
                    if len(train.times) == most:
                        train.busy = True
                        return train
                    train.times.append(now)
                    train.errors.append((error_v + EXACT * (self.v_th + abs(bias))) / rise + 2 * eps * abs(now))
                    v, free = mpf(0), now + refractory
                    error_v = abs(i + bias) / self.tau_mem * train.errors[-1]
                    error_i += abs(i) / self.tau_syn * train.errors[-1]
                    if again:
                        own.append((now + delay, mpf(again)))
                    continue
                error_v, error_i = self.errors_after(abs(v) + abs(bias), i, error_v, error_i, high, eps)
                (u, i), now = self.flow(u, i, high), until
                v = u + bias
            for queue in (arrivals, own):
                while queue and queue[0][0] <= now:
                    i += queue.pop(0)[1]
        return train

    def potential(self, arrivals: list[tuple[float, float]], t: mpf) -> mpf:
        """Without threshold."""
        return sum((w * self.decay(t - at)[2] for at, w in arrivals if at < t), mpf(0))

    def integral(self, arrivals: list[tuple[float, float]], t_end: float, tau: mpf = inf) -> mpf:
        """Of V exp(-t/tau) from 0 to t_end, without threshold: int phi = tau_syn (1 - a - phi)."""
        total, rate = mpf(0), 0 if tau == inf else 1 / mpf(tau)
        for at, w in arrivals:
            if at < t_end:
                begin = max(mpf(at), mpf(0))
                _, i, v = self.decay(begin - at)
                left = mpf(t_end) - begin
                mem, syn = 1 / (1 / self.tau_mem + rate), 1 / (1 / self.tau_syn + rate)
                a, _, phi = Neuron(mem, syn, 1).decay(left)
                area = v * mem * (1 - a) + i * mem / self.tau_mem * syn * (1 - a - phi)
                total += w * exp(-begin * rate) * area
        return total

    def highest(self, arrivals: list[tuple[float, float]], t_end: float) -> mpf:
        """The maximum of V over [0, t_end] without threshold, rest included."""
        arrivals = sorted((mpf(t), mpf(w)) for t, w in arrivals if t < t_end)
        events = sorted({mpf(0), mpf(t_end), *(t for t, _ in arrivals if t > 0)})
        best = mpf(0)
        for begin, end in itertools.pairwise(events):
            before = [(t, w) for t, w in arrivals if t <= begin]
            v = self.potential(before, begin)
            i = sum((w * exp((t - begin) / self.tau_syn) for t, w in before), mpf(0))
            best = max(best, v, self.flow(v, i, min(self.peak_time(v, i), end - begin))[0])
        return best
