"""Proves models that nobody here wrote, and writes the table of docs/prove-module.md in both languages.

    python -m docs._pages.modules.table resnet18 faster_rcnn
    python -m docs._pages.modules.table yunet --checkout YUNET --files FOLDER
    python -m docs._pages.modules.table yolox_nano --checkout YOLOX --files FOLDER

Each model is exported by TorchScript and by dynamo, and the latter's file, or that of TorchScript where there
is none, is simplified by onnxslim. Each file is proven, and ten faults are put into one of them. The results
are kept in `results.json` beside this file; models that are not named keep theirs. YUNET is a checkout of
ShiqiYu/libfacedetection.train, YOLOX the sources of the package yolox 0.3.0; their published files are in
FOLDER.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from docs._pages.modules.faults import faulty_models
from docs._pages.modules.models import MODELS, PUBLISHED, Model, published_model
from mmdeploy_ext import compat, prove_module
from mmdeploy_ext.cli.tensorrt_table import insert_table
from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.core.errors import Mm2OnnxError, one_line
from mmdeploy_ext.proving.modules.proof import ModuleProof

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).with_name('results.json')
DOCS = Path(__file__).parents[2]
SAMPLES = 3
OPSETS = {'torchscript': 17, 'dynamo': 20}
COLUMNS = ('torchscript', 'dynamo', 'onnxslim')
HEADS = {
    'prove-module.md': ('model', 'TorchScript', 'dynamo', 'then onnxslim', 'faults: proven, of these'),
    'zh-CN/prove-module.md': ('模型', 'TorchScript', 'dynamo', '再经 onnxslim', '错误：被证明的，共'),
}
"""Page in `DOCS` -> heads of the columns."""


def export(model: Model, module: torch.nn.Module, exporter: str, path: Path) -> str:
    """Export a model; return '' or why its exporter fails."""
    arguments = model.sample(0)
    shapes: dict[str, Any] = dict(dynamic_axes=model.dynamic or None)
    if exporter == 'dynamo':
        dims = [dict.fromkeys(model.dynamic.get(name, ()), torch.export.Dim.DYNAMIC) for name in model.inputs]
        shapes = dict(dynamic_shapes=tuple(dims) if model.dynamic else None)
    try:
        torch.onnx.export(
            module,
            arguments,
            str(path),
            dynamo=exporter == 'dynamo',
            opset_version=OPSETS[exporter],
            input_names=list(model.inputs),
            output_names=list(model.outputs),
            **shapes,
        )
    except Exception as error:
        cause = error.__cause__ or error
        return f'{type(cause).__name__}: {one_line(cause)[:160]}'
    return ''


def simplify(source: Path, path: Path) -> str:
    """Write what onnxslim makes of a file; return '' or why it fails."""
    import onnxslim

    try:
        onnx.save(onnxslim.slim(onnx.load(source)), path)
    except Exception as error:
        return f'{type(error).__name__}: {one_line(error)[:160]}'
    return ''


def prove(
    model: Model, module: torch.nn.Module, path: Path, fresh: bool = True, count: int = SAMPLES
) -> dict[str, Any]:
    """Return the verdict about a file, on `count` samples, as plain data."""
    start = time.process_time()
    settings = dict(rows=model.rows, generate=model.generate, fresh=fresh)
    verdict = prove_module(module, path, model.samples(count), **settings)
    return dict(
        verdict=verdict.title,
        error=verdict.summary()['worst_rel'],
        failures=verdict.failures[:2],
        graph=verdict.of('file')[0].text,
        not_compared=[note for note in verdict.notes if note.startswith('not compared: ')],
        seconds=round(time.process_time() - start),
    )


def is_proven(model: Model, module: torch.nn.Module, path: Path) -> bool:
    """Return whether a file is proven on two samples; where a difference begins is not looked for."""
    samples = model.samples(2)
    proof = ModuleProof(module, str(path), samples, DEFAULT_RTOL, {}, model.rows, seed=0)
    proof.compare_graph(fresh=False)
    proof.check_structure()
    proof.compare_samples()
    if model.generate:
        proof.compare_generated()
    return proof.judge().proven


def judge_faults(model: Model, module: torch.nn.Module, path: Path, folder: Path) -> dict[str, str]:
    """Return fault -> what found it, 'inputs' or 'ONNX Runtime'; 'PROVEN' if nothing did."""
    checks = {}
    for name, faulty in faulty_models(onnx.load(path), model.no_faults).items():
        file = folder / f'{name}.onnx'
        onnx.save(faulty, file)
        try:
            checks[name] = 'PROVEN' if is_proven(model, module, file) else 'inputs'
        except Mm2OnnxError:
            checks[name] = 'ONNX Runtime'
        print(f'  {name}: {checks[name]}', flush=True)
    return checks


def measure(model: Model, published: Sequence[Path]) -> dict[str, Any]:
    """Export and prove a model, or prove its published files; put faults into one that is proven."""
    module, result = model.make(), dict(title=model.title)
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as temporary:
        folder = Path(temporary)
        paths = {name: folder / f'{name}.onnx' for name in COLUMNS}
        if published:
            paths = dict(zip(('torchscript', 'dynamo'), published, strict=False))
        for name, path in paths.items():
            failure = ''
            if not published:
                if name == 'onnxslim':
                    source = paths['dynamo' if 'verdict' in result['dynamo'] else 'torchscript']
                    failure = simplify(source, path)
                elif name == 'torchscript' and not model.is_for_torchscript:
                    failure = 'its forward is not for this exporter'
                else:
                    failure = export(model, module, name, path)
            count = SAMPLES if model.generate else 2 * SAMPLES
            result[name] = dict(failure=failure) if failure else prove(model, module, path, count=count)
            print(f' {name}: {result[name]}', flush=True)
        verdicts = {name: result.get(name, {}).get('verdict', '') for name in ('dynamo', 'torchscript')}
        of_faults = [paths[name] for name, verdict in verdicts.items() if verdict.startswith('PROVEN')]
        result['faults'] = judge_faults(model, module, of_faults[0], folder) if of_faults else {}
    return result


def cell(result: dict[str, Any] | None) -> str:
    """Return the text of a file in the table."""
    if result is None:
        return ''
    if result.get('failure'):
        return f'not exported ({result["failure"].partition(":")[0]})'
    if not result['verdict'].startswith('PROVEN'):
        return f'**{result["verdict"]}**'
    return f'{result["verdict"]}, {result["error"]:.1e}'


def faults_cell(faults: dict[str, str]) -> str:
    """Return how many faults were proven, and what found the others; '' if no file of the model is proven."""
    if not faults:
        return ''
    counts = [
        (kind, sum(value == kind for value in faults.values()))
        for kind in ('inputs', 'graph', 'ONNX Runtime')
    ]
    checks = ', '.join(f'{kind} {count}' for kind, count in counts if count)
    return f'{sum(value == "PROVEN" for value in faults.values())} of {len(faults)} ({checks})'


def write_pages(results: dict[str, Any], folder: Path = DOCS) -> None:
    """Write the table of all results into the pages of a folder."""
    rows = [
        (entry['title'], *(cell(entry.get(name)) for name in COLUMNS), faults_cell(entry['faults']))
        for entry in results.values()
    ]
    for page, head in HEADS.items():
        lines = [head, ('---',) * len(head), *rows]
        table = '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'
        path = folder / page
        path.write_text(insert_table(path.read_text(encoding='utf-8'), table, 'modules'), encoding='utf-8')


def main(argv: list[str] | None = None) -> None:
    """Measure the models that are named, and write the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('models', nargs='*', choices=[*MODELS, *PUBLISHED], metavar='MODEL')
    parser.add_argument('--checkout', type=Path, help='code of a model with published files')
    parser.add_argument('--files', type=Path, help='folder of these files')
    args = parser.parse_args(argv)
    if not (args.checkout and args.files) and {*args.models} & {*PUBLISHED}:
        parser.error(f'{" and ".join(PUBLISHED)} need --checkout and --files')
    torch.set_num_threads(1)
    compat.apply()
    results = json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.is_file() else {}
    for name in args.models:
        published: list[Path] = []
        if name in PUBLISHED:
            model, published = published_model(name, args.checkout, args.files)
        else:
            model = MODELS[name]
        print(name, flush=True)
        results[name] = measure(model, published)
        ordered = {key: results[key] for key in [*MODELS, *PUBLISHED] if key in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + '\n', encoding='utf-8')
        write_pages(ordered)


if __name__ == '__main__':
    main()
