"""`python -m sandbox_engine` is `sandbox-engine`."""

import sys

from sandbox_engine.cli import main

sys.exit(main())
