"""`python -m projects.toydata.seeded_solo`: what is in `mmdeploy_ext/synthetic/seeded_solo.py`."""

from mmdeploy_ext.synthetic.seeded_solo import main

if __name__ == '__main__':
    raise SystemExit(main())
