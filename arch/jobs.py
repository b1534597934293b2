"""Independent pieces of work on the processors of this machine, or on the workers of a Dask scheduler."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .errors import ConfigError, NnloomError, ToolMissingError

__all__ = ["CONNECT_SECONDS", "check_scheduler", "run_jobs"]

CONNECT_SECONDS = 10
"""Longest wait for a Dask scheduler."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_jobs(
    work: Callable[[Item, Any], Result],
    items: Sequence[Item],
    shared: object,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Items with what `work(item, shared)` returns, in the order in which they are finished.

    Leaving the loop early drops what has not begun.

    Parameters
    ----------
    work
        A function of a module.
    shared
        Sent once to each worker of a scheduler.
    scheduler
        Address of a Dask scheduler ("tcp://host:port"), which gives the work of a worker that dies to another; default:
        processes of this machine. They are started afresh, so that a script needs `if __name__ == "__main__":`.
    workers
        Processes; default: one for each processor.

    Raises
    ------
    ConfigError
        If a process ends, no scheduler answers, it has no workers, or one fails.
    ToolMissingError
        If Dask is not installed.
    NnloomError
        As `work` raises it.
    """
    if scheduler:
        yield from _on_dask(work, items, shared, scheduler)
    else:
        yield from _here(work, items, shared, workers)


def _here(
    work: Callable[[Item, Any], Result], items: Sequence[Item], shared: object, workers: int | None
) -> Iterator[tuple[Item, Result]]:
    # Forking a process that has threads (TVM, the progress display) can deadlock.
    # An interrupt is for this process to handle.
    quiet = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=quiet) as pool:
        # Nor before a worker can ignore it: processes inherit what is blocked as they are started, at `submit`.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            jobs = {pool.submit(work, item, shared): item for item in items}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool as error:
            raise ConfigError(
                "a worker process ended (no memory left?); a script needs `if __name__ == '__main__':` around what it "
                "runs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _on_dask(
    work: Callable[[Item, Any], Result], items: Sequence[Item], shared: object, scheduler: str
) -> Iterator[tuple[Item, Result]]:
    check_scheduler(scheduler)
    try:
        from dask import distributed
    except ImportError as error:
        raise ToolMissingError("Dask is not installed; pip install 'nnloom[explore]'") from error
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except OSError as error:
        raise ConfigError(f"cannot connect to the Dask scheduler {scheduler}: no answer") from error
    with client, client.as_current():
        if not client.nthreads():
            raise ConfigError(f"the Dask scheduler {scheduler} has no workers; start some with 'dask worker'")
        # In a tuple: Dask would scatter the items of a list or dictionary one by one.
        (sent,) = client.scatter([(shared,)], broadcast=True)
        jobs = {client.submit(_unpacked, work, item, sent, pure=False): item for item in items}
        for job in distributed.as_completed(jobs):
            try:
                yield jobs[job], job.result()
            except NnloomError:
                raise
            except Exception as error:
                raise ConfigError(f"a worker of {scheduler} failed: {type(error).__name__}: {error}") from error


def _unpacked(work: Callable[[Item, Any], Result], item: Item, sent: tuple[object]) -> Result:
    return work(item, sent[0])


def check_scheduler(address: str) -> None:
    """Find out before anything else whether a Dask scheduler may be at an address.

    A client that cannot parse its address does not close either, and one that is refused tries again for long.

    Raises
    ------
    ConfigError
        If it is no address, or nothing listens there.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not (host and port and parts.scheme in ("tcp", "tls")):
        raise ConfigError(f"{address}: not the address of a Dask scheduler; give tcp://HOST:PORT")
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"cannot connect to the Dask scheduler {address} ({error.strerror or error})") from error
