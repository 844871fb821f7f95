"""Record what a detector computes in the environment that trained it.

    python record.py CONFIG CHECKPOINT --inputs ask --out recorded

`ask` is the folder that `mm2onnx record --ask` wrote. Start it in the folder in which you start tools/test.py.
It needs numpy, torch and your libraries, and nothing of mm2onnx: Python 3.6 or newer, torch 1.5 or newer, with
mmcv 1 (mmdet 2, mmdet3d 0.x to 1.0) or mmengine (mmdet 3, mmdet3d 1.1 and newer).
"""

import argparse
import contextlib
import copy
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback

import numpy as np
import torch

FORMAT = 1
HEADS = ('bbox_head', 'pts_bbox_head', 'rpn_head', 'head')
PLACES = ('mmdet3d.core.bbox', 'mmdet3d.core', 'mmdet3d.structures', 'mmdet.core', 'mmdet.structures')
LIBRARIES = ('mmdet3d', 'mmdet')
BOXES = ('BaseInstance3DBoxes', 'BasePoints', 'BaseBoxes')
FACTS_OF_BOXES = ('box_dim', 'with_yaw', 'points_dim', 'attribute_dims')


# ---- nested values as JSON and named arrays


class Tree:
    """Nested values as JSON; their arrays are in `arrays`, by name. `unknown` has types that were left out."""

    def __init__(self):
        self.arrays, self.unknown = {}, set()

    def put(self, value):
        """Return the JSON of a value."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if np.isfinite(value) else {'__float__': repr(value)}
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = value.to_dense() if value.is_sparse else value
            value = value.float() if value.dtype == getattr(torch, 'bfloat16', None) else value
            return self._array(value.numpy(), tensor=True)
        if isinstance(value, np.generic):
            return self.put(value.item())
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, type):
            of_library = [base for base in value.__mro__ if base.__module__.split('.')[0] in LIBRARIES]
            return {'__class__': (of_library or [value])[0].__name__}
        if isinstance(value, dict):
            if all(isinstance(key, str) and not key.startswith('__') for key in value):
                return {key: self.put(inner) for key, inner in value.items()}
            return {'__items__': [[self.put(key), self.put(inner)] for key, inner in value.items()]}
        if isinstance(value, tuple):
            return {'__tuple__': [self.put(inner) for inner in value]}
        if isinstance(value, (list, set, frozenset)):
            return [self.put(inner) for inner in value]
        return self._object(value)

    def _object(self, value):
        kinds = [base.__name__ for base in type(value).__mro__]
        name = type(value).__name__
        if 'DataContainer' in kinds:
            return self.put(value.data)
        if 'Enum' in kinds:
            return {'__enum__': '%s.%s' % (name, value.name)}
        if any(kind in kinds for kind in BOXES):
            entry = {key: self.put(getattr(value, key)) for key in FACTS_OF_BOXES if hasattr(value, key)}
            entry.update(__boxes__=name, tensor=self.put(value.tensor))
            if hasattr(value, 'gravity_center') and len(value.tensor):  # a measurement of the box convention
                entry.update(gravity_center=self.put(value.gravity_center), corners=self.put(value.corners))
            return entry
        if 'BaseDataElement' in kinds:  # mmengine's InstanceData, DetDataSample, Det3DDataSample
            return {'__element__': name, 'data': self.put(dict(value.items()))}
        if 'InstanceData' in kinds:  # mmdet 2.12 to 2.28
            return {'__element__': name, 'data': self.put(dict(value.items()))}
        if 'BitmapMasks' in kinds:
            return self.put(value.masks)
        self.unknown.add('%s.%s' % (type(value).__module__, name))
        return {'__unknown__': name}

    def _array(self, value, **facts):
        value = np.asarray(value)
        if value.dtype == object:
            return [self.put(entry) for entry in value.tolist()]
        if value.dtype == bool and value.size > 64:  # masks
            facts['bits'] = list(value.shape)
            value = np.packbits(value.reshape(-1))
        facts['__array__'] = 'a%d' % len(self.arrays)
        self.arrays[facts['__array__']] = value
        return facts


def restored(entry, arrays, device='cpu', classes=None):
    """Return the value of a `Tree`'s JSON.

    `classes` is a function from the name of a class to the class, for classes, enumerations and boxes.
    Without it boxes and data elements are dictionaries.
    """

    def of(inner):
        return restored(inner, arrays, device, classes)

    if isinstance(entry, list):
        return [of(inner) for inner in entry]
    if not isinstance(entry, dict):
        return entry
    if '__array__' in entry:
        value = arrays[entry['__array__']]
        if 'bits' in entry:
            count = int(np.prod(entry['bits']))
            value = np.unpackbits(value)[:count].astype(bool).reshape(entry['bits'])
        return torch.from_numpy(np.array(value)).to(device) if entry.get('tensor') else value
    if '__float__' in entry:
        return float(entry['__float__'])
    if '__tuple__' in entry:
        return tuple(of(inner) for inner in entry['__tuple__'])
    if '__items__' in entry:
        return {of(key): of(inner) for key, inner in entry['__items__']}
    if '__class__' in entry:
        return classes(entry['__class__']) if classes else entry['__class__']
    if '__enum__' in entry:
        name, _, member = entry['__enum__'].partition('.')
        return getattr(classes(name), member) if classes else entry['__enum__']
    if '__boxes__' in entry and classes:
        facts = {key: of(entry[key]) for key in ('box_dim', 'with_yaw') if key in entry}
        return classes(entry['__boxes__'])(of(entry['tensor']), **facts)
    if '__element__' in entry:
        return of(entry['data'])
    return {key: of(inner) for key, inner in entry.items()}


def digest(arrays):
    """Return the SHA-256 of arrays, in order of their names."""
    sha = hashlib.sha256()
    for name in sorted(arrays, key=lambda name: int(name[1:])):
        array = np.ascontiguousarray(arrays[name])
        sha.update(str((array.dtype.str, array.shape)).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def weight_digest(tensor):
    """Return the SHA-256 of a weight's sorted values: equal for every layout of a kernel."""
    values = tensor.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    return hashlib.sha256(np.sort(values.numpy(), axis=None).tobytes()).hexdigest()


def file_digest(path):
    sha = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            sha.update(block)
    return sha.hexdigest()


# ---- the libraries


class Refusal(Exception):
    """What the user has to change, in one line."""


def optional(name):
    """Import a module; None if its package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if getattr(error, 'name', None) and name.startswith(error.name):
            return None
        raise


def class_named(name):
    for place in PLACES:
        module = optional(place)
        if hasattr(module, name):
            return getattr(module, name)
    raise Refusal('the inputs need the class %s, and none of %s has it' % (name, ', '.join(PLACES)))


def import_plugin(cfg, path):
    """Import `plugin_dir` as the tools/test.py of DETR3D, BEVFormer and StreamPETR do."""
    if cfg.get('plugin'):
        folder = cfg.get('plugin_dir') or os.path.dirname(path)
        importlib.import_module(
            '.'.join(part for part in re.split(r'[/\\]', folder) if part not in ('', '.'))
        )


def without_augmentation(steps, said):
    """Switch test-time augmentation off, and say it."""
    for step in steps:
        if not str(step.get('type')).startswith('MultiScaleFlipAug'):
            continue
        scale = step.get('img_scale')
        scales = scale if isinstance(scale, list) else [scale]
        if (
            step.get('flip')
            or step.get('pcd_horizontal_flip')
            or step.get('pcd_vertical_flip')
            or len(scales) > 1
        ):
            said.append('test-time augmentation is off: %s with one scale, not flipped' % step['type'])
            step.update({key: False for key in step if 'flip' in key and isinstance(step[key], bool)})
            if len(scales) > 1:
                step['img_scale'] = scales[0]
    return steps


def innermost(settings):
    """Return the first data set of a loader, a list or wrappers such as ConcatDataset."""
    inner = settings
    while inner:
        settings = inner[0] if isinstance(inner, (list, tuple)) else inner
        inner = settings.get('dataset') or settings.get('datasets')
    return settings


def without_annotations(steps):
    return [step for step in steps if 'Annotations' not in str(step['type'])]


class Mmcv1:
    """mmdet 2, and mmdet3d 0.x to 1.0.0rc6."""

    def __init__(self, args):
        import mmcv
        from mmcv.parallel import DataContainer, collate
        from mmcv.runner import load_checkpoint

        self.collate, self.container, self.device, self.said = collate, DataContainer, args.device, []
        self.cfg = cfg = mmcv.Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        import_plugin(cfg, args.config)
        self.has_3d = optional('mmdet3d') is not None
        builders = importlib.import_module('mmdet3d.models' if self.has_3d else 'mmdet.models')
        build = getattr(builders, 'build_model', None) or builders.build_detector
        if cfg.model.get('pretrained'):
            cfg.model.pretrained = None
        cfg.model.train_cfg = None
        self.model = build(cfg.model, test_cfg=cfg.get('test_cfg'))
        self.loaded = load_checkpoint(self.model, args.checkpoint, map_location='cpu')
        self.classes = self.loaded.get('meta', {}).get('CLASSES') or cfg.get('class_names') or ()
        if cfg.get('fp16'):
            self.said.append('fp16 of the config is off: weights and values are float32')

    def test_cfg(self):
        return self.cfg.model.get('test_cfg') or self.cfg.get('test_cfg')

    def own_inputs(self, files, indices):
        """Return (name, function that returns what the user's own test pipeline gives) per sample."""
        if not files and not indices:
            return []
        settings = copy.deepcopy(innermost(self.cfg.data.test))
        steps = without_augmentation(settings.get('pipeline') or self.cfg.get('test_pipeline'), self.said)
        datasets = importlib.import_module('mmdet3d.datasets' if self.has_3d else 'mmdet.datasets')
        if files:
            pipelines = importlib.import_module(datasets.__name__ + '.pipelines')
            if not hasattr(pipelines, 'Compose'):  # mmdet3d 0.x
                pipelines = importlib.import_module('mmdet.datasets.pipelines')
            compose = pipelines.Compose(without_annotations(steps))
            return [(path, lambda path=path: compose(self._info(path))) for path in files]
        settings.update(pipeline=steps, test_mode=True)
        settings.pop('samples_per_gpu', None)
        data = datasets.build_dataset(settings)
        return [('sample %d' % index, lambda index=index: data[index]) for index in indices]

    def _info(self, path):
        if not path.endswith('.bin'):
            return dict(img_info=dict(filename=path), img_prefix=None)
        from mmdet3d.core.bbox import get_box_type

        box_type, box_mode = get_box_type('LiDAR')
        return dict(
            pts_filename=path,
            box_type_3d=box_type,
            box_mode_3d=box_mode,
            sweeps=[],
            timestamp=[0],
            img_fields=[],
            bbox3d_fields=[],
            pts_mask_fields=[],
            pts_seg_fields=[],
            bbox_fields=[],
            mask_fields=[],
            seg_fields=[],
        )

    def fed(self, sample):
        return self._single(self.collate([sample], samples_per_gpu=1))

    def _single(self, value):
        """What `scatter` gives one device: the first entry of each DataContainer."""
        if isinstance(value, self.container):
            return value.data[0]
        if isinstance(value, dict):
            return {key: self._single(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._single(inner) for inner in value)
        return value

    def run(self, arguments):
        return self.model(**arguments)


class Mmengine:
    """mmdet 3, and mmdet3d 1.1 and newer."""

    def __init__(self, args):
        from mmengine.config import Config
        from mmengine.dataset import pseudo_collate
        from mmengine.registry import init_default_scope
        from mmengine.runner import load_checkpoint

        self.collate, self.device, self.said = pseudo_collate, args.device, []
        self.cfg = cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        import_plugin(cfg, args.config)
        self.scope = cfg.get('default_scope') or 'mmdet'
        init_default_scope(self.scope)
        importlib.import_module(self.scope + '.utils').register_all_modules(True)
        self.registry = importlib.import_module(self.scope + '.registry')
        for settings in (cfg.model, cfg.model.get('backbone') or {}):
            settings.pop('pretrained', None), settings.pop('init_cfg', None)
        self.model = self.registry.MODELS.build(cfg.model)
        self.loaded = load_checkpoint(self.model, args.checkpoint, map_location='cpu')
        meta = self.loaded.get('meta', {}).get('dataset_meta') or {}
        self.classes = meta.get('classes') or meta.get('CLASSES') or ()

    def test_cfg(self):
        return self.cfg.model.get('test_cfg')

    def own_inputs(self, files, indices):
        if not files and not indices:
            return []
        settings = innermost(self.cfg.get('test_dataloader') or self.cfg.get('val_dataloader') or {})
        if not files:
            data = self.registry.DATASETS.build(dict(settings, test_mode=True))
            return [('sample %d' % index, lambda index=index: data[index]) for index in indices]
        from mmengine.dataset import Compose

        steps = settings.get('pipeline') or self.cfg.test_pipeline
        compose = Compose(without_annotations(steps))
        return [(path, lambda path=path: compose(self._info(path))) for path in files]

    def _info(self, path):
        if not path.endswith('.bin'):
            return dict(img_path=path, img_id=0)
        from mmdet3d.structures import get_box_type

        box_type, box_mode = get_box_type('LiDAR')
        return dict(
            lidar_points=dict(lidar_path=path),
            timestamp=1,
            axis_align_matrix=np.eye(4),
            box_type_3d=box_type,
            box_mode_3d=box_mode,
        )

    def fed(self, sample):
        return self.model.data_preprocessor(self.collate([sample]), False)

    def run(self, arguments):
        """Run arguments of mmdet 2's `forward` (img or points, img_metas) by `predict`."""
        metas = arguments['img_metas'][0]
        if 'points' in arguments:
            from mmdet3d.structures import Det3DDataSample

            samples = [Det3DDataSample(metainfo=dict(meta)) for meta in metas]
            data = dict(inputs=dict(points=list(arguments['points'][0])), data_samples=samples)
            return self.model(mode='predict', **self.model.data_preprocessor(data, False))
        from mmdet.structures import DetDataSample

        unknown = sorted(set(arguments) - {'img', 'img_metas', 'rescale', 'return_loss'})
        if unknown:
            raise Refusal('mmdet 3 takes no %s; export a file of pictures alone' % ', '.join(unknown))
        images = arguments['img'][0]
        samples = []
        for meta in metas:
            meta = dict(meta, batch_input_shape=tuple(images.shape[2:]))
            for key in ('img_shape', 'ori_shape', 'pad_shape'):
                meta[key] = tuple(meta[key][:2])
            meta['scale_factor'] = tuple(float(factor) for factor in meta['scale_factor'][:2])
            samples.append(DetDataSample(metainfo=meta))
        return self.model.predict(images, samples, rescale=arguments.get('rescale', True))


# ---- the recording


def check_weights(side, ignored):
    """Refuse random weights: `load_checkpoint` goes on where a weight is missing or has another shape."""
    state = side.loaded.get('state_dict', side.loaded)
    given = {
        re.sub(r'^module\.', '', key): value
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    wrong = []
    for key, value in side.model.state_dict().items():
        if key.endswith('num_batches_tracked') or any(key.startswith(prefix) for prefix in ignored):
            continue
        if key not in given:
            wrong.append('%s is not in the checkpoint' % key)
        elif given[key].shape != value.shape:
            wrong.append(
                '%s has the shape %s, the model %s' % (key, tuple(given[key].shape), tuple(value.shape))
            )
        elif not torch.equal(given[key].to(value.dtype), value.cpu()):
            wrong.append('%s has other values in the model' % key)
    if wrong:
        raise Refusal(
            'the checkpoint does not fill the model, a recording would have random weights: %s (%d weights). '
            'Give the config of the checkpoint, or --ignore-keys PREFIX for what is not used in the test'
            % ('; '.join(wrong[:3]), len(wrong))
        )


def facts_of(side, args):
    versions = dict(python=sys.version.split()[0], torch=torch.__version__, numpy=np.__version__)
    for name in ('mmcv', 'mmengine', 'mmdet', 'mmdet3d', 'mmseg', 'cv2', 'PIL', 'spconv'):
        if name in sys.modules:  # a package that the model does not need may be broken here
            versions[name] = str(getattr(sys.modules[name], '__version__', '?'))
    cfg = side.test_cfg()
    packages = [base.__module__.split('.')[0] for base in type(side.model).__mro__]
    return dict(
        format=FORMAT,
        versions=versions,
        library=next((name for name in packages if name in versions), 'torch'),
        device=args.device,
        cuda=torch.version.cuda,
        device_name=torch.cuda.get_device_name(0) if args.device.startswith('cuda') else '',
        checkpoint=dict(name=os.path.basename(args.checkpoint), sha256=file_digest(args.checkpoint)),
        config=dict(name=os.path.basename(args.config), sha256=file_digest(args.config)),
        test_cfg=Tree().put(json.loads(json.dumps(cfg, default=str))) if cfg else None,
        classes=[str(name) for name in side.classes],
        weights={key: weight_digest(value) for key, value in side.model.state_dict().items()},
        said=side.said,
    )


def heads_of(model, names):
    parts = dict(model.named_modules())
    unknown = [name for name in names if name not in parts]
    if unknown:
        children = ', '.join(name for name, _ in model.named_children())
        raise Refusal(
            '--module %s: the model has no such module; its children are %s' % (unknown[0], children)
        )
    return list(dict.fromkeys([name for name in HEADS if name in parts] + list(names)))


@contextlib.contextmanager
def watched(model, names, calls):
    """Inside the block (name, result) of each call of a module's `forward` is appended to `calls`.

    mmdet calls `head.forward(...)` itself, which runs no hook.
    """
    parts = dict(model.named_modules())
    heads = [(name, parts[name]) for name in names if name in parts]
    before = [(part, part.__dict__.get('forward')) for _, part in heads]

    def watching(name, forward):
        def instead(*args, **kwargs):
            outputs = forward(*args, **kwargs)
            calls.append((name, outputs))
            return outputs

        return instead

    for name, part in heads:
        part.__dict__['forward'] = watching(name, part.forward)
    try:
        yield
    finally:
        for part, forward in before:
            part.__dict__.pop('forward', None)
            if forward is not None:
                part.__dict__['forward'] = forward


def recorded(side, arguments, names):
    """Run the model; return JSON of its result and of its heads' outputs, their arrays, and the seconds."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    calls = []
    with watched(side.model, names, calls), torch.no_grad():
        start = time.time()
        result = side.run(arguments)
        seconds = time.time() - start
    tree = Tree()
    entry = dict(result=tree.put(result), seconds=round(seconds, 4))
    entry['modules'] = [dict(name=name, outputs=tree.put(outputs)) for name, outputs in calls]
    return entry, tree


def asked_of(folder):
    path = os.path.join(folder, 'ask.json')
    if not os.path.isfile(path):
        raise Refusal('--inputs %s: has no ask.json; write it with mm2onnx record --ask' % folder)
    with open(path, encoding='utf-8') as file:
        asked = json.load(file)
    if asked['format'] != FORMAT:
        raise Refusal(
            '%s has the format %s, this record.py reads %d: use the record.py next to it'
            % (path, asked['format'], FORMAT)
        )
    for call in asked['calls']:
        is_plain = re.match(r'\w+\.npz$', call['file'])
        if not is_plain or not os.path.isfile(os.path.join(folder, call['file'])):
            raise Refusal('%s: the file %r is not one of this folder' % (path, call['file']))
    return asked


def record(args, part):
    side = (Mmengine if optional('mmengine') and not optional('mmcv.runner') else Mmcv1)(args)
    check_weights(side, args.ignore_keys)
    side.model.to(args.device).eval()
    names = heads_of(side.model, args.module)
    manifest, unknown = facts_of(side, args), set()
    asked = asked_of(args.inputs)
    if asked['checkpoint'] != manifest['checkpoint']['sha256']:
        side.said.append('the checkpoint file differs from the one of the export: its weights are compared')
    passes = [], []
    models = [side.model, copy.deepcopy(side.model)]  # models keep a memory
    for number, model in enumerate(models):
        side.model = model
        for call in asked['calls']:
            with np.load(os.path.join(args.inputs, call['file']), allow_pickle=False) as file:
                arrays = dict(file)
            arguments = restored(call['arguments'], arrays, args.device, class_named)
            entry, tree = recorded(side, arguments, names)
            passes[number].append(digest(tree.arrays))
            if number:
                continue
            np.savez_compressed(os.path.join(part, call['file']), **tree.arrays)
            entry.update(name=call['name'], file=call['file'], input=call['input'])
            manifest.setdefault('calls', []).append(entry)
            unknown |= tree.unknown
            print('%s: %.1f s' % (call['name'], entry['seconds']))
    for entry, first, again in zip(manifest['calls'], *passes):
        entry['repeats'] = first == again
    manifest['own'] = []
    for number, (name, sample) in enumerate(side.own_inputs(args.images, args.indices)):
        np.random.seed(0)
        tree, file = Tree(), 'own_%d.npz' % number
        fed = tree.put(side.fed(sample()))
        np.savez_compressed(os.path.join(part, file), **tree.arrays)
        sha256 = file_digest(name) if os.path.isfile(name) else ''
        manifest['own'].append(dict(name=os.path.basename(name), sha256=sha256, file=file, fed=fed))
    manifest['unknown_types'] = sorted(unknown)
    with open(os.path.join(part, 'manifest.json'), 'w', encoding='utf-8') as file:
        json.dump(manifest, file, allow_nan=False)
    return manifest


def value_of(text):
    try:
        return json.loads(text)
    except ValueError:
        return {'True': True, 'False': False, 'None': None}.get(text, text)


def parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', metavar='CONFIG')
    add('checkpoint', metavar='CHECKPOINT')
    add('--inputs', required=True, metavar='ASK', help='folder of mm2onnx record --ask')
    add('--out', required=True, metavar='FOLDER', help='new folder')
    add(
        '--images',
        nargs='+',
        default=[],
        metavar='FILE',
        help='pictures or .bin sweeps for your own test pipeline',
    )
    add('--indices', nargs='+', type=int, default=[], metavar='N', help='samples of the data set for it')
    add(
        '--module',
        nargs='+',
        default=[],
        metavar='NAME',
        help='modules whose outputs are recorded besides the heads',
    )
    add(
        '--import',
        nargs='+',
        default=[],
        dest='imports',
        metavar='MODULE[:FUNCTION]',
        help='imported, and called, before mmcv',
    )
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='replace values of the config')
    add('--ignore-keys', nargs='+', default=[], metavar='PREFIX', help='weights that the checkpoint may lack')
    add('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    return parser


def main():
    args = parser().parse_args()
    part = ''
    try:
        for path in (args.config, args.checkpoint):
            if not os.path.isfile(path):
                raise Refusal('%s: no such file' % path)
        if os.path.exists(args.out):
            raise Refusal('--out %s: exists; name a new folder' % args.out)
        if args.device.startswith('cuda') and not torch.cuda.is_available():
            raise Refusal('--device %s: torch sees no GPU; type --device cpu' % args.device)
        if any('=' not in text for text in args.cfg_options):
            raise Refusal('--cfg-options: expected KEY=VALUE')
        args.cfg_options = {
            text.partition('=')[0]: value_of(text.partition('=')[2]) for text in args.cfg_options
        }
        sys.path.insert(0, os.getcwd())
        for name in args.imports:
            module, _, function = name.partition(':')
            module = importlib.import_module(module)
            if function:
                getattr(module, function)()
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        for backend in (torch.backends.cudnn, getattr(torch.backends.cuda, 'matmul', None)):
            if hasattr(backend, 'allow_tf32'):
                backend.allow_tf32 = False
        folder = os.path.abspath(args.out)
        if not os.path.isdir(os.path.dirname(folder)):
            os.makedirs(os.path.dirname(folder))
        part = tempfile.mkdtemp('.part', os.path.basename(folder) + '.', os.path.dirname(folder))
        os.mkdir(os.path.join(part, 'new'))  # with the usual permissions
        manifest = record(args, os.path.join(part, 'new'))
        os.rename(os.path.join(part, 'new'), folder)
    except Refusal as error:
        sys.exit('error: %s' % error)
    except Exception as error:
        traceback.print_exc()
        hint = ''
        if 'is not in the' in str(error):
            hint = '. Start in the folder of your repository, or name its module: --import MODULE'
        elif isinstance(error, (IOError, OSError)) and (args.indices or args.images):
            hint = '. No data set here? Leave out --indices: the inputs of the proof need none'
        sys.exit('error: %s: %s%s. Nothing was recorded' % (type(error).__name__, str(error)[:300], hint))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for line in manifest['said']:
        print('note: ' + line)
    if manifest['unknown_types']:
        print('note: not recorded: %s' % ', '.join(manifest['unknown_types']))
    other = [entry['name'] for entry in manifest['calls'] if not entry['repeats']]
    if other:
        print('note: a second run gives other values for %s' % ', '.join(other))
    print(
        '%s: %d inputs. Next, where the file was exported: mm2onnx verify ... --recorded %s'
        % (args.out, len(manifest['calls']), os.path.basename(args.out))
    )


if __name__ == '__main__':
    main()
