"""`python -m bench.uncounted`: the service, where nothing is counted: what the metrics cost is the
difference. There is no setting for it."""

import os
import sys
from functools import partial

from msgpush.entrypoints.app import create_app
from msgpush.entrypoints.commands import serve

if __name__ == "__main__":
    vars(serve)["create_app"] = partial(create_app, counted=False)
    sys.exit(serve.serve_with([], os.environ))
