"""The clock of one card under a cap, window by window, as a card that averages its power moves its clock.

The mean work of a window of 48 empty iterations (about 0.3 s) tells the highest clock level at which that work would
have drawn at most the cap, and the next window runs at the lowest of the last three such levels: a burst meets the
clock of what came before it for one window, and its end is felt for three. Where even the lowest level draws more, the
card stays there and draws more, as real cards do.

A window need not be looked at while nothing that may happen in it could reach the cap at the highest level allowed:
power is a ratio of two sums that are linear in the work, so a bound on each part of the work is enough.
"""

from wattkeeper.twin.hardware import ReplicaHardware

WINDOW_STEPS = 48
MEMORY = 3
Work = tuple[float, float, float, float, float]
"""Per iteration: 1, decoding sequences, KV tokens they read, prompt tokens, attention products."""


class Governor:
    """Chooses the clock level of one replica."""

    def __init__(self, hardware: ReplicaHardware) -> None:
        self._hardware = hardware
        self.window_seconds = WINDOW_STEPS * hardware.levels[-1].seconds[0]
        self.cap_watts = hardware.card.tdp_watts
        self.top = len(hardware.levels) - 1
        """The highest level that the lock allows."""
        self.level = self.top
        """In force."""
        self._recent = [self.top]
        self._work: Work | None = None
        self._found = self.top
        self._margins = self._all_margins()

    def set_power(self, *, cap_watts: float, top: int) -> None:
        """A new cap and lock hold at once, judged by the work of the last window."""
        self.cap_watts, self.top, self._found = cap_watts, top, top
        self._margins = self._all_margins()
        self._recent = [top if self._work is None else self._highest(self._work)]
        self.level = self._recent[0]

    @property
    def free(self) -> bool:
        """True where no recent work asked for a level below the highest one allowed."""
        return min(self._recent) == self.top

    @property
    def worst(self) -> tuple[float, float, float]:
        """Joules beyond the cap at the highest level allowed: at most without decodes, per decode, per KV token read.

        The last one is at most 0: where KV tokens add joules, all memory is in the first.
        """
        hardware = self._hardware
        fixed, decode, kv, prompt, attention = self._margins[self.top]
        most_kv = hardware.num_gpu_blocks * hardware.block_size
        most_prompt = hardware.max_num_batched_tokens
        most_products = most_prompt * hardware.max_model_len
        fixed += max(0.0, kv) * most_kv + max(0.0, prompt) * most_prompt + max(0.0, attention) * most_products
        return fixed, decode, min(0.0, kv)

    def observe(self, steps: int, decode_tokens: int, kv_tokens: int, prompt_tokens: int, products: float) -> int:
        """Level of the next window after one with this work in all."""
        if steps:
            self._work = (1.0, decode_tokens / steps, kv_tokens / steps, prompt_tokens / steps, products / steps)
            self._recent = [*self._recent[1 - MEMORY :], self._highest(self._work)]
            self.level = min(self._recent)
        return self.level

    def _highest(self, work: Work) -> int:
        """The highest level not above the lock at which work fits under the cap; the lowest where none does."""
        margins, at = self._margins, self._found
        _, decodes, kv, prompt, products = work

        def fits(index: int) -> bool:
            fixed, per_decode, per_kv, per_token, per_product = margins[index]
            joules = fixed + per_decode * decodes + per_kv * kv + per_token * prompt + per_product * products
            return joules <= 0.0

        # Power grows with the clock, and the next level is seldom far from the last one.
        if fits(at):
            while at < self.top and fits(at + 1):
                at += 1
        else:
            at -= 1
            while at > 0 and not fits(at):
                at -= 1
        self._found = max(0, at)
        return self._found

    def _all_margins(self) -> list[Work]:
        """By level: joules beyond what the cap allows, per unit of each part of the work."""
        allowed = self.cap_watts - self._hardware.static_watts
        rows = []
        for level in self._hardware.levels[: self.top + 1]:
            s0, sn, skv, st, sa = level.seconds
            j0, jn, jkv, jt, ja = level.joules
            rows.append(
                (j0 - allowed * s0, jn - allowed * sn, jkv - allowed * skv, jt - allowed * st, ja - allowed * sa)
            )
        return rows
