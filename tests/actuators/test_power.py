import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.actuators.power import decide_caps, desired_caps, release, rfc3339

NOW = 1_750_000_000.0
TTL = 300.0
OWNER = "team/chat"


def ask(existing, now=NOW, **options):
    wanted = {"gpus": ["GPU-a", "GPU-b"], "watts": 400.0, "owner": OWNER, "ttl_seconds": TTL} | options
    return decide_caps(existing, now_seconds=now, **wanted)


def other(uuid, expires=NOW + 100, watts=500):
    return {"uuid": uuid, "watts": watts, "owner": "team/batch", "expiresAt": rfc3339(expires), "extra": {"kept": True}}


def test_first_write():
    decision = ask(None)
    assert decision.caps == [
        {"uuid": uuid, "watts": 400.0, "owner": OWNER, "expiresAt": "2025-06-15T15:11:40Z"}
        for uuid in ("GPU-a", "GPU-b")
    ]
    assert decision.conflicts == () and decision.notes == ()


def test_renewed_only_when_half_of_the_life_is_gone():
    spec = {"caps": ask(None).caps}
    assert ask(spec, now=NOW + 149).caps is None
    renewed = ask(spec, now=NOW + 151).caps
    assert {entry["expiresAt"] for entry in renewed} == {rfc3339(NOW + 151 + TTL)}


def test_value_change_clock_and_moved_pod_are_written_at_once():
    spec = {"caps": ask(None).caps}
    assert ask(spec, watts=425.0).caps[0]["watts"] == 425.0
    assert ask(spec, clock_mhz=1500.0).caps[0]["clockMHz"] == 1500.0
    moved = ask(spec, gpus=["GPU-b", "GPU-c"]).caps
    assert [entry["uuid"] for entry in moved] == ["GPU-b", "GPU-c"]
    only_clock = ask(spec, watts=None, clock_mhz=1500.0).caps
    assert "watts" not in only_clock[0]


def test_others_are_never_touched_and_reported():
    theirs = other("GPU-a")
    elsewhere = other("GPU-z")
    decision = ask({"caps": [theirs, elsewhere]})
    assert decision.caps[:2] == [theirs, elsewhere]
    assert [entry["uuid"] for entry in decision.caps[2:]] == ["GPU-b"]
    assert [(c.uuid, c.owner, c.reason) for c in decision.conflicts] == [("GPU-a", "team/batch", "GpuHeldByOther")]
    assert "GPU-a" in decision.conflicts[0].message
    again = ask({"caps": decision.caps}, now=NOW + 10)
    assert again.caps is None and len(again.conflicts) == 1


@pytest.mark.parametrize("expires", [rfc3339(NOW - 1), "not a time", "2025-06-15T15:11:40", None])
def test_entries_that_ran_out_may_be_taken_over(expires):
    theirs = other("GPU-a") | {"expiresAt": expires}
    decision = ask({"caps": [theirs, other("GPU-z", NOW - 5)]})
    assert decision.conflicts == ()
    assert [entry["owner"] for entry in decision.caps] == ["team/batch", OWNER, OWNER]


def test_giving_back():
    spec = {"caps": [other("GPU-z"), *ask(None).caps]}
    assert ask(spec, watts=None).caps == [other("GPU-z")]
    assert release(spec, owner=OWNER) == [other("GPU-z")]
    assert release({"caps": [other("GPU-z")]}, owner=OWNER) is None
    assert release(None, owner=OWNER) is None
    assert ask(None, watts=None).caps is None


def test_clamped_to_what_the_card_takes_and_stable():
    devices = [{"uuid": "GPU-a", "min": 450.0, "max": 700.0}, {"uuid": "GPU-b", "min": 100.0, "max": 300.0}]
    decision = ask(None, devices=devices)
    assert [entry["watts"] for entry in decision.caps] == [450.0, 300.0]
    assert len(decision.notes) == 2 and "400 W becomes 450 W" in decision.notes[0]
    assert ask({"caps": decision.caps}, devices=devices, now=NOW + 1).caps is None
    unknown = ask(None, devices=[{"uuid": "GPU-b"}])
    assert [entry["uuid"] for entry in unknown.caps] == ["GPU-b"]
    assert "does not report GPU GPU-a" in unknown.notes[0]


def test_desired_caps_is_the_list_alone():
    assert (
        desired_caps(None, gpus=["GPU-a"], watts=300.0, owner=OWNER, now_seconds=NOW, ttl_seconds=TTL)
        == ask(None, gpus=["GPU-a"], watts=300.0).caps
    )


UUIDS = st.sampled_from([f"GPU-{n}" for n in range(6)])
ENTRIES = st.lists(
    st.builds(
        lambda uuid, watts, owner, life: {
            "uuid": uuid,
            "watts": watts,
            "owner": owner,
            "expiresAt": rfc3339(NOW + life),
        },
        UUIDS,
        st.integers(100, 700).map(float),
        st.sampled_from([OWNER, "a/b", "c/d"]),
        st.integers(-100, 300),
    ),
    max_size=6,
    unique_by=lambda entry: entry["uuid"],
)


@given(ENTRIES, st.lists(UUIDS, max_size=6), st.none() | st.integers(100, 700).map(float))
def test_properties(entries, gpus, watts):
    spec = {"caps": entries}
    before = copy.deepcopy(spec)
    decision = ask(spec, gpus=gpus, watts=watts)
    assert spec == before
    after = entries if decision.caps is None else decision.caps
    live = [entry for entry in entries if entry["owner"] != OWNER and entry["expiresAt"] > rfc3339(NOW)]
    assert all(entry in after for entry in live)
    mine = {entry["uuid"]: entry for entry in after if entry["owner"] == OWNER}
    blocked = {entry["uuid"] for entry in live}
    assert set(mine) == (set(gpus) - blocked if watts is not None else set())
    assert all(entry["watts"] == watts and entry["expiresAt"] >= rfc3339(NOW + TTL / 2) for entry in mine.values())
    assert len({entry["uuid"] for entry in after}) == len(after)
    assert {conflict.uuid for conflict in decision.conflicts} == (set(gpus) & blocked if watts is not None else set())
    assert ask({"caps": after}, gpus=gpus, watts=watts).caps is None
