"""What the operator would say of a measured curve: the physics that plans with power limits, on the card's profile.

The profile is made from the catalogue alone, as for a service whose card and model nobody has measured, with the
caution that `energy.caution` asks for: the rated watts, or those read at full power where they are known. Steps are
what the curve was measured with: prompts alone, or decoding sequences alone.
"""

import functools
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import caution
from wattkeeper.energy.caps import CapFacts
from wattkeeper.physics import power, profiles, step
from wattkeeper.physics.profile import ServingProfile

_MODELS = {
    "Gemma-4-31B MTP": "google/gemma-4-31B-it-AWQ",
    "Qwen-A3B MoE": "Qwen/Qwen3.5-35B-A3B-AWQ",
    "Qwen3.6-27B": "Qwen/Qwen3.5-27B-AWQ",
    "Qwen3.6-27B-AWQ": "Qwen/Qwen3.5-27B-AWQ",
    "Qwen3-Coder-Next-AWQ": "Qwen/Qwen3-Next-80B-A3B-Instruct-AWQ",
}
"""Model of a curve -> entry of the catalogue: the nearest of its family, in 4 bits, as it was published or else as it
fits the card."""
_CARDS = {
    "RTX3090": "nvidia-rtx-3090",
    "RTX4090": "nvidia-rtx-4090",
    "RTX5090": "nvidia-rtx-5090",
    "RTXPRO6000": "nvidia-rtx-pro-6000-blackwell",
}
_PROMPT_TOKENS = 2048.0
"""Of one step; vLLM's default budget on such cards."""
_CONTEXT_TOKENS = 600.0
"""Of a decoding sequence, assumed: no source tells it, and it hardly moves the result."""


def relative(facts: CapFacts, cap_watts: FloatArray, *, cautious: bool = True) -> FloatArray:
    """Throughput under limits over that at the curve's highest one, (N,), as the operator plans it.

    Without caution it believes the profile's estimate of the watts. Raises KeyError: a card or a model that is not in
    the tables above.
    """
    profile = _profile(facts.gpu, facts.model)
    # The rating sets the watts; the default limit is that of the curve, which the card may have been raised to.
    gpu = replace(
        profile.gpu,
        tdp_watts=facts.highest_cap_watts,
        min_cap_watts=min(profile.gpu.min_cap_watts, float(np.min(cap_watts))),
    )
    profile = replace(profile, gpu=gpu)
    if cautious:
        profile = replace(profile, cap_caution=_caution(profile, facts))
    work = _work(facts)
    asked = np.append(cap_watts, facts.highest_cap_watts)
    ratio = power.clock_under_cap(profile, power_cap_watts=asked, **work)
    seconds, watts = _drawn(profile, facts, ratio)
    factor = power.caution_factor(profile, lambda: _drawn(profile, facts, 1.0)[1])
    joules = power.cautious_watts(profile, watts, factor=factor, clock_ratio=ratio) * seconds
    held = power.held_step_seconds(profile, power_cap_watts=asked, joules=joules, step_seconds=seconds)
    return np.asarray(held[-1] / held[:-1])


def _caution(profile: ServingProfile, facts: CapFacts) -> float:
    if facts.uncapped_watts is None:
        return caution.unread(profile)
    floor, estimate = profile.energy.static_watts, float(_drawn(profile, facts, 1.0)[1])
    return max(1.0, (facts.uncapped_watts - floor) / max(estimate - floor, 1.0))


def _work(facts: CapFacts) -> dict[str, float]:
    decodes = 0.0 if facts.prefill else facts.concurrency
    return {
        "prefill_tokens": _PROMPT_TOKENS if facts.prefill else 0.0,
        "decode_sequences": decodes,
        "kv_tokens": decodes * _CONTEXT_TOKENS,
    }


def _drawn(profile: ServingProfile, facts: CapFacts, clock_ratio: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Seconds of a step at a clock, and the estimate of its watts."""
    work = _work(facts)
    seconds = step.step_seconds(profile.iteration, clock_ratio=clock_ratio, **work)
    return seconds, power.step_joules(profile, step_seconds=seconds, clock_ratio=clock_ratio, **work) / seconds


@functools.cache
def _profile(card: str, model: str) -> ServingProfile:
    return profiles.serving_profile(
        model=_MODELS[model], accelerator=_CARDS[card], gpus_per_replica=1, engine=EngineSettings()
    )
