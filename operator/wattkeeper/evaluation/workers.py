"""The same work for many runs, here or on several processes."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def each(
    work: Callable[[Task], Answer], tasks: Sequence[Task], *, processes: int, done: Callable[[int], None]
) -> list[Answer]:
    """Answers in the order of the tasks; `done(1)` is called after each of them."""

    def counted(answers: Iterable[Answer]) -> list[Answer]:
        found = []
        for answer in answers:
            found.append(answer)
            done(1)
        return found

    if processes == 1:
        return counted(map(work, tasks))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return counted(pool.map(work, tasks, chunksize=4))
