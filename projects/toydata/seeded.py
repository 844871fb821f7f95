"""`python -m projects.toydata.seeded`: what is in `mmdeploy_ext/synthetic/seeded.py`."""

from mmdeploy_ext.synthetic.seeded import main

if __name__ == '__main__':
    raise SystemExit(main())
