"""Processes that begin at once: they are forked from a server that has imported everything."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cwt.pipeline.warm"])  # the server is that of a run's workers


def in_a_process(function, *arguments):
    """Returns what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(function, *arguments).result(timeout=300)
