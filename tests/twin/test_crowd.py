"""What requests cannot do to a card's cap, told by their prompts."""

import math

import numpy as np

from wattkeeper.twin.crowd import Crowd
from wattkeeper.twin.request import Request


def crowd_of(requests, *, unfinished=(), **margins):
    crowd = Crowd()
    crowd.set_margins(requests=requests, unfinished=unfinished, **margins)
    return crowd


def test_the_horizon_is_the_arrival_that_may_be_too_many():
    requests = [Request(float(at), prompt, 10) for at, prompt in enumerate((100, 100, 5000, 100))]
    # 10 joules of room; a sequence takes 5, less 0.01 for each token that it reads: 4 with a prompt of 100.
    crowd = crowd_of(requests, unfinished=range(4), fixed=-10.0, decode=5.0, kv=-0.01)
    assert crowd.harmless_until(requests) == 3.0
    crowd.leave([100])
    assert crowd.harmless_until(requests) == math.inf
    more = Request(9.0, 1, 1)
    crowd.add([more.prompt])
    assert crowd.harmless_until([*requests, more]) == 9.0
    crowd.forget(1)
    assert crowd.harmless_until([*requests[1:], more]) == 9.0


def test_without_room_or_without_a_cap_that_binds():
    requests = [Request(1.0, 10, 10)]
    assert crowd_of(requests, unfinished=[0], fixed=1.0, decode=1.0, kv=0.0).harmless_until(requests) == 1.0
    assert crowd_of(requests, unfinished=[0], fixed=-1.0, decode=-1.0, kv=0.0).harmless_until(requests) == math.inf
    assert crowd_of(requests, unfinished=[0], fixed=-1.0, decode=0.6, kv=0.0).harmless_until(requests) == math.inf
    assert crowd_of(requests, unfinished=[0], fixed=-0.5, decode=0.6, kv=0.0).harmless_until(requests) == 1.0


def test_no_batch_within_the_horizon_exceeds_the_margin():
    rng = np.random.default_rng(0)
    for _ in range(200):
        decode, kv = rng.uniform(0.01, 0.1), -rng.uniform(1e-6, 1e-4)
        fixed = -rng.uniform(0.0, 3.0)
        requests = [Request(float(at), int(prompt), 1) for at, prompt in enumerate(rng.integers(1, 4000, 200))]
        crowd = crowd_of(requests, unfinished=range(200), fixed=fixed, decode=decode, kv=kv)
        until = crowd.harmless_until(requests)
        here = [request for request in requests if request.arrival < until]
        # The worst batch: those that add joules, with nothing but their prompts in memory.
        worst = sum(max(0.0, decode + kv * request.prompt) for request in here)
        assert fixed + worst <= 1e-9
