"""The prefix cache of one engine: which KV blocks of prompts it holds, who uses them, and which go first.

As vLLM's block pool does it: a full block of a prompt is known by its content from the moment it is scheduled; an
admission takes the longest run of known blocks from its beginning, never the block of its last token. Blocks in use by
nobody are free, stay known until they are handed out again, and are handed out in the order in which they were freed, a
request's last block first. What a request computes although the cache knows it (two at once) is a second copy. Blocks
of answers and unfilled ones take their place in that order but are never found.

The stepper counts blocks as if nothing was shared; `surplus` says how many of those it counts are one block in truth.
The order of free blocks is not kept for every block that decodes take: `sync` tells how many are free now, and what is
missing was taken from the front.
"""

from collections import OrderedDict

from wattkeeper.replica.engine import Prefix


class PrefixCache:
    """Blocks of one engine; requests are known by their index."""

    def __init__(self, *, blocks: int, block_size: int) -> None:
        self.surplus = 0
        """Blocks that the users of shared blocks hold together beyond the number of these blocks."""
        self._size = block_size
        self._keys: dict[int, list[int]] = {}
        """Content of each full block of a prompt, of requests that are not finished."""
        self._copies: dict[int, dict[int, None]] = {}
        """Blocks by content, the oldest copy first."""
        self._content: dict[int, int] = {}
        self._users: dict[int, int] = {}
        self._held: dict[int, list[int]] = {}
        """Known blocks of each running request, from the beginning of its prompt."""
        self._turn: dict[int, int] = {}
        self._turns = 0
        self._next_block = 1
        # Free blocks, first the next to be handed out: a known block, or (negative) a number of nameless ones.
        self._free: OrderedDict[int, int] = OrderedDict({0: blocks})
        self._next_run = -1
        self._count = blocks

    def expect(self, i: int, prefix: Prefix, prompt_tokens: int) -> None:
        """A request with these blocks will come. ValueError where they are not whole KV blocks."""
        per, rest = divmod(prefix.block_tokens, self._size)
        if rest or not per:
            raise ValueError(f"prefix blocks of {prefix.block_tokens} tokens are no multiple of the {self._size} of KV")
        full = min(prompt_tokens // self._size, len(prefix.ids) * per)
        self._keys[i] = [prefix.ids[k // per] * per + k % per for k in range(full)]

    def knows(self, i: int) -> bool:
        """True where a request came with blocks."""
        return i in self._keys

    def find(self, i: int, most: int) -> tuple[list[int], int]:
        """Known blocks from the beginning of a request, at most so many; and how many of them somebody uses."""
        found, used = [], 0
        for key in self._keys[i][:most]:
            copies = self._copies.get(key)
            if not copies:
                break
            block = next(iter(copies))
            found.append(block)
            used += self._users[block] > 0
        return found, used

    def admit(self, i: int, found: list[int]) -> None:
        """A request runs from now on and uses these blocks."""
        users, free = self._users, self._free
        for block in found:
            if users[block]:
                self.surplus += 1
            else:
                del free[block]
                self._count -= 1
            users[block] += 1
        self._held[i] = found

    def take_turn(self, i: int) -> None:
        """Note the order of admission."""
        self._turns += 1
        self._turn[i] = self._turns

    def turn(self, i: int) -> int:
        """Place in the order of admission."""
        return self._turn.get(i, 0)

    def computed(self, i: int, tokens: int) -> None:
        """So many tokens of a request are in the KV cache or scheduled to be."""
        held, keys = self._held.get(i), self._keys.get(i)
        if held is None or keys is None:
            return
        for key in keys[len(held) : tokens // self._size]:
            block = self._next_block
            self._next_block += 1
            self._copies.setdefault(key, {})[block] = None
            self._content[block] = key
            self._users[block] = 1
            held.append(block)

    def sync(self, free_blocks: int) -> None:
        """So many blocks are free now: those missing were handed out, and what they held is forgotten."""
        free = self._free
        taken = self._count - free_blocks
        self._count = free_blocks
        while taken > 0:
            block, number = free.popitem(last=False)
            if number > taken:
                free[block] = number - taken
                free.move_to_end(block, last=False)
                return
            taken -= number
            if block > 0:
                key = self._content.pop(block)
                copies = self._copies[key]
                del copies[block], self._users[block]
                if not copies:
                    del self._copies[key]

    def release(self, i: int, blocks: int, *, ended: bool = True) -> int:
        """A request gives up its blocks, so many with shared ones; how many are free by that. Call `sync` before."""
        held = self._held.pop(i, [])
        self._turn.pop(i, None)
        if ended:
            self._keys.pop(i, None)
        before = self._count
        if blocks > len(held):
            self._free[self._next_run] = blocks - len(held)
            self._next_run -= 1
            self._count += blocks - len(held)
        for block in reversed(held):
            self._users[block] -= 1
            if self._users[block]:
                self.surplus -= 1
            else:
                self._free[block] = 1
                self._count += 1
        return self._count - before

    def forget(self, i: int) -> None:
        """A request that never ran will not come."""
        self._keys.pop(i, None)

    def renumber(self, dropped: int) -> None:
        """Requests are from now on known by an index that is less by so many."""
        self._keys = {i - dropped: keys for i, keys in self._keys.items()}
        self._held = {i - dropped: held for i, held in self._held.items()}
        self._turn = {i - dropped: turn for i, turn in self._turn.items()}
