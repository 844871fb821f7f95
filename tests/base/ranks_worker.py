"""One of two gloo processes of test_distributed; usage: RANK=... ranks_worker.py SCENARIO."""

import datetime
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.base import cli, distributed
from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.upstream import compat

compat.apply()


def work(scenario: str, ranks: distributed.Ranks) -> None:
    """Do what the scenario says, then meet the others."""
    if scenario == 'rank 0 is refused' and ranks.rank == 0:
        raise UsageError('--out x: no such folder')
    if scenario == 'rank 0 is killed':
        ranks.gather()  # both are there
        if ranks.rank == 0:
            os._exit(7)
    if scenario == 'rank 1 fails at the end' and ranks.rank == 0:
        return
    if scenario == 'rank 1 fails at the end':
        raise ExportError('the last sample')
    print(ranks.gather(f'from {ranks.rank}'), ranks.to_first(ranks.rank), flush=True)


def run(args) -> int:
    timeout = datetime.timedelta(seconds=5 if args.scenario == 'nobody comes' else 120)
    with distributed.join('pytorch', timeout=timeout) as ranks:
        work(args.scenario, ranks)
    return 0


if __name__ == '__main__':
    parser = cli.ArgumentParser()
    parser.add_argument('scenario')
    sys.exit(cli.run(run, parser))
