"""`python -m mpamatch` (and so `torchrun -m mpamatch`) is `mpamatch`."""

import sys

from mpamatch.cli import main

sys.exit(main())
