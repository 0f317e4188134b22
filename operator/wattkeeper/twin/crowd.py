"""Until when the requests of a replica, by their number and their prompts, cannot bring its card to its cap.

At the highest clock allowed a decoding sequence adds joules beyond what the cap allows in the time it takes, and each
KV token that it reads takes some of them away, because reading is slow and draws less. It reads at least its prompt. So
each request counts with the tokens that its prompt lacks of the context at which it adds nothing more.
"""

import bisect
import math
from collections.abc import Collection, Iterable, Sequence

from wattkeeper.twin.request import Request


class Crowd:
    """Counts of the requests that a replica remembers, in order of arrival, and of those that have left it."""

    def __init__(self) -> None:
        self._reach, self._per_token, self._most = 0, 0, math.inf
        self._sums: list[int] = []
        self._total = 0
        self._gone = 0

    def set_margins(
        self, *, fixed: float, decode: float, kv: float, requests: Sequence[Request], unfinished: Collection[int]
    ) -> None:
        """From now on an iteration may have so many joules beyond what the cap allows in its time.

        At most `fixed` without decodes (below 0: room is left), `decode` more with each sequence, and `kv` more (at
        most 0) with each KV token read. `unfinished` are indices of `requests` that have not left.
        """
        if decode <= 0.0:
            self._reach, self._per_token, self._most = 0, 0, -1.0 if fixed > 0.0 else math.inf
        elif kv < 0.0:
            self._reach, self._per_token, self._most = math.ceil(decode / -kv), 1, math.floor(fixed / kv)
        else:
            self._reach, self._per_token, self._most = 1, 0, math.floor(-fixed / decode)
        self._sums.clear()
        self._total = self._gone = 0
        for i, request in enumerate(requests):
            if i in unfinished:
                self.add((request.prompt,))
            else:
                self._sums.append(self._total)

    def add(self, prompts: Iterable[int]) -> None:
        """Requests with prompts of so many tokens, after all others."""
        reach, per_token, total, append = self._reach, self._per_token, self._total, self._sums.append
        for tokens in prompts:
            share = reach - per_token * tokens
            if share > 0:
                total += share
            append(total)
        self._total = total

    def leave(self, prompts: Iterable[int]) -> None:
        """Requests with prompts of so many tokens are finished, refused or given up."""
        reach, per_token, gone = self._reach, self._per_token, self._gone
        for tokens in prompts:
            share = reach - per_token * tokens
            if share > 0:
                gone += share
        self._gone = gone

    def forget(self, count: int) -> None:
        """The first requests, which have all left, are no longer remembered."""
        del self._sums[:count]

    def harmless_until(self, requests: Sequence[Request]) -> float:
        """When the first request arrives that may be too many, if none leaves before; infinite where none is."""
        at = bisect.bisect_right(self._sums, self._most + self._gone)
        return math.inf if at == len(self._sums) else requests[at].arrival
