"""`python -m projects.toydata.panoptic`: what is in `mmdeploy_ext/synthetic/panoptic.py`."""

from mmdeploy_ext.synthetic.panoptic import main

if __name__ == '__main__':
    raise SystemExit(main())
