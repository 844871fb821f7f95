"""Export and prove stock configs of mmdet by a trace of their test path; write the table of docs/traced.md.

`python -m dev.pages.traced FOLDER [NAME...]` keeps weights, files and logs in FOLDER. traced_results.json
keeps the figures; `--table` writes the page from them.
"""

from __future__ import annotations

import argparse
import json
from importlib import util
from pathlib import Path
from typing import Any

from dev.pages.forks import ROOT, TOOL, last_line, run
from dev.pages.tables import table, write_between

RESULTS = Path(__file__).with_name('traced_results.json')
PAGE = ROOT / 'docs/traced.md'
HEADINGS = ('detector', 'config', 'verdict', 'nodes', 'CPU s')
SIZE = '192', '256'
FIGURES = ('worst_iou', 'worst_score', 'matched')
SEED = (
    'import pathlib, sys; from mmdeploy_ext.upstream import compat; compat.apply(); '
    'from dev.seeded.weights import write_seeded; write_seeded(sys.argv[1], pathlib.Path(sys.argv[2]))'
)
"""The zoo's weights, which do not amplify rounding from one decoder layer to the next."""
CONFIGS = {
    'Faster R-CNN': 'faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py',
    'Sparse R-CNN': 'sparse_rcnn/sparse_rcnn_r50_fpn_1x_coco.py',
    'DETR': 'detr/detr_r50_8x2_150e_coco.py',
    'Deformable DETR': 'deformable_detr/deformable_detr_r50_16x2_50e_coco.py',
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'PAA': 'paa/paa_r50_fpn_1x_coco.py',
    'TOOD': 'tood/tood_r50_fpn_1x_coco.py',
    'VFNet': 'vfnet/vfnet_r50_fpn_1x_coco.py',
    'RepPoints': 'reppoints/reppoints_moment_r50_fpn_1x_coco.py',
    'CenterNet': 'centernet/centernet_resnet18_140e_coco.py',
    'CornerNet': 'cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py',
    'YOLACT': 'yolact/yolact_r50_1x8_coco.py',
    'SOLOv2': 'solov2/solov2_light_r18_fpn_3x_coco.py',
    'ATSS': 'atss/atss_r50_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py',
    'GFL': 'gfl/gfl_r50_fpn_1x_coco.py',
    'FSAF': 'fsaf/fsaf_r50_fpn_1x_coco.py',
    'FoveaBox': 'foveabox/fovea_r50_fpn_4x4_1x_coco.py',
    'YOLOF': 'yolof/yolof_r50_c5_8x8_1x_coco.py',
}
"""Detector -> stock config of mmdet."""
OVERRIDES = {'CornerNet': ('--cfg-options', 'data.test.pipeline.1.flip=False')}
"""Detector -> words without which its test pipeline is refused."""


def measure(name: str, work: Path) -> dict[str, Any]:
    import onnx

    config = Path(*util.find_spec('mmdet').submodule_search_locations, '.mim/configs', CONFIGS[name])
    stem = work / name.replace(' ', '_')
    checkpoint, path, verdict = (stem.with_suffix(end) for end in ('.pth', '.onnx', '.json'))
    log = stem.with_suffix('.log')
    if not checkpoint.is_file():
        run(['-c', SEED, str(config), str(checkpoint)], work, str(ROOT), log)
    verdict.unlink(missing_ok=True)
    words = ['--out', str(path), '--whole', 'traced', '--shape', *SIZE, '--verify', '--json', str(verdict)]
    words = [*TOOL, 'export', str(config), str(checkpoint), *words, *OVERRIDES.get(name, ())]
    _, text, seconds = run(words, work, str(ROOT), log)
    if not verdict.is_file():
        return dict(seconds=round(seconds), verdict=last_line(text, 'error:') or text.strip()[-200:])
    summary = json.loads(verdict.read_text(encoding='utf-8'))['summary']
    figures = {name: summary[name] for name in FIGURES if name in summary}
    line = last_line(text, 'PROVEN', 'NOT PROVEN').replace(str(path), path.name)
    nodes = len(onnx.load(path, load_external_data=False).graph.node)
    return dict(seconds=round(seconds), verdict=line, nodes=nodes, **figures)


def rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    found = []
    for name in filter(results.get, CONFIGS):
        figures = results[name]
        cells = (figures.get(key, '') for key in ('nodes', 'seconds'))
        verdict = figures['verdict'].partition(':')[0]
        verdict = 'PROVEN' if verdict.startswith('PROVEN') else verdict
        found.append([name, f'`{Path(CONFIGS[name]).name}`', verdict, *map(str, cells)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, nargs='?')
    parser.add_argument('names', nargs='*')
    parser.add_argument('--table', action='store_true', help='write the page from traced_results.json')
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.is_file() else {}
    if args.folder:
        work = args.folder.resolve()
        for name in args.names or CONFIGS:
            results[name] = measure(name, work)
            print(name, results[name], flush=True)
            RESULTS.write_text(f'{json.dumps(results, indent=1)}\n', encoding='utf-8')
    if args.table:
        write_between(PAGE, 'traced', table(HEADINGS, rows(results)))


if __name__ == '__main__':
    main()
