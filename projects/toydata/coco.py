"""`python -m projects.toydata.coco`: what is in `mmdeploy_ext/synthetic/coco.py`."""

from mmdeploy_ext.synthetic.coco import main

if __name__ == '__main__':
    raise SystemExit(main())
