"""Everything that a row of a run imports, for the server that the processes are forked from."""

import cwt.pipeline.run  # noqa: F401
