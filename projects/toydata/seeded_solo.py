"""`python -m projects.toydata.seeded_solo`: what is in `mmdeploy_ext/seeded/image.py`."""

from mmdeploy_ext.seeded.image import main

if __name__ == '__main__':
    raise SystemExit(main())
