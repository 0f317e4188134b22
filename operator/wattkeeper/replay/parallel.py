"""Work on many tasks, here or on several processes, with what each has to say meanwhile."""

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.queues import Queue
from typing import TypeVar

Task = TypeVar("Task")
Answer = TypeVar("Answer")
Say = Callable[[str], None]
_channels: "list[Queue[str | None]]" = []
"""In a worker, one: to the process that shows what is said."""


def each(
    work: Callable[[Task, Say], Answer],
    tasks: Sequence[Task],
    *,
    processes: int,
    done: Callable[[Task, Answer], None],
    say: Say,
) -> list[Answer]:
    """Answers in the order of the tasks; `done` is told of each as soon as it is there.

    `work` gets a function for lines about its progress; `say` shows them, one at a time. With processes, both come
    from threads of this process.
    """

    def here() -> Iterable[Answer]:
        for task in tasks:
            answer = work(task, say)
            done(task, answer)
            yield answer

    if processes <= 1 or len(tasks) <= 1:
        return list(here())
    context = multiprocessing.get_context("spawn")
    channel: Queue[str | None] = context.Queue()
    listener = threading.Thread(target=_listen, args=(channel, say), daemon=True)
    listener.start()
    try:
        with ProcessPoolExecutor(
            min(processes, len(tasks)), mp_context=context, initializer=_join, initargs=(channel,)
        ) as pool:
            futures = {pool.submit(_there, work, task): task for task in tasks}
            waiting = set(futures)
            while waiting:
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    try:
                        done(futures[future], future.result())
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
            return [future.result() for future in futures]
    finally:
        channel.put(None)
        listener.join()


def _listen(channel: "Queue[str | None]", say: Say) -> None:
    while (line := channel.get()) is not None:
        say(line)


def _join(channel: "Queue[str | None]") -> None:
    _channels.append(channel)


def _there(work: Callable[[Task, Say], Answer], task: Task) -> Answer:
    """`work` in a worker."""
    return work(task, _channels[-1].put)
