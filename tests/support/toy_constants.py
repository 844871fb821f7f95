"""The constants of the toys' files as one hash per toy."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
if __name__ == '__main__':
    sys.path.insert(0, str(REPO))

import onnx  # noqa: E402

from mmdeploy_ext.families import model as deploy  # noqa: E402
from mmdeploy_ext.graph.io.index import all_tensors  # noqa: E402

IMAGES = {
    'atss': dict(dynamic=True),
    'solov2': dict(dynamic=True),
    'decoupled_solo': dict(dynamic=True),
    'rtdetr': dict(dynamic=True),
    'rtdetr fixed': dict(),
    'rtdetr simplified': dict(simplify=True),
}
STREAMS = {
    'stream_petr': dict(),
    'stream_petr fork': dict(contract='fork'),
    'centerpoint': dict(),
}
CONFIGS = {
    'stream_petr': 'projects/configs/StreamPETR/stream_petr_toy.py',
    'centerpoint': 'projects/configs/BEVFusion/centerpoint_toy.py',
}


def digest(name: str) -> str:
    """Return the SHA-256 of all constants of a toy's files: types, shapes and bytes, whatever their names."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for path in _export(name, Path(folder)):
            for tensor in all_tensors(onnx.load(path)):
                array = onnx.numpy_helper.to_array(tensor)
                values = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
                found.append(f'{array.dtype.str} {array.shape} '.encode() + values)
    return hashlib.sha256(b'\n'.join(sorted(found))).hexdigest()


def _export(name: str, folder: Path) -> list[str]:
    import mmdeploy_ext.families.mmdet3d_plugin
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.families.files import export_files
    from mmdeploy_ext.preprocess.pictures import read_image

    toy = name.split()[0]
    config = str(REPO / CONFIGS.get(toy, f'configs/demo/{toy}_toy.py'))
    deployment = deploy.load(config, str(REPO / f'demo/checkpoints/{toy}_toy.pth'))
    if name in STREAMS:
        target = folder / ('fork.onnx' if 'fork' in name else 'files')
        return export_files(deployment, deployment.family.choose(**STREAMS[name]), str(target))[0]
    options = deployment.family.choose(opset=17, height=192, width=256, **IMAGES[name])
    picture = deploy.prepare_fixed(deployment.rule, read_image(REPO / 'demo/toy.jpg'), 192, 256)
    export_files(deployment, options, str(folder / 'toy.onnx'), [picture])
    return [str(folder / 'toy.onnx')]


if __name__ == '__main__':
    from mmdeploy_ext import compat

    compat.apply()
    for asked in sys.argv[1:]:
        print(asked, digest(asked))
