"""`python -m projects.toydata.seeded`: what is in `mmdeploy_ext/seeded/weights.py`."""

from mmdeploy_ext.seeded.weights import main

if __name__ == '__main__':
    raise SystemExit(main())
