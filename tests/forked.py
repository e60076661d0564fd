"""Processes that begin as the workers of a run do: where they can be forked, at once."""

from concurrent.futures import ProcessPoolExecutor

from cwt.pipeline.own_process import process_context

CONTEXT = process_context()


def in_a_process(function, *arguments):
    """Returns what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(function, *arguments).result(timeout=300)
