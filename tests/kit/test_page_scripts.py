"""What scripts of a kit's page do beside the rules: a verdict on nothing, order and padding."""

import json
import shutil
import subprocess

import pytest

from mmdeploy_ext.kit.page import SOURCES

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(shutil.which('node') is None, reason='skipped: no Node.js here'),
]


def in_node(folder, body):
    """Run JavaScript that may import the modules of the page, and return what it prints, as JSON."""
    shutil.copytree(SOURCES, folder / 'node_modules/kit')
    (folder / 'node_modules/kit/package.json').write_text('{"type": "module"}')
    (folder / 'run.mjs').write_text(body)
    command = ['node', 'run.mjs']
    return json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)


def test_order_and_padding_of_results_are_judged_as_by_the_command(tmp_path):
    body = """
        import { judgeCase } from 'kit/judge.js';
        const output = (name, dtype, axes) => ({ name, dtype, axes, compare: 'detections', groups: [] });
        const outputs = [output('dets', 'float32', ['B', 'n', 5]), output('labels', 'int64', ['B', 'n'])];
        const metadata = { form: 'full', spec: { outputs }, postprocess: { num_classes: 3 } };
        metadata.options = {};
        const bars = { iou_bar: 0.99, score_bar: 1e-4, score_thr: 0.05, pair_iou: 0.5 };
        const kit = { metadata, manifest: { bars, task: 'bbox2d', cases: [] } };
        const box = (left) => [left, 0, left + 10, 10];
        const reference = {
          scores: [0.9, 0.5], labels: [2, 1], boxes: Float32Array.of(...box(0), ...box(50)),
        };
        const judge = (rows) => {
          const dets = Float32Array.from(rows.flatMap(([left, score]) => [...box(left), score]));
          const labels = BigInt64Array.from(rows, ([, , label]) => BigInt(label));
          const arrays = {
            dets: { dtype: 'float32', shape: [1, rows.length, 5], values: dets },
            labels: { dtype: 'int64', shape: [1, rows.length], values: labels },
          };
          const kitCase = { name: '0', title: '', images: ['a'], results: [reference], tensors: {} };
          return judgeCase({ ...kitCase, inputs: {}, beside: {} }, arrays, kit).failures;
        };
        const [best, second, padding] = [[0, 0.9, 2], [50, 0.5, 1], [0, 0, -1]];
        const lists = [
          [best, second, padding], [second, best, padding], [best, second, [0, 0, 0]],
          [best, second, [0, 0.2, -1]], [best, second, [0, 0.04, 3]], [best, second, padding, [0, -1, 0]],
        ];
        console.log(JSON.stringify(lists.map(judge)));
    """
    right, *others = in_node(tmp_path, body)
    assert right == []
    reasons = ['scores do not descend', 'padding without label -1', 'a label outside of 0..2']
    reasons += ['a label outside of 0..2', 'a negative score behind padding']
    for failures, reason in zip(others, reasons, strict=True):
        assert len(failures) == 1 and reason in failures[0], failures
