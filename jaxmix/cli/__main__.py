"""`python -m jaxmix.cli`."""

import sys

from jaxmix.cli.app import main

sys.exit(main())
