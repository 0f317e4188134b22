"""Cards, models and clocks of the simulated world."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import UnknownAcceleratorError, UnknownModelError
from wattkeeper.twin import hardware
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
SHORT = EngineSettings(max_model_len=8192)


def build(model=LLAMA_8B, card="h100-sxm", **engine):
    return hardware.replica_hardware(model=model, accelerator=card, engine=dataclasses.replace(SHORT, **engine))


@pytest.mark.parametrize("name", ["h100-sxm", "NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3", "nvidia-h100-sxm"])
def test_a_card_has_many_names(name):
    assert hardware.card(name).tdp_watts == 700.0


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UnknownAcceleratorError, match="h100-sxm"):
        hardware.card("h900")
    with pytest.raises(UnknownModelError, match="tells no size"):
        build("acme/foo")


def test_the_cache_of_a_card_holds_what_vllm_would_report():
    # 85.5 GB * 0.92 less 16 GB of weights and 4 GB of working memory, 128 KiB per token.
    assert build().num_gpu_blocks * 16 == pytest.approx(450_000, rel=0.05)
    assert build(kv_cache_dtype="fp8").num_gpu_blocks == pytest.approx(2 * build().num_gpu_blocks, abs=2)
    exact = build(kv_cache_memory_bytes=2**30 * 20)
    assert exact.num_gpu_blocks == 20 * 2**30 // (131072 * 16)


def test_a_larger_model_is_slower_and_its_size_may_be_read_from_its_name():
    small, large = build("acme/Foo-3B"), build("acme/Foo-13B-chat")
    assert large.levels[-1].seconds[0] > small.levels[-1].seconds[0]
    assert large.num_gpu_blocks < small.num_gpu_blocks


@pytest.mark.parametrize(("batch", "watts"), [(8, 441.0), (512, 637.0)])
def test_a_tensor_parallel_group_draws_what_was_measured(batch, watts):
    hw = build(LLAMA_70B, tensor_parallel_size=4)
    assert hw.gpus == 4
    # Saturated, as the measurements were: every answer is followed by the next request.
    replica = Replica(hw, now=0.0)
    marks = []
    for seconds in range(1, 121):
        replica.submit(
            Request(replica.now, 150, 200 + 37 * (seconds + each) % 500) for each in range(batch - replica.outstanding)
        )
        replica.run(float(seconds))
        marks.append((replica.now, replica.energy_joules))
    (at, before), (now, after) = marks[59], marks[-1]
    assert (after - before) / (now - at) == pytest.approx(watts, rel=0.07)


@pytest.mark.parametrize("card", ["h100", "h200", "a100"])
def test_lower_clocks_are_slower_and_spend_less_dynamic_energy(card):
    levels = build(card=card).levels
    for low, high in itertools.pairwise(levels):
        assert low.clock_mhz < high.clock_mhz
        assert all(a >= b for a, b in zip(low.seconds, high.seconds, strict=True))
        assert all(a <= b for a, b in zip(low.joules, high.joules, strict=True))
    assert levels[-1].clock_mhz == hardware.card(card).maximum_clock_mhz


@given(lock=st.floats(100.0, 3000.0))
def test_a_lock_is_never_exceeded(lock):
    hw = build()
    clock = hw.levels[hw.level_at_most(lock)].clock_mhz
    assert clock <= max(lock + 1e-6, hw.card.minimum_clock_mhz)
    assert hw.level_at_most(None) == len(hw.levels) - 1


@given(ratio=st.floats(0.05, 1.0))
def test_voltage_rises_with_the_clock(ratio):
    assert 0.7 <= hardware.voltage_ratio(ratio) <= hardware.voltage_ratio(min(1.0, ratio + 0.05)) <= 1.0
