"""What scripts of a kit's page do beside the rules: outputs in an archive, and a verdict on nothing."""

import json
import shutil
import subprocess
import tarfile

import pytest

from mmdeploy_ext.kit.page import SOURCES

pytestmark = pytest.mark.skipif(shutil.which('node') is None, reason='skipped: no Node.js here')

LONG = '/model/' + 'layer.0/' * 14 + 'Add_output_0'


def in_node(folder, body):
    """Run JavaScript that may import the modules of the page, and return what it prints, as JSON."""
    shutil.copytree(SOURCES, folder / 'node_modules/kit')
    (folder / 'node_modules/kit/package.json').write_text('{"type": "module"}')
    (folder / 'run.mjs').write_text(body)
    command = ['node', 'run.mjs']
    return json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)


def test_outputs_with_long_names_are_in_the_archive_by_their_names(tmp_path):
    body = """
        import fs from 'node:fs';
        import { OutputArchive } from 'kit/archive.js';
        const archive = new OutputArchive('hash');
        const array = { dtype: 'float32', shape: [2], values: Float32Array.of(1, 2) };
        archive.addCase('000', { 'LONG': array, dets: array });
        fs.writeFileSync('outputs.tar', Buffer.from(await archive.toBlob().arrayBuffer()));
        console.log('null');
    """
    in_node(tmp_path, body.replace('LONG', LONG))
    with tarfile.open(tmp_path / 'outputs.tar') as archive:
        names = archive.getnames()
    stem = LONG.replace('/', '%2F')
    assert names == ['outputs/kit.txt', f'outputs/000/{stem}.npy', 'outputs/000/dets.npy']


def test_empty_tensors_are_equal_and_nothing_compared_is_not(tmp_path):
    body = """
        import { judgeCase, verdictOf } from 'kit/judge.js';
        const groups = [{ name: '', columns: null, unit: '', rtol: 1e-4, atol: 0 }];
        const output = { name: 'y', dtype: 'float32', axes: ['n', 2], compare: 'values', groups };
        const bars = { low_alone: 0, low_alone_share: 0 };
        const kit = { metadata: { form: 'raw', spec: { outputs: [output] } }, manifest: { bars, cases: [] } };
        const y = (n) => ({ dtype: 'float32', shape: [n, 2], values: new Float32Array(2 * n) });
        const judge = (expected, got) =>
          judgeCase({ name: '0', results: [], tensors: { y: y(expected) } }, { y: y(got) }, kit);
        const judgements = [judge(0, 0), judge(0, 1), judge(1, 0)];
        console.log(JSON.stringify(judgements.map((one) => verdictOf([one], kit).failures)));
    """
    empty, *others = in_node(tmp_path, body)
    assert empty == ['nothing was compared: PyTorch has no result in these inputs']
    assert [failures[0].partition('shape')[2] for failures in others] == [
        ': got 1x2, expected 0x2',
        ': got 0x2, expected 1x2',
    ]
