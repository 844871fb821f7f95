"""`python -m mmdeploy_ext`: the command `mm2onnx`, where it is not installed."""

import sys

from mmdeploy_ext.cli.command import main

if __name__ == '__main__':
    sys.exit(main())
