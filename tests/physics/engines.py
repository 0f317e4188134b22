"""Simulated engines whose true coefficients are known, scraped as a collector would."""

import dataclasses
import itertools
import math

import numpy as np

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.physics import step
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.physics.step_windows import EngineSample, StepWindow, WindowProblem, between, resident_tokens
from wattkeeper.twin import hardware
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request

H100 = hardware.replica_hardware(
    model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100-sxm", engine=EngineSettings()
)
CONVERSATION = ((1155, 0.95), (211, 0.77))
CHAT = ((246, 1.2), (326, 0.85))


def truth(level=H100.levels[-1]) -> IterationCoefficients:
    d0, dn, dkv, dt, da = level.seconds
    return IterationCoefficients(
        d0_seconds=d0,
        dt_seconds_per_token=dt,
        dn_seconds_per_decode=dn,
        dkv_seconds_per_kv_token=dkv,
        da_seconds_per_token_squared=da,
    )


def wrong(iteration, m0, mt, mk):
    """The coefficients with each term off by a factor."""
    return dataclasses.replace(
        iteration,
        d0_seconds=iteration.d0_seconds * m0,
        dt_seconds_per_token=iteration.dt_seconds_per_token * mt,
        dn_seconds_per_decode=iteration.dn_seconds_per_decode * mt,
        da_seconds_per_token_squared=iteration.da_seconds_per_token_squared * mt,
        dkv_seconds_per_kv_token=iteration.dkv_seconds_per_kv_token * mk,
    )


def ratios(found, true):
    """Found over true of d0, dT and dKV."""
    return np.array(
        [
            found.d0_seconds / true.d0_seconds,
            found.dt_seconds_per_token / true.dt_seconds_per_token,
            found.dkv_seconds_per_kv_token / true.dkv_seconds_per_kv_token,
        ]
    )


def played(rate_of, *, seconds, lengths=CONVERSATION, seed=1, spacing=5.0, engine=H100, begin=0.0, clock_mhz=None):
    """One engine under Poisson arrivals of a varying rate and lognormal lengths, again and again, a spacing apart."""
    rng = np.random.default_rng(seed)
    peak = max(rate_of(at) for at in np.linspace(0.0, seconds, 500))
    (prompt, prompt_cv), (output, output_cv) = lengths
    at, requests = 0.0, []
    while at < seconds:
        at += rng.exponential(1.0 / peak)
        if rng.random() < rate_of(at) / peak:
            drawn = [
                mean * math.exp(sigma * rng.normal() - 0.5 * sigma * sigma)
                for mean, sigma in (
                    (prompt, math.sqrt(math.log1p(prompt_cv**2))),
                    (output, math.sqrt(math.log1p(output_cv**2))),
                )
            ]
            requests.append(Request(begin + at, max(1, min(16_000, int(drawn[0]))), max(1, min(4_000, int(drawn[1])))))
    replica = Replica(engine, now=begin)
    replica.set_power(cap_watts=None, clock_mhz=clock_mhz)
    replica.submit(requests)
    for until in np.arange(begin + spacing, begin + seconds, spacing):
        replica.run(float(until))
        yield replica


def scrapes(rate_of, *, engine=H100, **options):
    """Samples of one engine."""
    capacity = (engine.num_gpu_blocks - 1) * engine.block_size
    samples = []
    for replica in played(rate_of, engine=engine, **options):
        counters, running = replica.counters, float(len(replica.running))
        samples.append(
            EngineSample(
                time_seconds=replica.now,
                inter_token_seconds_sum=counters.inter_token_seconds.total,
                inter_token_count=float(counters.inter_token_seconds.count),
                iteration_tokens_sum=float(counters.iteration_tokens.total),
                iteration_count=float(counters.iteration_tokens.count),
                generation_tokens=float(counters.generation_tokens),
                preemptions=float(counters.preemptions),
                running=running,
                kv_tokens=resident_tokens(
                    kv_usage=replica.kv_usage, capacity_tokens=capacity, running=running, block_size=engine.block_size
                ),
            )
        )
    return samples


def fold(refit, samples, *, lengths=CONVERSATION, clock_ratio=1.0):
    """(refit after all usable windows, count of each problem)."""
    (prompt, prompt_cv), (output, _) = lengths
    problems: dict[WindowProblem, int] = {}
    for before, after in itertools.pairwise(samples):
        window = between(before, after, clock_ratio=clock_ratio)
        if isinstance(window, StepWindow):
            refit = refit.observe(
                window, answer_tokens=output, products_per_prefill_token=0.5 * prompt * (1.0 + prompt_cv**2)
            )
        else:
            problems[window] = problems.get(window, 0) + 1
    return refit, problems


def drawn_window(rng, at, iteration, *, noise=0.01, clock_ratio=1.0):
    """A window of random composition whose KV tokens are a true mean, with lognormal noise on its step time."""
    n = math.exp(rng.uniform(math.log(6.0), math.log(150.0)))
    work = {
        "prefill_tokens": n * rng.uniform(2.0, 10.0),
        "decode_sequences": n,
        "kv_tokens": n * 1300.0 * math.exp(0.15 * rng.normal()),
    }
    seconds = float(step.step_seconds(iteration, **work, clock_ratio=clock_ratio))
    return StepWindow(
        time_seconds=at,
        step_seconds=seconds * math.exp(noise * rng.normal()),
        sampled_sequences=n,
        spacing_seconds=0.0,
        clock_ratio=clock_ratio,
        **work,
    )
