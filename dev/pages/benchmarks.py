"""Measure every family at full size and write docs/benchmarks.md: tools/analysis_tools/benchmark_all.py.

A case is one process of `mm2onnx benchmark`, in which all engines and files take turns. A JSON file beside
the page keeps its ratios to eager PyTorch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev.pages.tables import table, write_between
from mmdeploy_ext.base.files import read_json, write_json
from mmdeploy_ext.engines.registry import BASELINE, COMPILED, ENGINES, engines_of, present, title_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
PAGE, QUICK_PAGE = ROOT / 'docs/benchmarks.md', ROOT / 'work_dirs/benchmark/quick.md'
CHART = (
    'ATSS R50, 608x608',
    'RetinaNet R50, 800x1344',
    'YOLOX-s, 640x640',
    'Faster R-CNN R50, 800x1344',
    'Mask R-CNN R50, 800x1344',
    'SOLOv2 R50, 800x1344',
    'RT-DETR R50vd, 640x640',
    'StreamPETR R50, six cameras of 704x256',
    'BEVFusion, sparse LiDAR backbone',
    'CenterPoint, sparse LiDAR backbone',
)
"""Titles of the models in README's chart."""
CAMERAS = ('bevdet_r50', 'petr_r50', 'bevformer_tiny', 'sparse4d_r50')
"""Cases that `--chart` measures besides."""
WHOLE = ('full', 'deploy contract', 'portable')
"""Files with the whole model in float32, one per case."""
STEPS = ('make', 'measure')
LIMIT_S = 3600
"""A command that takes longer has hung."""
NUSCENES = 'synthetic nuscenes --out {out} --train-scenes 1 --val-scenes 1 --frames 4'
DATA = {
    'pictures': 'synthetic coco --out {out} --train-images 8 --val-images 1',
    'frames': f'{NUSCENES} --image-size 1600 900',
    'toy_frames': NUSCENES,
    'infos': 'synthetic infos --root-path {frames} --out {out}',
}
"""Data set -> words of `mm2onnx` that make it; other commands have its folder as {name}."""

# Label of a file -> its name, and the words of `mm2onnx` that make it.
EXPORT = 'export {config} {checkpoint} --out {out}'
SIZED = f'{EXPORT} --shape {{shape}} --postprocess'
CALIBRATED = '--calibrate {pictures}/train2017 --rounds 0 --out {out}'
RAW = {'raw': ('raw.onnx', f'{SIZED} raw')}
FULL = {'full': ('full.onnx', f'{SIZED} full')}
FULL_INT8 = {'full, INT8': ('full.int8.onnx', f'quantize {{folder}}/full.onnx {CALIBRATED}')}
ALL = {
    **RAW,
    **FULL,
    'raw, INT8': ('raw.int8.onnx', f'quantize {{folder}}/raw.onnx {CALIBRATED}'),
    'raw, fp16': ('raw.fp16.onnx', f'{SIZED} raw --precision fp16'),
}
FORK = f'{EXPORT} --contract fork --fork-img2lidar depth --opset-version 11'
DEPLOY_INT8 = 'quantize {folder}/deploy --calibrate {frames}/samples --images 4 --rounds 0 --out {out}'
STREAMPETR = {
    'deploy contract': ('deploy', EXPORT),
    "fork's contract": ('fork.onnx', FORK),
    'deploy contract, INT8': ('deploy.int8', DEPLOY_INT8),
    'deploy contract, fp16': ('deploy.fp16', f'{EXPORT} --precision fp16'),
}
STREAMPETR_TOY = STREAMPETR | {
    'deploy contract, INT8': ('deploy.int8', DEPLOY_INT8.replace('{frames}', '{toy_frames}')),
}
PORTABLE = {'portable': ('portable', EXPORT)}
PORTABLE_INT8 = {
    'portable, INT8': (
        'portable.int8',
        'quantize {folder}/portable --calibrate {infos}/nuscenes_infos_train.pkl --images 4 --rounds 0 '
        '--out {out}',
    )
}
PORTABLE_HALF = {'portable, fp16': ('portable.fp16', f'{EXPORT} --precision fp16')}
BACKBONE = {
    'portable': (
        'portable.onnx',
        'export --backbone {config} {checkpoint} --target portable --out {out}',
    )
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to measure.

    Attributes:
        name: on the command line.
        title: on the page.
        config: path.
        kind: 'images', 'stream' or 'sparse', as in `EngineInfo.runs`.
        files: label -> name and command.
        shape: height and width of a picture, for the commands.
        checkpoint: trained weights; '' draws them from a seed.
        options: more words for `mm2onnx benchmark`.
        lidar: whether real sweeps take the place of generated ones.
    """

    name: str
    title: str
    config: str
    kind: str
    files: Mapping[str, tuple[str, str]]
    shape: str = ''
    checkpoint: str = ''
    options: tuple[str, ...] = ()
    lidar: bool = False


def _pictures(
    name: str, title: str, config: str, files: Mapping[str, tuple[str, str]], shape: tuple[int, int]
) -> Case:
    height, width = shape
    title = f'{title}, {height}x{width}'
    return Case(name, title, f'configs/{config}.py', 'images', files, f'{height} {width}')


def _stream(
    name: str, title: str, config: str, files: Mapping[str, tuple[str, str]], lidar: bool = False
) -> Case:
    return Case(name, title, f'projects/configs/{config}.py', 'stream', files, lidar=lidar)


def _backbone(name: str, title: str, config: str) -> Case:
    title, config = f'{title}, sparse LiDAR backbone', f'projects/configs/BEVFusion/{config}.py'
    return Case(name, title, config, 'sparse', BACKBONE, options=('--voxels', '60000'), lidar=True)


def _toy(
    config: str,
    kind: str,
    files: Mapping[str, tuple[str, str]],
    shape: str = '',
    options: tuple[str, ...] = (),
) -> Case:
    name = Path(config).stem
    return Case(name, name, config, kind, files, shape, f'demo/checkpoints/{name}.pth', options)


RIG = PORTABLE | PORTABLE_INT8
LARGE = (800, 1344)
CASES = (
    _pictures('atss_r50', 'ATSS R50', 'atss/atss_coco', ALL, (608, 608)),
    _pictures('solov2_r34', 'SOLOv2 light R34', 'solov2/solov2_light_r34', ALL, (448, 672)),
    _pictures('solov2_r50', 'SOLOv2 R50', 'solov2/solov2_r50', ALL, LARGE),
    _pictures(
        'decoupled_solo_r50', 'Decoupled SOLO light R50', 'solo/decoupled_solo_light_r50', ALL, (512, 864)
    ),
    _pictures('rtdetr_r18', 'RT-DETR R18vd', 'rtdetr/rtdetr_r18vd', ALL, (640, 640)),
    _pictures('rtdetr_r50', 'RT-DETR R50vd', 'rtdetr/rtdetr_r50vd', ALL, (640, 640)),
    _pictures('retinanet_r50', 'RetinaNet R50', 'mmdet/retinanet_r50', RAW | FULL, LARGE),
    _pictures('fcos_r50', 'FCOS R50', 'mmdet/fcos_r50', RAW | FULL, LARGE),
    _pictures('yolox_s', 'YOLOX-s', 'mmdet/yolox_s', RAW | FULL, (640, 640)),
    _pictures('ssd300', 'SSD300', 'mmdet/ssd300', RAW | FULL, (300, 300)),
    _pictures('faster_rcnn_r50', 'Faster R-CNN R50', 'mmdet/faster_rcnn_r50', FULL | FULL_INT8, LARGE),
    _pictures('mask_rcnn_r50', 'Mask R-CNN R50', 'mmdet/mask_rcnn_r50', FULL | FULL_INT8, LARGE),
    _pictures('deformable_detr_r50', 'Deformable DETR R50', 'mmdet/deformable_detr_r50', FULL, LARGE),
    _pictures('mask2former_r50', 'Mask2Former R50', 'mmdet/mask2former_r50', FULL, LARGE),
    _stream(
        'streampetr_r50',
        'StreamPETR R50, six cameras of 704x256',
        'StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e',
        STREAMPETR,
    ),
    _stream('bevformer_tiny', 'BEVFormer tiny, six cameras of 800x480', 'BEVFormer/bevformer_tiny', PORTABLE),
    _stream('bevdet_r50', 'BEVDet R50, six cameras of 704x256', 'BEVDet/bevdet_r50', PORTABLE),
    _stream('petr_r50', 'PETR R50-DCN, six cameras of 1408x512', 'PETR/petr_r50dcn_gridmask_p4', PORTABLE),
    _stream(
        'petrv2_vovnet',
        'PETRv2 VoVNet-99, six cameras of 800x320',
        'PETR/petrv2_vovnet_gridmask_p4_800x320',
        PORTABLE,
    ),
    _stream(
        'sparse4d_r50',
        'Sparse4D v3 R50, six cameras of 704x256',
        'Sparse4D/sparse4dv3_temporal_r50_1x8_bs6_256x704',
        RIG | PORTABLE_HALF,
    ),
    _stream(
        'bevfusion_r50',
        'BEVFusion R50, six cameras of 704x256 and a sweep',
        'BEVFusion/bevfusion_camera_lidar_r50_nus',
        RIG,
        lidar=True,
    ),
    _backbone('bevfusion', 'BEVFusion', 'bevfusion_lidar_0075voxel_nus'),
    _backbone('centerpoint', 'CenterPoint', 'centerpoint_0075voxel_second_secfpn_nus'),
)
"""All families at full size."""
TOYS = (
    _toy('configs/demo/atss_toy.py', 'images', ALL, '128 160'),
    _toy('configs/demo/solov2_toy.py', 'images', ALL, '128 160'),
    _toy('configs/demo/decoupled_solo_toy.py', 'images', ALL, '128 160'),
    _toy('configs/demo/rtdetr_toy.py', 'images', ALL, '128 160'),
    _toy('projects/configs/StreamPETR/stream_petr_toy.py', 'stream', STREAMPETR_TOY),
    _toy('projects/configs/BEVFusion/centerpoint_toy.py', 'sparse', BACKBONE, options=('--voxels', '500')),
)
"""The small trained models of the repository: the same way through, in minutes."""


# ---- measuring


class CommandError(Exception):
    """A command failed; the message is its own error line."""


def run(words: Sequence[str], log: Path) -> None:
    """Run `mm2onnx WORDS` in the root of the repository, its output in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'w', encoding='utf-8') as stream:
        try:
            status = subprocess.run(
                [sys.executable, '-m', 'mmdeploy_ext', *words],
                cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CommandError(f'mm2onnx {words[0]} took longer than {LIMIT_S} s') from None
    if status:
        lines = [
            line for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()
        ]
        errors = [line for line in lines if line.startswith('error: ')]
        reason = (errors or lines or [f'exit status {status}'])[-1].removeprefix('error: ')
        raise CommandError(reason.replace(f'{ROOT}/', ''))


def make(command: str, target: Path, places: Mapping[str, object], work: Path) -> None:
    """Make a file or folder, and before it the data sets that its command names and that are missing."""
    data = {name: work / 'data' / name for name in DATA if f'{{{name}}}' in command}
    for name, folder in data.items():
        if not folder.exists():
            make(DATA[name], folder, {}, work)
    print(f'makes {target.relative_to(work)}', flush=True)
    words = command.format(**places, **data, out=target).split()
    run(words, target.with_name(f'{target.name}.log'))


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the ONNX files of a folder."""
    return sum(file.stat().st_size for file in (path.glob('*.onnx*') if path.is_dir() else [path]))


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Export the files of a case and measure them; return its entry in the JSON file."""
    work, folder = args.work_dir.resolve(), args.work_dir.resolve() / case.name
    checkpoint = case.checkpoint or folder / 'seeded.pth'
    places = dict(config=case.config, checkpoint=checkpoint, folder=folder, shape=case.shape)
    title = case.title if args.device == 'cpu' else f'{case.title}, on the GPU'
    entry: dict[str, Any] = dict(title=title, threads=args.threads, rows=[], notes=[])
    files: dict[str, Path] = {}
    try:
        if not case.checkpoint and not checkpoint.exists():
            make('synthetic weights {config} --out {out}', folder / 'seeded.pth', places, work)
        for label, (name, command) in case.files.items():
            if args.files and label not in args.files:
                continue
            try:
                if 'make' in args.steps or not (folder / name).exists():
                    make(command, folder / name, places, work)
                files[label] = folder / name
            except CommandError as error:
                entry['notes'].append(f'not measured: {label}: {error}')
        if files and 'measure' in args.steps:
            print(f'measures {case.name}', flush=True)
            target = folder / 'benchmark.json'
            run(
                [*benchmark_words(case, args, checkpoint, files), '--json', str(target)],
                folder / 'benchmark.log',
            )
            entry |= entry_of(read_json(target), files, entry['notes'])
    except CommandError as error:
        entry['notes'].append(f'not measured: {error}')
    return entry


def benchmark_words(
    case: Case, args: argparse.Namespace, checkpoint: str | Path, files: Mapping[str, Path]
) -> list[str]:
    """Return the words of `mm2onnx benchmark` for the files of a case."""
    engines = [
        name for name in engines_of(case.kind)
        if name == BASELINE or (name in args.engines and ENGINES[name].gpu == (args.device != 'cpu'))
    ]  # fmt: skip
    words = ['benchmark', case.config, checkpoint, '--onnx', *files.values(), '--engines', ','.join(engines)]
    words += ['--threads', args.threads, '--device', args.device, '--skip-refused', *case.options]
    words += ['--no-memory'] if args.no_memory else []
    words += ['--max-iter', args.rounds, '--warmup', args.warmup, '--max-seconds', args.case_seconds]
    if case.lidar and args.sweep:
        words += ['--sweep', *args.sweep]
    return [str(word) for word in words]


def entry_of(result: Mapping[str, Any], files: Mapping[str, Path], notes: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a result of `mm2onnx benchmark`."""
    contenders = [row for row in result['contenders'] if row['input'] == result['main_input']]
    labels = {str(path): label for label, path in files.items()}
    memory = {row['name']: (row['memory'] or {}).get('peak_mb') for row in contenders}
    first = size_of(next(iter(files.values())))
    machine, device, rows = result['machine'], result['device'], []
    for row in contenders:
        base, ratio = memory.get(BASELINE), row['ratio_to_torch']
        if row['name'] == BASELINE or ratio is None:
            continue
        rows.append(dict(
            file=labels.get(row['file'], 'compiled'), engine=row['engine'],
            **{key: ratio[key] for key in ('median', 'q1', 'q3')},
            memory=round(memory[row['name']] / base, 3) if base and memory[row['name']] else None,
            **times_of(row), gmac=row['gmac'], gmac_per_s=row['gmac_per_s'],
            peak=result['peak_gmac_per_s'],
        ))  # fmt: skip
    refused = [
        f'{title_of(one["engine"])} refuses {one["label"]}: {one["reason"]}' for one in result['refused']
    ]
    packages = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    gpu = '' if device == 'cpu' else f', {machine["gpu"]}'
    messages = [note.replace(f'{ROOT}/', '') for note in (*refused, *result['notes']) if note]
    return dict(
        machine=f'{machine["cpu"]}, {machine["cores"]} cores ({" ".join(machine["simd"])}){gpu}; {packages}',
        rounds=contenders[0]['runs'],
        eager=times_of(contenders[0]),
        rows=rows,
        sizes={label: round(size_of(path) / first, 3) for label, path in files.items()},
        notes=[*notes, *messages],
    )


def times_of(row: Mapping[str, Any]) -> dict[str, float]:
    return dict(ms=round(row['total_ms']['median'], 1), per_s=row['images_per_s'])


def merged(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return a case's new entry with the rows that this version measured on this machine and not again."""
    if not old or machine_of(old) != machine_of(new):
        return new
    measured = {(row['file'], row['engine']) for row in new['rows']}
    kept = [row for row in old['rows'] if (row['file'], row['engine']) not in measured]
    return {**old, **new, 'rows': [*kept, *new['rows']], 'sizes': {**old['sizes'], **new['sizes']}}


def machine_of(entry: Mapping[str, Any]) -> str:
    """Machine and versions, mm2onnx's too."""
    return f'{entry["threads"]} threads of {entry["machine"]}'


# ---- the page


def write_page(page: Path, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the chart and the table of all cases into a page."""
    measured = [entry for entry in cases.values() if entry['rows']]
    chart = page.parent / 'images' / f'{page.stem}.png'
    chart.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        (entry, file) for entry in measured for file in dict.fromkeys(row['file'] for row in entry['rows'])
    ]
    engines = [
        name for name in ENGINES if any(row['engine'] == name for one in measured for row in one['rows'])
    ]
    content = ''
    if lines:
        draw(lines, engines, chart)
        draw_best(measured, chart.with_name('speed.png'))
        content = f'![Time against eager PyTorch](images/{chart.name})\n\n{figures(measured)}'
    notes = [f'- {entry["title"]}: {note}' for entry in cases.values() for note in entry['notes']]
    machines: dict[str, list[str]] = {}
    for entry in measured:
        machines.setdefault(machine_of(entry), []).append(entry['title'].partition(',')[0])
    notes += [f'- Measured on {machine}: {", ".join(titles)}.' for machine, titles in machines.items()]
    write_between(page, 'benchmarks', content + '\n' + '\n'.join(notes) + '\n')


HEADINGS = (
    'model', 'file', 'engine', 'size', 'ms', 'per second', 'of eager', 'RAM', 'GMAC', 'GMAC/s', 'of peak',
)  # fmt: skip


def figures(measured: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: a row per model in eager PyTorch, and per file on an engine."""
    rows = []
    for entry in measured:
        title = entry['title']
        if eager := entry.get('eager'):
            rows.append([title, '', 'eager PyTorch', '', *_times(eager), '1', '', '', '', ''])
            title = ''
        for row in sorted(entry['rows'], key=_place_of):
            file = row['file']
            cells = [title, file, title_of(row['engine']), entry['sizes'].get(file) or '', *_times(row)]
            cells += [f'**{row["median"]:.3f}**', f'{row["memory"]:.2f}' if row['memory'] else '']
            cells += ['', '', '']
            if speed := row.get('gmac_per_s'):
                cells[-3:] = f'{row["gmac"]:.3g}', f'{speed:.1f}', f'{speed / row["peak"]:.0%}'
            rows.append(cells)
            title = ''
    return table(HEADINGS, rows, right=HEADINGS[3:])


def _place_of(row: Mapping[str, Any]) -> tuple[bool, str, str, int]:
    """Return the place of a row: the whole model, its files of lower precision, other forms; engines."""
    file, _, precision = row['file'].partition(', ')
    return file not in (*WHOLE, 'compiled'), file, precision, [*ENGINES].index(row['engine'])


def _times(row: Mapping[str, Any]) -> list[str]:
    return [f'{row["ms"]:,.0f}', f'{row["per_s"]:.2f}'] if row.get('ms') else ['', '']


def draw(lines: Sequence[tuple[Mapping[str, Any], str]], engines: Sequence[str], target: Path) -> None:
    """Draw the ratios of a table as a PNG file: a row per file, a colour per engine, 1 is PyTorch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.2 * len(lines)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for engine in engines:
        points = [
            (place, row)
            for place, (entry, file) in enumerate(lines)
            for row in entry['rows']
            if row['engine'] == engine and row['file'] == file
        ]
        medians = [row['median'] for _, row in points]
        below = [row['median'] - row['q1'] for _, row in points]
        above = [row['q3'] - row['median'] for _, row in points]
        places = [place for place, _ in points]
        axes.errorbar(medians, places, xerr=[below, above], fmt='o', markersize=5, label=title_of(engine))
    axes.axvline(1.0, color='#1b2330', linewidth=1, linestyle='--')
    axes.set_yticks(range(len(lines)), [f'{entry["title"]}: {file}' for entry, file in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis='both', linewidth=0.4)
    axes.set_xlabel('time as part of that of eager PyTorch, median and quartiles')
    figure.legend(loc='outside upper left', ncols=len(engines), frameon=False)
    figure.savefig(target, dpi=80, metadata={'Software': None})


SERIES = (
    ('ONNX Runtime', '', '#2f6fb2'),
    ('torch.compile', 'D', '#d1495b'),
    ('INT8', 'o', '#edae49'),
)
"""Name in README's chart, mark ('': a bar), colour."""


def draw_best(measured: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Draw README's chart as a PNG file: ratios of ten models to eager PyTorch, detections included."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratios = {entry['title']: best_ratios(entry) for entry in measured if entry['title'] in CHART}
    if not ratios:
        return
    figure = Figure(figsize=(8, 1 + 0.27 * len(ratios)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, marker, color in SERIES:
        points = [(place, one[name]) for place, one in enumerate(ratios.values()) if name in one]
        if not points:
            continue
        places, medians = zip(*points, strict=True)
        if marker:
            axes.scatter(medians, places, marker=marker, color=color, label=name, zorder=3)
        else:
            bars = axes.barh(places, medians, height=0.6, color=color, label=name)
            axes.bar_label(bars, fmt='%.2f', padding=4, fontsize=9)
    axes.axvline(1.0, color='#1b2330', linewidth=1, linestyle='--', label='eager PyTorch')
    axes.set_yticks(range(len(ratios)), [*ratios])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    axes.tick_params(axis='y', labelsize=9, length=0)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.set_xlabel('time per image relative to eager PyTorch; lower is faster', fontsize=9)
    figure.legend(loc='outside upper center', ncols=3, frameon=False, fontsize=9)
    figure.savefig(target, dpi=110, metadata={'Software': None})


def best_ratios(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the title of a bar or mark -> the ratio."""
    found: dict[str, float] = {}
    for row in entry['rows']:
        ratio = row['median']
        if row['engine'] == COMPILED:
            found['torch.compile'] = ratio
        elif row['engine'] == 'onnxruntime' and row['file'] in WHOLE:
            found['ONNX Runtime'] = ratio
        elif row['engine'] == 'onnxruntime' and row['file'].endswith('INT8'):
            found['INT8'] = min(ratio, found.get('INT8', ratio))
    return found


# ---- the command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description='Measure every family at full size on every engine that is here, and write ratios to '
        'PyTorch into a page. A case that fails is reported and the others go on; exit status 1 then.'
    )
    add = parser.add_argument
    add('--list', action='store_true', help='print the cases and the engines, and leave')
    add('--quick', action='store_true', help='the small trained models of the repository, 3 rounds')
    add('--only', nargs='+', metavar='CASE', help='these cases; the page keeps the figures of the others')
    add(
        '--chart',
        action='store_true',
        help="README's ten models and four more of cameras: one file each, ONNX Runtime, no memory, about "
        '15 s of rounds behind one to warm up',
    )
    add('--files', nargs='+', metavar='FILE', help='these files of the cases, such as full (default: all)')
    add('--no-memory', action='store_true', help='do not measure memory, which takes a process per row')
    add(
        '--steps',
        nargs='+',
        choices=STEPS,
        default=STEPS,
        help='make the files, on a busy machine too; measure those that are there, and make the others '
        '(default: both)',
    )
    add(
        '--engines',
        nargs='+',
        metavar='E',
        choices=list(ENGINES),
        help='(default: all here)',
    )
    add('--device', default='cpu', help="'cuda:0' measures pictures on a GPU and its engines (default: cpu)")
    add('--threads', type=int, default=len(os.sched_getaffinity(0)), metavar='N', help='(default: the cores)')
    add('--rounds', type=int, metavar='N', help='at most (default: 20; 3 with --quick)')
    add('--warmup', type=int, metavar='N', help='rounds before (default: 3; 1 with --quick)')
    add('--case-seconds', type=float, default=90, metavar='S', help='begin no round later (default: 90)')
    add('--sweep', nargs='+', metavar='FILE', help='real sweeps for LiDAR (default: generated)')
    add(
        '--work-dir', type=Path, default=ROOT / 'work_dirs/benchmark', metavar='DIR', help='of files and logs'
    )
    add('--page', type=Path, metavar='F.md', help='figures go to F.json, the chart to images/ beside it '
        '(default: docs/benchmarks.md; work_dirs/benchmark/quick.md with --quick)')  # fmt: skip
    add('--page-only', action='store_true', help='measure nothing: write the page from its JSON file')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the page; 0 done, 1 something could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    cases = {case.name: case for case in (TOYS if args.quick else CASES)}
    if unknown := {*(args.only or ())} - {*cases}:
        parser.error(f'--only {" ".join(sorted(unknown))}: no such case; there are {", ".join(cases)}')
    if args.list:
        for case in cases.values():
            print(f'{case.name:20} {case.title}: {"; ".join(case.files)}')
        for name, engine in ENGINES.items():
            print(f'{name:20} {engine.absence() or "is here"}')
        return 0
    if args.chart:
        args.only = [*(name for name, case in cases.items() if case.title in CHART), *CAMERAS]
        args.files, args.engines, args.no_memory = WHOLE, ['onnxruntime'], True
        args.case_seconds, args.warmup = 15, 1
    args.engines = args.engines or present()
    args.rounds = args.rounds or (3 if args.quick else 20)
    args.warmup = (1 if args.quick else 3) if args.warmup is None else args.warmup
    page = args.page or (QUICK_PAGE if args.quick else PAGE)
    figures_file = page.with_suffix('.json')
    found = read_json(figures_file) if figures_file.is_file() else {}
    order = [case.name for case in (*CASES, *TOYS)]
    failed = False
    for case in () if args.page_only else cases.values():
        gpu = args.device != 'cpu'
        if (args.only and case.name not in args.only) or (gpu and case.kind != 'images'):
            continue
        entry, name = measure(case, args), f'{case.name} {args.device}' if gpu else case.name
        print(json.dumps(entry, indent=1), flush=True)
        failed |= any(note.startswith('not measured') for note in entry['notes'])
        if 'measure' not in args.steps:
            continue
        found[name] = merged(found.get(name, {}), entry)
        found = dict(sorted(found.items(), key=lambda item: order.index(item[0].partition(' ')[0])))
        write_json(figures_file, found)
    write_page(page, found)
    print(page)
    return int(failed)
