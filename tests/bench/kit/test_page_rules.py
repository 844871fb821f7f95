"""The rules of a kit's page, in JavaScript, are those in Python: pictures bit for bit, matches, tensors."""

from pathlib import Path

import numpy as np
import pytest

import headless
from browser_pages import COUNTS, counts, in_page
from mmdeploy_ext.bench import kit
from mmdeploy_ext.bench.kit.contents import result_parts
from mmdeploy_ext.bench.kit.page import bars_of
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.runtime.tasks import task_module
from mmdeploy_ext.spec.comparison import compare_tensors
from mmdeploy_ext.spec.preparation import PreprocessRule
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL, ColumnGroup, GraphSpec, TensorSpec


@pytest.fixture(scope='module')
def page():
    """The scripts of a kit's page, in Node."""
    if headless.NODE is None:
        pytest.skip('no Node here: `apt install nodejs` (Debian) installs it')
    return headless.Node(Path(kit.__file__).parent / 'web')


RULES = {
    'keep ratio': dict(
        img_scale=(96, 64), size_divisor=32, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    ),
    'stretch': dict(img_scale=(90, 51), keep_ratio=False, std=(3.3, 7.7, 0.3)),
    'as it is': dict(to_rgb=False, mean=(103.5, 116.3, 123.7)),
    'fixed': dict(size=(64, 96), pad_val=(114.0, 0.1, -1.0), std=(255.0, 255.0, 255.0)),
    'fixed, stretch': dict(size=(31, 97), keep_ratio=False),
    'padded size': dict(img_scale=(64, 48), pad_size=(70, 50), to_rgb=False),
    'Pillow': dict(img_scale=(96, 64), resize='pillow'),
    'Pillow, stretch': dict(img_scale=(50, 77), keep_ratio=False, resize='pillow'),
    'centred': dict(pad_or=127, pad_more=1, centred=True),
    'centred, odd': dict(img_scale=(77, 77), size_divisor=11, centred=True),
}
PICTURES = ((60, 80), (37, 91), (128, 64), (3, 2), (64, 96), (96, 128), (102, 180), (1, 9), (301, 17))
"""Heights and widths: smaller and larger than what the rules resize to, exact halves among them."""


@pytest.mark.matrix
def test_pictures_are_prepared_bit_for_bit_as_in_python(page):
    random = np.random.default_rng(0)
    rules = {name: PreprocessRule(**values) for name, values in RULES.items()}
    body = """
        const { prepare } = await import('kit/prepare.js');
        const [height, width] = pixels.shape;
        return rules.map((rule) => prepare(rule, { height, width, values: pixels.values }));
    """
    for shape in PICTURES:
        pixels = random.integers(0, 256, (*shape, 3), np.uint8)
        answer = in_page(page, body, pixels=pixels, rules=[rule.to_json() for rule in rules.values()])
        for (name, rule), prepared in zip(rules.items(), answer, strict=True):
            expected = prepare_image(rule, pixels)
            assert prepared['shape'] == list(expected.tensor.shape[1:]), (name, shape)
            assert prepared['content'] == list(expected.img_shape), (name, shape)
            assert prepared['border'] == list(expected.border), (name, shape)
            assert prepared['original'] == list(shape)
            assert prepared['scale'].tobytes() == expected.scale_factor.tobytes()
            assert prepared['tensor'].tobytes() == expected.tensor.tobytes(), (name, shape)


def generated_pair(random, task):
    """Return the results of an image, and others: moved, rescored, lost, in another order."""
    count, (height, width) = int(random.integers(0, 12)), (24, 40)
    corners = np.sort(random.integers(0, (width, height), (count, 2, 2)), axis=1)
    corners = corners.reshape(-1, 4).astype(np.float32)
    labels = random.integers(0, 2, count)
    rows, columns = np.mgrid[:height, :width]
    x1, y1, x2, y2 = corners.T[..., None, None]
    masks = (columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2)
    scores = random.choice(np.float32([0.02, 0.0999, 0.1, 0.3, 0.3, 0.7]), count)
    order = random.permutation(count)[: count - int(random.integers(0, 2))]
    moved = corners[order] + random.choice([0, 0, 2e-3, 0.1, 4], (len(order), 4)).astype(np.float32)
    rescored = scores[order] + random.choice([0, 0, 5e-5, 5e-4, 0.1], len(order)).astype(np.float32)
    flipped = masks[order] ^ (random.random((len(order), height, width)) < random.choice([0, 0.001, 0.02]))
    if task == 'bbox2d':
        return Detections(corners, scores, labels), Detections(moved, rescored, labels[order])
    if task == 'panoptic':
        ones = np.ones(count, np.float32)
        return (
            Segments(masks, ones, labels, labels),
            Segments(flipped, ones[order], labels[order], labels[order]),
        )
    if task == 'mask':
        return Instances(masks, scores, labels), Instances(flipped, rescored, labels[order])
    return (
        Instances(masks, scores, labels, corners, scores),
        Instances(flipped, rescored, labels[order], moved, rescored),
    )


@pytest.mark.matrix
@pytest.mark.parametrize('task', ['bbox2d', 'mask', 'boxed_mask', 'panoptic'])
def test_generated_results_are_matched_as_in_python(page, task):
    random = np.random.default_rng(1)
    pairs = [generated_pair(random, task) for _ in range(60)]
    match = task_module(task).match_detections
    expected = [counts(match('', *pair)) for pair in pairs]
    answer = in_page(
        page,
        """
            const { matchResults } = await import('kit/matching.js');
            const { resultsOfKit } = await import('kit/results.js');
            return pairs.map((pair) => {
                const row = matchResults(...pair.map(resultsOfKit), task, bars);
                return counts.map((name) => row[name]);
            });
        """,
        pairs=[[result_parts(results)[1] for results in pair] for pair in pairs],
        task=task,
        bars=bars_of(task),
        counts=COUNTS,
    )
    assert answer == expected
    assert all(sum(row[index] for row in expected) for index in range(5)), 'each count occurs'


GROUPS = (ColumnGroup('xy', (0, 1), 'pixel', 1e-4, 0.01), ColumnGroup('score', (2,), '', 1e-3))
SPEC = GraphSpec(
    'test',
    (),
    (
        TensorSpec('boxes', 'float32', ('n', 3), groups=GROUPS),
        TensorSpec('ids', 'int64', ('n',), groups=(ColumnGroup(rtol=0.0),)),
        TensorSpec('places', 'int64', ('n',)),
        TensorSpec('flags', 'bool', ('n',)),
        TensorSpec('uncovered', 'float32', ('n', 3), groups=GROUPS[:1]),
        TensorSpec('table', 'float32', ('n', 4)),
        TensorSpec('maps', 'float32', (1, 'n', 2, 2)),
        TensorSpec('wide', 'float32', ('n', 205)),
        TensorSpec('flat', 'float32', ('m',)),
    ),
)
WIDE = np.concatenate([np.full((6, 5), 640.0), np.full((6, 200), 0.5)], 1).astype(np.float32)
BOXES = np.random.default_rng(3).normal(0, 50, (6, 3)).astype(np.float32)
TENSORS = dict(
    boxes=BOXES,
    ids=np.arange(2**60, 2**60 + 6),
    places=np.arange(6) * 20000,
    flags=BOXES[:, 0] > 0,
    uncovered=BOXES,
    table=np.float32([[900, 2e5, 0.5, -1e9], [700, 3, 0.25, -1e9], [30, 2, 0.125, -1e9]]),
    maps=np.float32([900, 500, 300, 100, 0.9, 0.5, 0.3, 0.1]).reshape(1, 2, 2, 2),
    wide=WIDE,
    flat=WIDE.ravel(),
)
ROUNDING = dict(table=np.full((3, 4), 2e-5, np.float32))
ROUNDING['flat'] = np.where(WIDE.ravel() > 1, 1e-3, 1e-5).astype(np.float32)


def changed(name, place, by):
    array = TENSORS[name].copy()
    array[place] += by
    return {name: array}


CHANGES = {
    'nothing': {},
    'NaN': dict(boxes=BOXES * np.nan),
    'zeros': dict(boxes=BOXES * 0),
    'within the tolerance': dict(boxes=BOXES + np.float32(0.009)),
    'outside of it': dict(boxes=BOXES + np.float32(0.02)),
    'numbers that are equal as float64': dict(ids=TENSORS['ids'] + 1),
    'places': dict(places=TENSORS['places'] + 3),
    'flags': dict(flags=~TENSORS['flags']),
    'shape': dict(boxes=BOXES[:5]),
    'dtype': dict(ids=np.arange(6, dtype=np.int32)),
    'empty': dict(boxes=BOXES[:0]),
    'a score by three roundings': changed('table', (0, 2), 5.5e-5),
    'a score by more': changed('table', (0, 2), 7e-5),
    'beside a larger magnitude': changed('table', (1, 1), 1e-3),
    'another mask': changed('table', (0, 3), 1e6),
    'a channel by less than 1e-6 of the largest': changed('maps', (0, 1, 0, 0), 8e-4),
    'a channel by more': changed('maps', (0, 1, 0, 0), 2e-3),
    'a column of many': changed('wide', (2, 7), 1e-4),
    'a column of many, a little': changed('wide', (2, 7), 4e-5),
    'every 205th value': changed('flat', 5, 1e-3),
    'every 205th value, a little': changed('flat', 5, 4e-5),
    'an infinity': changed('maps', (0, 1, 0, 0), np.inf),
}


@pytest.mark.matrix
def test_tensors_are_compared_as_in_python(page):
    candidates = {name: {**TENSORS, **change} for name, change in CHANGES.items()}
    expected = {
        name: [
            [row.tensor, row.passed] for row in compare_tensors(TENSORS, candidate, SPEC, lambda _: ROUNDING)
        ]
        for name, candidate in candidates.items()
    }
    body = """
        const [{ compareTensors }, { withGroups }] = await Promise.all(
            ['tensors', 'kit'].map((name) => import(`kit/${name}.js`)));
        withGroups(spec, rtol);
        const compare = (candidate) => compareTensors(expected, candidate, spec, rounding);
        return Object.fromEntries(Object.entries(candidates).map(([name, candidate]) => (
            [name, compare(candidate).map((row) => [row.name, !row.reason])]
        )));
    """
    answer = in_page(
        page,
        body,
        expected=TENSORS,
        candidates=candidates,
        spec=SPEC.to_json(),
        rounding=ROUNDING,
        rtol=DEFAULT_RTOL,
    )
    assert answer == expected
    assert not all(passed for rows in expected.values() for _, passed in rows[:-1])


# --- the contract of tests/proving/test_loop.py -----------------------------------------------------------

COVERED = tuple(tensor for tensor in SPEC.outputs if tensor.name != 'uncovered')
WANTED = {tensor.name: TENSORS[tensor.name] for tensor in COVERED}


def judged(page, cases, expected=WANTED):
    """Return the page's verdict on outputs of cases, and the failures of each."""
    body = """
        const [{ judgeCase, verdictOf }, { withGroups }] = await Promise.all(
            ['judge', 'kit'].map((name) => import(`kit/${name}.js`)));
        withGroups(spec, rtol);
        const bars = { low_alone: 0, low_alone_share: 0 };
        const kit = { metadata: { spec }, manifest: { bars, cases: [] } };
        const stored = { title: 'input', images: [], results: [], inputs: {}, beside: {}, rounding: {} };
        const judgements = cases.map((outputs, index) => (
            judgeCase({ ...stored, name: `case ${index}`, tensors: expected }, outputs, kit)));
        return { verdict: verdictOf(judgements, kit), failures: judgements.map((one) => one.failures) };
    """
    facts = dict(spec=GraphSpec('test', (), COVERED).to_json(), rtol=DEFAULT_RTOL)
    answer = in_page(page, body, cases=cases, expected=expected, **facts)
    return answer['verdict'], answer['failures']


def test_a_page_keeps_the_contract_equal_sides_pass(page):
    verdict, failures = judged(page, [WANTED] * 3)
    assert verdict['equal'] and verdict['claim'] == 'EQUAL ON 3 INPUTS'
    assert failures == [[], [], []]


def test_a_page_keeps_the_contract_one_changed_value_fails_its_case_and_is_named(page):
    verdict, failures = judged(page, [WANTED, {**WANTED, **changed('table', (0, 2), 0.1)}, WANTED])
    assert not verdict['equal'] and failures[::2] == [[], []]
    assert 'case 1' in failures[1][0] and 'table' in failures[1][0]


def test_a_page_keeps_the_contract_an_output_that_is_missing_fails_its_case_alone(page):
    without = {name: array for name, array in WANTED.items() if name != 'maps'}
    verdict, failures = judged(page, [without, WANTED])
    assert not verdict['equal'] and not failures[1]
    assert 'maps' in failures[0][0] and 'missing' in failures[0][0]


def test_a_page_keeps_the_contract_nothing_compared_never_passes(page):
    assert not judged(page, [])[0]['equal']
    assert not judged(page, [WANTED], expected={})[0]['equal']
