"""Export and prove research repositories in their own folders, and write the table of docs/forks.md.

`python -m dev.pages.forks FOLDER [NAME...]` takes a folder with checkouts. forks.json has the rows:
repository, commit, config, and overrides that keep a run small. Optional keys of a row: `checkout`, the
folder's name; `path`, folders of the checkout for PYTHONPATH; `over`, another repository and its commit, into
a copy of which the row's files are put, at the same paths or at the paths of `copies` (from -> to).
Each export runs in a process of its own in the checkout, as `mm2onnx` starts and with `PYTHONPATH=.`; both
have to write the same file. The repository's own classes get seeded weights. forks_results.json keeps the
figures, also of rows that are not measured now; `--table` writes the page from them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dev.pages.tables import table, write_between

ROOT = Path(__file__).resolve().parents[2]
ROWS, RESULTS = (Path(__file__).with_name(name) for name in ('forks.json', 'forks_results.json'))
HEADINGS = ('repository, commit, config', 'result', 'worst IoU or distance, score')
MODES = {'mm2onnx': '', 'PYTHONPATH=.': '.'}
"""How a command is started -> what is on PYTHONPATH."""
TOOL = ('-m', 'mmdeploy_ext')
"""Words of `mm2onnx`, behind those of Python."""
PROVEN = ('verdict', 'worst_iou', 'worst_distance', 'worst_score', 'matched')
"""Figures of a proof."""
CONFIG_ERROR = 'mmdeploy_ext.base.errors.ConfigError: '
"""Begin of the last line of a traceback, for which the table has what `mm2onnx` begins its line with."""
EXAMINE = """
import json, sys, warnings
warnings.simplefilter('ignore')
from mmdeploy_ext import compat
compat.apply()
from mmdeploy_ext.families.base import DETECTOR, find_family, load_families
replaced = []
if len(sys.argv) > 1:
    from mmdeploy_ext.upstream.compat.stand_ins import lacks
    from mmdeploy_ext.cli.options import parse_cfg_options
    from mmdeploy_ext.upstream.compat.plain_kernels import flash_attention_notes
    from mmdeploy_ext.base.config import load_config
    cfg = load_config(sys.argv[1], parse_cfg_options(sys.argv[2:]))
    family = find_family(cfg, DETECTOR)
    model = family.build(cfg)
    if lacks:
        replaced.append('stand_ins')
    if flash_attention_notes(model):
        replaced.append('flash_attention')
    if getattr(model, 'fork', None):
        replaced += [patch['name'] for patch in model.fork.process.facts['patches']]
else:
    import mmdet.apis, mmdet3d.datasets
    load_families()
import mmdet
patches = [*dict.fromkeys([patch.name for patch in compat.effective()] + replaced)]
print(json.dumps(dict(patches=patches, mmdet=mmdet.__version__)))
"""
"""Prints the patches that were in effect, of a config or, without one, of the installed libraries."""


def run(words: list[str], folder: Path, path: str, log: Path) -> tuple[int, str, float]:
    """Run a command in a folder; return its exit status, what it printed, and CPU seconds."""
    paths = [entry for entry in (path, os.environ.get('PYTHONPATH')) if entry]
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS='1')
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, '-P', '-W', 'ignore', *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    log.write_text(f'{done.stdout}\n{done.stderr}', encoding='utf-8')
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, f'{done.stdout}\n{done.stderr}', seconds


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; there may be none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hash of a file, or of the files of a folder together, 64 hexadecimal digits."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()


def commit_of(folder: Path) -> str:
    """Return the commit of a checkout; '' of a folder that is none."""
    done = subprocess.run(
        ['git', '-C', str(folder), 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def joined(source: Path, base: Path, over: dict[str, Any], target: Path) -> Path:
    """Return `target`, which gets the files of a commit of the checkout `base`, and `source` over them.

    `over` has the commit and, if paths change, `copies`.
    """
    remove(target)
    target.mkdir()
    words = ['git', '-C', str(base), 'archive', over['commit']]
    archive = subprocess.run(words, capture_output=True, check=True)
    subprocess.run(['tar', '-x', '-C', str(target)], input=archive.stdout, check=True)
    for first, second in over.get('copies', {'': ''}).items():
        if (source / first).is_dir():
            shutil.copytree(source / first, target / second, dirs_exist_ok=True)
        else:
            shutil.copy(source / first, target / second)
    return target


def last_line(text: str, *starts: str) -> str:
    """Return the last line that begins with one of these words; '' if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith(starts)]
    return lines[-1] if lines else ''


def without_places(text: str, *folders: Path) -> str:
    """Return a message without the names of this machine's folders, of Python's environment too."""
    text = text.replace(sys.executable, 'python')
    for folder in (*folders, sys.prefix):
        text = text.replace(f'{folder}/', '')
    return text


def examine(words: list[str], folder: Path, path: str, log: Path) -> dict[str, Any]:
    """Return the patches in effect and the version of mmdet; what failed is in `error`."""
    _, text, _ = run(['-c', EXAMINE, *words], folder, path, log)
    if line := last_line(text, '{"patches"'):
        return json.loads(line)
    return dict(error=(text.strip() or 'it printed nothing').splitlines()[-1], patches=[])


def refusal_of(
    words: list[str], checkpoint: Path, folder: Path, path: str, log: Path
) -> tuple[int, str] | None:
    """Make the checkpoint of a config, the first of `words`, if there is none; return None.

    Of a model that is refused there is none: return the CPU seconds and the error of `export --check`.
    """
    config, *overrides = words
    if checkpoint.is_file():
        return None
    _, text, _ = run([*TOOL, 'synthetic', 'weights', config, str(checkpoint), *overrides], folder, path, log)
    if checkpoint.is_file():
        return None
    _, checked, seconds = run([*TOOL, 'export', config, '--check', *overrides], folder, path, log)
    return round(seconds), last_line(checked, 'error:') or last_line(text, 'error:') or 'no'


def measure(row: dict[str, Any], checkouts: Path, work: Path) -> dict[str, Any]:
    """Return the figures of one row: per mode what was imported, exported and proven.

    SystemExit: the checkout is not there, or is at another commit.
    """
    checkout = checkouts / row.get('checkout', row['repository'].rpartition('/')[2])
    if (commit := commit_of(checkout)) != row['commit']:
        raise SystemExit(f'{checkout}: is at {commit or "no commit"}; expected {row["commit"]}')
    folder, config, options = checkout / row.get('folder', ''), row['config'], row['cfg_options']
    if over := row.get('over'):
        base = checkouts / over['repository'].rpartition('/')[2]
        folder = joined(folder, base, over, work / f'{row["repository"].rpartition("/")[2]}_joined')
    further = [str(checkout / entry) for entry in row.get('path', ())]
    overrides = ['--cfg-options', *options] if options else []
    installed = examine([], work, '', work / 'installed.log')['patches']
    result: dict[str, Any] = {}
    checkpoint = work / f'{row["name"]}.pth'.replace(' ', '_')
    for mode, first_path in MODES.items():
        path = os.pathsep.join(filter(None, [first_path, *further]))
        log = work / f'{row["name"]} {mode}.log'.replace(' ', '_')
        facts = examine([config, *options], folder, path, log)
        imports = without_places(facts.get('error', 'yes'), checkouts, work)
        figures = dict(imports=imports.replace(CONFIG_ERROR, 'error: '), mmdet=facts.get('mmdet', ''))
        figures['patches'] = [name for name in facts['patches'] if name not in installed]
        result[mode] = figures
        if 'error' in facts:
            continue
        if refusal := refusal_of([config, *overrides], checkpoint, folder, path, log):
            figures['seconds'], figures['error'] = refusal[0], without_places(refusal[1], checkouts, work)
            continue
        output = checkpoint.with_suffix(row.get('suffix', '.onnx'))
        first = next((mode_figures for mode_figures in result.values() if 'verdict' in mode_figures), None)
        before = sha256_of(output) if first else ''
        verdict = checkpoint.with_suffix('.json')
        verdict.unlink(missing_ok=True)  # files of before would stand for those of an export that fails
        remove(output)
        words = [*TOOL, 'export', config, str(checkpoint), '--out', str(output)]
        proof = [] if first else ['--verify', '--json', str(verdict)]
        _, text, seconds = run([*words, *row.get('options', ()), *proof, *overrides], folder, path, log)
        figures['seconds'] = round(seconds)
        if first and output.exists() and sha256_of(output) == before:  # what was proven of these bytes holds
            figures.update({name: first[name] for name in PROVEN if name in first})
            continue
        if first or not verdict.is_file():
            reason = 'writes another file than the first way to start' if first else text.strip()[-200:]
            figures['error'] = without_places(last_line(text, 'error:') or reason, checkouts, work)
            continue
        content = json.loads(verdict.read_text(encoding='utf-8'))
        summary = content['summary']
        figures['verdict'] = last_line(text, 'PROVEN', 'NOT PROVEN').replace(str(output), output.name)
        figures.update({name: summary[name] for name in PROVEN if name in summary})
    return result


def cells(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Return the cells of a row: those of both modes are one where they agree."""
    modes = list(result.values())
    tree = f'https://github.com/{row["repository"]}/tree/{row["commit"]}'
    config = row['config']
    for first, second in row.get('over', {}).get('copies', {}).items():
        if config.startswith(f'{second}/'):
            config = first + config.removeprefix(second)
    config = '/'.join(filter(None, (row.get('folder', ''), config)))
    commits = f'[{row["commit"][:8]}]({tree})'
    if over := row.get('over'):
        commits += (
            f' over [{over["commit"][:8]}](https://github.com/{over["repository"]}/tree/{over["commit"]})'
        )
    texts = [f'{row["name"]} ({commits}), [{Path(config).name}]({tree}/{config})']
    texts.append(_both([_result(figures) for figures in modes]))
    texts.append(worst_of([figures for figures in modes if 'verdict' in figures]))
    return texts


def _result(figures: dict[str, Any]) -> str:
    """Return the verdict, or the error of the import or export."""
    if figures['imports'] != 'yes':
        return figures['imports']
    claim = figures.get('verdict', '').partition(' equals')[0]
    return claim.rpartition(' ')[0] or claim or figures.get('error', 'not exported')


def worst_of(proven: list[dict[str, Any]]) -> str:
    """Return the worst IoU, or the largest distance of boxes in 3D, and the largest difference of scores."""
    overlaps = [figures['worst_iou'] for figures in proven if figures.get('worst_iou') is not None]
    distances = [figures['worst_distance'] for figures in proven if figures.get('worst_distance') is not None]
    if not overlaps and not distances:
        return ''
    score = max(figures['worst_score'] for figures in proven)
    return f'{max(distances):.1e} m, {score:.1e}' if distances else f'{min(overlaps):.6f}, {score:.1e}'


def _both(texts: list[str]) -> str:
    if len(set(texts)) <= 1:
        return texts[0]
    return '; '.join(f'{mode}: {text}' for mode, text in zip(MODES, texts, strict=False))


def write_page() -> None:
    """Write the table into the page, between its marks."""
    results = json.loads(RESULTS.read_text(encoding='utf-8'))
    rows = [row for row in json.loads(ROWS.read_text(encoding='utf-8')) if row['name'] in results]
    lines = [cells(row, results[row['name']]) for row in rows]
    write_between(ROOT / 'docs/forks.md', 'forks', table(HEADINGS, lines))


def main() -> None:
    """Measure the named rows, or all, one after the other, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('folder', type=Path, nargs='?', help='folder with the checkouts')
    parser.add_argument('names', nargs='*', help='rows of forks.json (default: all)')
    parser.add_argument('--table', action='store_true', help='write the page from the figures that are kept')
    parser.add_argument('--work', type=Path, help='folder for weights, files and logs')
    args = parser.parse_args()
    rows = json.loads(ROWS.read_text(encoding='utf-8'))
    names = [row['name'] for row in rows]
    if unknown := {*args.names} - {*names}:
        parser.error(f'{", ".join(sorted(unknown))}: no row of {ROWS.name}, which has {", ".join(names)}')
    if args.folder is None and not args.table:
        parser.error('give the folder with the checkouts, or --table')
    for row in [] if args.table else rows:
        if args.names and row['name'] not in args.names:
            continue
        work = args.work or Path(tempfile.mkdtemp())
        work.mkdir(parents=True, exist_ok=True)
        result = measure(row, args.folder.resolve(), work.resolve())
        results = json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.is_file() else {}
        results[row['name']] = result
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        print(row['name'], json.dumps(result, indent=1), sep='\n')
    write_page()


if __name__ == '__main__':
    main()
