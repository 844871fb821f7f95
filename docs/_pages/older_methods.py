"""Write which methods of older releases of mmdet 2.x the graphs follow, by running both.

`python docs/_pages/older_methods.py FOLDER [--families dense two_stage]` takes a folder with the sources of
releases, as `pip download --no-deps --no-binary :all: mmdet==2.11.0` brings them, unpacked:
`FOLDER/mmdet-2.11.0/mmdet`. A process for each release imports it in the place of the installed mmdet and
builds small detectors with heads of every kind. Their own test path and the modules of our graphs get the
same inputs: with limits and thresholds that cut, with ties, without a result, batches, extreme boxes. Methods
of kinds whose results are equal in all cases get this release in `older_methods.json` of the family.

A repository's copy of mmdet may be of a day between two releases. So each method of the next two releases is
put in the place of this one, alone: if all results are still equal, its hash counts for this release, too.
Such a copy can be given as well, in `FOLDER/mmdet-2.14.0+tood/mmdet`.

The findings are kept in `FOLDER/RELEASE.json`; a release that has one is not run again.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import functools
import json
import os
import subprocess
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ('dense', 'two_stage')
BEHIND = 2
"""Number of next releases whose methods are tried in the place of those of a release."""
SIZE = (128, 192)
CLIPS = ((121, 180), SIZE)
DENSE_CASES = {
    'plain': (1, True, {}),
    'a batch': (2, False, {}),
    'nothing': (2, True, dict(score_thr=0.9999)),
    'three': (2, True, dict(max_per_img=3)),
    'high threshold': (1, True, dict(score_thr=0.3)),
    'threshold': (2, True, dict(score_thr=0.15)),
    'no limit': (1, False, dict(nms_pre=100000, max_per_img=2000, score_thr=0.2)),
    'ties': (2, True, dict(nms_pre=100000, topk=1000, max_per_img=2000, score_thr=0.2)),
    'a tied limit': (1, True, dict(nms_pre=100000, topk=1000, max_per_img=7)),
}
"""Name -> pictures, whether boxes are divided by the scale, and entries of `test_cfg`."""
REGION_CASES = {
    'a batch': (2, True, {}, {}),
    'extreme': (1, True, {}, {}),
    'nothing': (2, True, dict(score_thr=0.9999), {}),
    'three': (1, True, dict(max_per_img=3), dict(nms_pre=30, max_per_img=20, nms_post=20, max_num=20)),
    'sides': (1, True, {}, dict(min_bbox_size=20)),
}
"""The same with entries of `test_cfg.rcnn` and of `test_cfg.rpn`."""
REGION_KINDS = (
    *('faster', 'mask', 'cascade_mask', 'rpn', 'fast', 'double', 'sabl', 'htc'),
    *('judged', 'points', 'guided', 'staged', 'soft'),
)
"""Kinds of `tests/toy_two_stage.py`; classes of others are compared with those of mmdet 2.28 alone."""

Case = Callable[[], str]
"""Runs both; returns what differs, or ''."""


# --- one release, in a process of its own ---------------------------------------------------------------


def dense_kinds() -> Iterator[tuple[str, Any, dict[str, Case]]]:
    """Yield the name of each kind of dense head, a detector, and its cases."""
    import dense_heads
    import torch
    from mmdet.models.detectors.single_stage import SingleStageDetector

    dense_heads.CONFIGS = Path(sysconfig.get_path('purelib')) / 'mmdet/.mim/configs'
    dense_heads.load_config = config_of_release
    dense_heads.HEADS.pop('RTMDetSepBNHead')  # no release has it
    dense_heads.HEADS['ATSSHead'] = 'atss/atss_r50_fpn_1x_coco.py'
    for name in dense_heads.HEADS:
        if not _is_registered(dense_heads, name):
            continue
        head = dense_heads.make_head(name)
        detector = SingleStageDetector.__new__(SingleStageDetector)
        torch.nn.Module.__init__(detector)
        detector.fp16_enabled, detector.bbox_head = False, head
        detector.extract_feat = lambda image: image
        before = copy.deepcopy(dict(head.test_cfg))
        cases = {case: functools.partial(dense_case, detector, before, case) for case in DENSE_CASES}
        yield name, detector, cases


def config_of_release(path: str) -> Any:
    """Return a config of today without a setting of losses that older ones do not take."""
    from mmdeploy_ext.core.config import load_config

    cfg = load_config(path)
    for part in cfg.model.bbox_head.values():
        if isinstance(part, dict):
            part.pop('activated', None)
    return cfg


def _is_registered(dense_heads: Any, name: str) -> bool:
    from mmdet.models.builder import HEADS

    cfg = config_of_release(str(dense_heads.CONFIGS / dense_heads.HEADS[name]))
    return cfg.model.bbox_head.type in HEADS


def dense_case(detector: Any, before: dict[str, Any], case: str) -> str:
    """Return what differs between a detector of a dense head and our `full` form."""
    import dense_heads
    import numpy as np
    import torch

    from mmdeploy_ext.families.dense.forms import DenseFullForm
    from mmdeploy_ext.families.dense.heads import described, kind_of

    head, (batch, rescale, entries) = detector.bbox_head, DENSE_CASES[case]
    batch = 1 if type(head).__name__ in dense_heads.ONE_IMAGE else batch
    tied = 'tie' in case
    head.test_cfg.clear()
    head.test_cfg.update({**copy.deepcopy(before), **entries})
    if case == 'ties' and 'nms' in before:  # which one of equal boxes is suppressed is nobody's claim
        head.test_cfg['nms'] = dict(before['nms'], iou_threshold=1.0)
    raw = dense_heads.random_outputs(head, len(case), batch, SIZE)
    if tied:
        description, levels = described(head), len(raw) // len(described(head).names)
        steps = 8 if description.activation == 'none' else 2
        first = levels * description.names.index(description.scores)
        # scores of one of the steps are those of the threshold
        head.test_cfg['score_thr'] = 0.25 if steps == 8 else torch.tensor(-1.5).sigmoid().item()
        for level in range(first, first + levels):
            raw[level] = (raw[level] * steps).round() / steps
    outputs = outputs_of_release(head, raw)
    raw = kind_of(head).flatten(kind_of(head).tested(head, copy.deepcopy(outputs)))
    scales = [np.array([1.5, 1.25, 1.5, 1.25], np.float32), np.ones(4, np.float32)][:batch]
    metas = [
        dict(img_shape=(*clip, 3), scale_factor=scale, batch_input_shape=SIZE, border=[top, 0, left, 0])
        | dict(flip=False, ori_shape=(*clip, 3), pad_shape=(*SIZE, 3))
        for clip, scale, (top, left) in zip(CLIPS, scales, dense_heads.BORDERS, strict=False)
    ]
    head.forward = lambda feats: copy.deepcopy(outputs)
    image = torch.zeros(batch, 3, *SIZE)
    try:
        with torch.no_grad():
            results = detector(return_loss=False, rescale=rescale, img=[image], img_metas=[metas])
    finally:
        del head.forward
    form = DenseFullForm(dense_heads.detector(head))
    divisors = scales if rescale else [np.ones(4, np.float32)] * batch
    given = [image, torch.tensor(CLIPS[:batch]).float(), torch.tensor(np.stack(divisors))]
    if form.postprocess.head.bordered:
        given.append(torch.tensor(dense_heads.BORDERS[:batch]))
    with torch.no_grad():
        dets, labels = (tensor.numpy() for tensor in form(*given, *raw)[:2])
    for result, rows, kinds in zip(results, dets, labels, strict=True):
        wanted = np.concatenate([boxes.reshape(-1, 5) for boxes in result])
        wanted_labels = np.repeat(np.arange(len(result)), [len(boxes) for boxes in result])
        voted = ~np.isnan(wanted).any(1)
        pair = (wanted[voted], wanted_labels[voted]), (rows[kinds >= 0], kinds[kinds >= 0])
        if text := difference(*pair, scores_alone=tied):
            return text
    return ''


def outputs_of_release(head: Any, raw: list[Any]) -> Any:
    """Return outputs as the `forward` of the imported release gives them, for tensors in today's order."""
    import dense_heads
    import torch

    from mmdeploy_ext.compat.older_mmdet import mmdet_release

    levels, draw = len(raw) // 2, torch.Generator().manual_seed(3)
    if type(head).__name__ == 'VFNetHead' and mmdet_release() < (2, 18):
        return raw[:levels], [torch.rand_like(level) for level in raw[levels:]], raw[levels:]
    if type(head).__name__ == 'RepPointsHead' and mmdet_release() < (2, 18):
        points = [
            torch.randn(len(level), 2 * head.num_points, *level.shape[2:], generator=draw)
            for level in raw[levels:]
        ]
        return raw[:levels], [torch.rand_like(level) for level in points], points
    return dense_heads.nested(head, raw)


def difference(wanted: Any, found: Any, scores_alone: bool) -> str:
    """Return what differs between two pairs of boxes with scores (n, 5) and labels (n,), in any order."""
    import numpy as np

    (rows, kinds), (dets, labels) = wanted, found
    if len(dets) != len(rows):
        return f'{len(dets)} results in place of {len(rows)}'
    if scores_alone:
        apart = np.abs(np.sort(dets[:, 4]) - np.sort(rows[:, 4])).max(initial=0)
        return f'scores are {apart} apart' if apart > 1e-5 else ''
    free = np.ones(len(dets), bool)
    for row, kind in zip(rows, kinds, strict=True):
        near = free & (labels == kind) & (np.abs(dets[:, 4] - row[4]) <= 1e-5)
        near &= np.abs(dets[:, :4] - row[:4]).max(1) <= 1e-4 * max(SIZE)
        if not near.any():
            return f'no box like {row} of class {kind}'
        free[near.argmax()] = False
    return ''


def region_kinds() -> Iterator[tuple[str, Any, dict[str, Case]]]:
    """Yield the name of each kind of two-stage detector, a detector, and its cases."""
    import toy_two_stage
    from mmdeploy_ext.compat.older_mmdet import mmdet_release
    from mmdeploy_ext.core.errors import ConfigError
    from mmdeploy_ext.families.parts.proposals import NMS_ENTRY_SINCE

    for name in REGION_KINDS:
        try:
            model = toy_two_stage.seeded(name)
        except ConfigError:  # a class or setting that the release lacks
            continue
        if mmdet_release() < NMS_ENTRY_SINCE and hasattr(model, 'rpn_head'):
            settings = dict(nms_across_levels=False, nms_thr=0.7, nms_post=100, max_num=100)
            model.rpn_head.test_cfg.update(settings)
        cfgs = {
            key: (cfg, copy.deepcopy(dict(cfg)))
            for key in ('rcnn', 'rpn')
            if (cfg := _test_cfg(model, key)) is not None
        }
        cases = {case: functools.partial(region_case, name, model, cfgs, case) for case in REGION_CASES}
        yield name, model, cases


def _test_cfg(model: Any, key: str) -> Any:
    head = getattr(model, 'roi_head' if key == 'rcnn' else 'rpn_head', None)
    return getattr(head, 'test_cfg', None)


def region_case(name: str, model: Any, cfgs: dict[str, Any], case: str) -> str:
    """Return what differs between a two-stage detector and the modules of its graph."""
    import toy_two_stage
    from mmdeploy_ext.proving.near_ties import with_other_rounding
    from mmdeploy_ext.proving.tasks import task_module

    batch, rescale, *changes = REGION_CASES[case]
    batch = 1 if 'guided' in name else batch
    for key, entries in zip(('rcnn', 'rpn'), changes, strict=True):
        if key in cfgs:
            cfg, before = cfgs[key]
            cfg.clear()
            cfg.update(copy.deepcopy(before))
            cfg.update({entry: value for entry, value in entries.items() if entry in before})
    family, prepared = toy_two_stage.family_of(name), toy_two_stage.images(batch)
    extreme = family.exaggerated(model) if case == 'extreme' else contextlib.nullcontext()
    with extreme:
        feeds = family.feeds(prepared, rescale)
        outputs = toy_two_stage.run_stages(family.stages(model, toy_two_stage.options_of(name)), feeds)
        facts = types.SimpleNamespace(form='full', options={}, postprocess=dict(mask_thr=0.5))
        found = family.detections(facts, outputs, feeds)
        wanted = family.reference_detections(model, prepared, rescale)
        for index, (one, other) in enumerate(zip(wanted, found, strict=True)):

            def rounded(index: int = index) -> Iterator[Any]:
                """Yield the results of an image with other rounding, by which extreme boxes tie."""
                runs = with_other_rounding(
                    model, lambda: family.reference_detections(model, prepared, rescale)
                )
                return (results[index] for results in runs)

            ties = rounded if case == 'extreme' else None
            row = task_module(family.task).match_detections('image', one, other, near_ties=ties)
            if not row.passed:
                return str(row)[:300]
    return ''


KINDS = dict(dense=dense_kinds, two_stage=region_kinds)


def problem_of(case: Case) -> str:
    """Return what differs in a case, or the error that a run of it raises."""
    try:
        return case()
    except Exception as error:  # of a method in the place of another one, whatever it is
        return f'{type(error).__name__}: {error} in {traceback.extract_tb(error.__traceback__)[-1].filename}'


def run_release(name: str, others: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the methods of the imported release, and which of them and of the next ones give equal results.

    Args:
        name: of the family.
        others: what this returned for the next releases, each with its `version`.

    Returns:
        `methods`: class -> method -> hash; `sources`: hash -> file, line; `kinds`: kind -> what differed, by
        case; `followed`: class -> method -> hashes.
    """
    from mmdeploy_ext.families.base import FAMILIES as LOADED

    owners, methods, sources = methods_of(LOADED[name])
    differing: dict[str, dict[str, str]] = {}
    users: dict[str, list[dict[str, Case]]] = {}
    for kind, detector, cases in KINDS[name]():
        differing[kind] = {case: text for case, run in cases.items() if (text := problem_of(run))}
        print(kind, differing[kind] or 'equal', flush=True)
        if not differing[kind]:
            for entry in LOADED[name].replaced(detector):
                if cases not in users.setdefault(entry.upstream, []):
                    users[entry.upstream].append(cases)
    counted = {
        kind: {method: [digest] for method, digest in of_kind.items()}
        for kind, of_kind in methods.items()
        if kind in users
    }
    versions = [
        (other, kind, method)
        for other in others
        for kind, of_kind in other['methods'].items()
        for method in of_kind
    ]
    for other, kind, method in versions:
        digest, hashes = other['methods'][kind][method], counted.get(kind, {}).get(method)
        if hashes is not None and digest not in hashes:
            # the first and the last ones differ most; the last dense head has score factors
            runs = [*users[kind][:1], *users[kind][1:][-2:]] if name == 'dense' else users[kind][:1]
            problem = problem_with_method(owners[kind], method, other['sources'][digest], runs)
            print(f'{kind}.{method} of {other["version"]}:', problem or 'equal', flush=True)
            if not problem:
                hashes.append(digest)
    return dict(methods=methods, sources=sources, kinds=differing, followed=counted)


def methods_of(family: Any) -> tuple[dict[str, Any], dict[str, dict[str, str]], dict[str, tuple[str, int]]]:
    """Return what a family follows of the imported mmdet.

    They are: name of a class or module -> it; the name -> method -> hash; hash -> file, line.
    """
    from mmdeploy_ext.compat.older_mmdet import mmdet_release
    from mmdeploy_ext.families import replaced

    owners: dict[str, Any] = {}
    methods: dict[str, dict[str, str]] = {}
    sources: dict[str, tuple[str, int]] = {}
    followed = (*family.followed, *(family.followed_before if mmdet_release() < (2, 18) else ()))
    for kind, names in followed:
        owner = getattr(kind, 'imported', lambda kind=kind: kind)()
        present = [] if owner is None else [method for method in names if hasattr(owner, method)]
        for method in present if owner.__name__.partition('.')[0] != 'mmcv' else ():
            function = getattr(owner, method)
            with contextlib.suppress(ValueError):  # one that this package adds
                digest = replaced.hash_of(function)
                owners[owner.__name__] = owner
                methods.setdefault(owner.__name__, {})[method] = digest
                sources[digest] = _line_of(function)
    return owners, methods, sources


def _line_of(function: Any) -> tuple[str, int]:
    from mmdeploy_ext.core.source_code import DECORATORS, functions_behind, module_of, source_of_function

    inner = next(entry for entry in functions_behind(function) if module_of(entry) not in DECORATORS)
    return inner.__code__.co_filename, source_of_function(inner).first


def problem_with_method(owner: Any, method: str, source: tuple[str, int], runs: list[dict[str, Case]]) -> str:
    """Return what differs with a method of another release in the place of the one that `owner` has.

    `source` is file and line of the method; `runs` are cases of kinds that use `owner`.
    """
    from mmdeploy_ext.compat.import_hook import patched
    from mmdeploy_ext.core.source_code import functions_behind

    file, line = source
    tree = ast.parse(Path(file).read_text(encoding='utf-8'))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    node = next(node for node in nodes if node.lineno == line)
    present, places = getattr(owner, method), [owner]
    namespace = dict([*functions_behind(present)][-1].__globals__)
    try:
        exec(compile(ast.Module([node], []), file, 'exec'), namespace)
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    if not isinstance(owner, type):  # other modules import the function
        modules = [module for name, module in sys.modules.items() if name.startswith('mmdet.')]
        places = [module for module in modules if getattr(module, method, None) is present]
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(patched(place, **{method: namespace[method]}))
        problems = (problem_of(case) for cases in runs for case in cases.values())
        return next(filter(None, problems), '')[:200]


def print_release(name: str, paths: list[str]) -> None:
    """Print what `run_release` returns for the imported release and a family, as JSON in the last line.

    `paths` are the files with the findings of the next releases.
    """
    import warnings

    sys.path[:0] = [str(ROOT / 'tests'), str(ROOT / 'tests/projects/mmdet_plugin')]
    warnings.simplefilter('ignore')
    from mmdeploy_ext import compat

    compat.apply()
    # mmdet 2.6 has no part of some models that this imports; the families that it has are loaded
    sys.modules['mmdeploy_ext.families.mmdet_plugin'] = types.ModuleType('mmdet_plugin')
    from mmdeploy_ext.families.base import load_families

    load_families(library='')
    others = [json.loads(Path(path).read_text(encoding='utf-8'))[name] for path in paths]
    print(json.dumps(run_release(name, others)))


# --- all releases ---------------------------------------------------------------------------------------


def release_key(name: str) -> tuple[bool, list[int]]:
    """Return the key by which releases, such as '2.11.0', are sorted; copies of repositories come last."""
    return '+' in name, list(map(int, name.partition('+')[0].split('.')))


def next_ones_of(name: str, names: list[str]) -> list[str]:
    """Return the next releases behind one, of those in `names`."""
    later = (other for other in names if '+' not in other and release_key(other)[1] > release_key(name)[1])
    return sorted(later, key=release_key)[:BEHIND]


def ranges_of(releases: list[str], order: list[str]) -> str:
    """Return releases as text, such as '2.6.0-2.10.0, 2.12.0', by the order of all."""
    texts, pending = [], sorted(releases, key=order.index)
    while pending:
        first = last = pending.pop(0)
        while pending and '+' not in pending[0] and order.index(pending[0]) == order.index(last) + 1:
            last = pending.pop(0)
        texts.append(first if last == first else f'{first}-{last}')
    return ', '.join(texts)


def refuted_in(content: dict[str, Any], others: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return pairs of hashes: a method of a release, and one of a newer one that gave other results for it.

    Several classes may have the method; those of which the cases showed nothing do not count it either.
    """
    return {
        (content['methods'][kind][method], digest)
        for other in others
        for kind, methods in content['followed'].items()
        for method, digests in methods.items()
        if (digest := other['methods'].get(kind, {}).get(method)) and digest not in digests
    }


def write_tables(families: list[str], found: dict[str, dict[str, Any]]) -> None:
    """Write the table of each family; `found` are release -> family -> what `run_release` returned."""
    sys.path.insert(0, str(ROOT))
    from mmdeploy_ext.families.replaced import OLDER_TABLE

    for family in families:
        order = [release for release, content in found.items() if family in content]
        hashes: dict[str, dict[str, dict[str, list[str]]]] = {}
        for release in order:
            content = found[release][family]
            newer = [found[other][family] for other in next_ones_of(release, order)]
            refuted = refuted_in(content, newer)
            for kind, methods in content['followed'].items():
                for method, digests in methods.items():
                    own = content['methods'][kind][method]
                    for digest in (entry for entry in digests if (own, entry) not in refuted):
                        entry = hashes.setdefault(kind, {}).setdefault(method, {})
                        entry.setdefault(digest, []).append(release)
        lines = []
        for kind in sorted(hashes):
            rows = [
                f'   {json.dumps(method)}: '
                + json.dumps({digest: ranges_of(entry, order) for digest, entry in of_method.items()})
                for method, of_method in sorted(hashes[kind].items())
            ]
            lines.append(f'  {json.dumps(kind)}: {{\n' + ',\n'.join(rows) + '\n  }')
        text = f'{{\n "releases": {json.dumps(order)},\n "methods": {{\n' + ',\n'.join(lines) + '\n }\n}\n'
        (ROOT / 'mmdeploy_ext/families' / family / OLDER_TABLE).write_text(text, encoding='utf-8')


def run_process(source: Path, family: str, next_ones: list[Path]) -> dict[str, Any]:
    """Return what `run_release` does in a process that imports the mmdet of a folder; a log is beside it."""
    words = [sys.executable, '-P', '-W', 'ignore', __file__, str(source.parent), '--families', family]
    path = os.pathsep.join(filter(None, [str(source), str(ROOT), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        [*words, '--one', *map(str, next_ones)],
        cwd=source,
        env=os.environ | dict(PYTHONPATH=path, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        check=False,
    )
    source.with_name(f'{source.name}.{family}.log').write_text(done.stdout + done.stderr, encoding='utf-8')
    if done.returncode:
        raise SystemExit(f'{source} {family}: {done.stderr[-2000:]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run every release that has not been run, the newest first, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('folder', type=Path, help='folder with mmdet-2.11.0/ and others')
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument('--releases', nargs='+', default=[], help='run these alone (default: all)')
    parser.add_argument('--one', nargs='*', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print_release(args.families[0], args.one)
        return
    folder = args.folder.resolve()
    names = sorted((path.name.partition('-')[2] for path in folder.glob('mmdet-*/')), key=release_key)
    found: dict[str, dict[str, Any]] = {}
    installed = Path(sysconfig.get_path('purelib')) / 'mmdet/.mim'
    for name in names:
        source, kept = folder / f'mmdet-{name}', folder / f'{name}.json'
        found[name] = json.loads(kept.read_text(encoding='utf-8')) if kept.is_file() else {}
        if not (source / 'mmdet/.mim').exists():  # sources have no configs: those of today are built
            (source / 'mmdet/.mim').symlink_to(installed)
    for name in sorted(names, key=release_key, reverse=True):
        for family in args.families:
            if family in found[name] or (args.releases and name not in args.releases):
                continue
            run_ones = [other for other in names if family in found[other]]
            next_ones = [folder / f'{other}.json' for other in next_ones_of(name, run_ones)]
            content = run_process(folder / f'mmdet-{name}', family, next_ones)
            found[name][family] = content | dict(version=name)
            (folder / f'{name}.json').write_text(json.dumps(found[name]), encoding='utf-8')
            print(name, family, {kind: text for kind, text in content['kinds'].items() if text}, flush=True)
    write_tables(args.families, {name: found[name] for name in names})


if __name__ == '__main__':
    main()
