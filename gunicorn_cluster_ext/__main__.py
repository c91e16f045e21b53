"""``python -m gunicorn_cluster_ext``: the command line."""

import sys

from gunicorn_cluster_ext.cli import main

sys.exit(main())
