"""What all tests share. Fixtures of one family live in that family's folder."""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from mmdeploy_ext.core import cli  # noqa: E402
from mmdeploy_ext.stack import compat  # noqa: E402

cli.wait_passively()
compat.apply()
