"""`python -m hf_nas.cli`: the command `hf-nas`."""

import sys

from hf_nas.cli import main


sys.exit(main())
