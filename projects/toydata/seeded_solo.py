"""`python -m projects.toydata.seeded_solo`: what is in `mmdeploy_ext/synthetic/seeded_image.py`."""

from mmdeploy_ext.synthetic.seeded_image import main

if __name__ == '__main__':
    raise SystemExit(main())
