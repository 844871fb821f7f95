"""What the benchmark of the whole product found, as a JSON file that later runs add to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.benchmark.machine import QUIET_SHARE
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.engines.registry import title_of

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1


def read_results(path: str, machine: Mapping[str, Any], merge: bool) -> dict[str, Any]:
    """Return what a results file holds, to add to; empty when there is none or all of it is measured again.

    Raises:
        UsageError: no results file, or one of another machine or of other versions.
    """
    empty = dict(tool='benchmark_all', format=FORMAT, machine=dict(machine), commands=[], cases={})
    if not merge or not Path(path).exists():
        return empty
    results = read(path)
    for key in ('cpu', 'cores', 'gpu', 'versions'):
        if results['machine'].get(key) != machine.get(key) and results['cases']:
            raise UsageError(
                f'{path}: was measured with {key} {results["machine"].get(key)!r}, here it is '
                f'{machine.get(key)!r}; measure all cases in one run, or give another --json'
            )
    return results


def read(path: str) -> dict[str, Any]:
    """Return what a results file holds.

    Raises:
        UsageError: it is missing, damaged, or none of this tool's.
    """
    results = read_json(path)
    if not isinstance(results, dict) or results.get('tool') != 'benchmark_all' or 'cases' not in results:
        raise UsageError(f'{path}: is no results file of benchmark_all.py; give another --json')
    if results.get('format') != FORMAT:
        raise UsageError(f'{path}: has format {results.get("format")}, expected {FORMAT}; measure again')
    return results


def merged(old: Mapping[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return a case's entry with the runs of before that were not measured again."""
    if not old:
        return new
    again = {(run['device'], run['threads']) for run in new['runs'] if not run.get('left_out')}
    old_runs = [run for run in old['runs'] if (run['device'], run['threads']) not in again]
    places = {(run['device'], run['threads']) for run in old_runs}
    runs = [run for run in new['runs'] if (run['device'], run['threads']) not in places]
    order = sorted(
        [*old_runs, *runs], key=lambda run: (run['device'] != 'cpu', run['device'], run['threads'])
    )
    return dict(new, runs=order, memory=new['memory'] or old['memory'], input=new['input'] or old['input'])


def reasons(entry: Mapping[str, Any]) -> list[str]:
    """Return why files and runs of a case are not there, and what engines refused; each reason once."""
    lines = [f'{file["label"]}: {file["reason"]}' for file in entry['files'] if file.get('reason')]
    lines += [f'memory: {entry["memory_reason"]}'] if entry.get('memory_reason') else []
    for run in entry['runs']:
        if run.get('reason'):
            lines.append(f'{place_title(run)}: {run["reason"]}')
        lines += [
            f'{title_of(row["engine"])}, {row["label"]}: {row["reason"]}' for row in run.get('refused', ())
        ]
    return list(dict.fromkeys(lines))


def place_title(run: Mapping[str, Any]) -> str:
    """Return what people call the place of a run."""
    if run['device'] != 'cpu':
        return run['device']
    return '1 thread' if run['threads'] == 1 else f'{run["threads"]} threads'


def forms_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Return engine -> time of the graph of `full` as part of that of `raw`, of what `benchmark.py` found."""
    names = {f'{row["engine"]} full': row['engine'] for row in result.get('contenders', ())}
    rows = ((names.get(row['graph']), row['ratio']['median']) for row in result.get('forms', ()))
    return {engine: median for engine, median in rows if engine}


def is_failed(entry: Mapping[str, Any]) -> bool:
    """Return whether a file could not be made or a run failed; what was left out for time did not."""
    missing = [part for part in (*entry['runs'], *entry['files']) if part.get('reason')]
    return any(not part.get('left_out') for part in missing)


def is_disturbed(run: Mapping[str, Any]) -> bool:
    """Return whether other processes used more of the cores than figures stand."""
    return (run.get('other_load') or 0) > QUIET_SHARE
