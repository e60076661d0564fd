"""Everything that a row of a run imports, for the server that the processes are forked from.

Only that server imports it. It leaves the group of its parent: a signal to the group (Ctrl-C,
`timeout`, a queueing system) is for the parent, which tells each process once, and would end it.
"""

import os

import cwt.pipeline.run  # noqa: F401

os.setpgrp()
