"""`python -m projects.toydata.nuscenes`: what is in `mmdeploy_ext/synthetic/nuscenes.py`."""

from mmdeploy_ext.synthetic.nuscenes import main

if __name__ == '__main__':
    raise SystemExit(main())
