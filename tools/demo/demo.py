"""The demonstration: the commands that a user would type, one after another, on generated data."""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG, CHECKPOINT = 'configs/demo/atss_toy', 'demo/checkpoints/atss_toy.pth'
DATA = 'data/toy_coco'


def steps(out: str) -> list[tuple[str, list[str]]]:
    """Return what each step is for and its command; `out` is the folder of the report.

    Relative paths begin at the root of the repository, where commands run. The pictures of the data
    set are those that are there now, see `val_images`.
    """
    model = 'work_dirs/atss_toy/atss_toy_full.onnx'
    images = ['demo/toy.jpg', *(f'{DATA}/val2017/{name}' for name in val_images())]
    proof = f'python tools/deployment/verify.py {CONFIG}.py {CHECKPOINT} {model} --images'.split()
    runner = f'python tools/onnx/onnx_with_postprocess.py {model} demo/toy.jpg --out'.split()
    return [
        ('generate a COCO-format data set', f'python -m mmdeploy_ext synthetic coco --out {DATA}'.split()),
        (
            'evaluate the PyTorch model; dump its tensors',
            f'tools/dist_test_pth.sh {CONFIG}_pth.py {CHECKPOINT} 1 --eval=bbox'.split(),
        ),
        (
            'export it, compare it with the dump, evaluate it in ONNX Runtime',
            f'tools/dist_test_onnx.sh {CONFIG}_onnx.py {CHECKPOINT} 1 --eval=bbox'.split(),
        ),
        (
            'prove the file on images that the export never saw, and on the data set',
            [*proof, *images, '--eval', 'bbox', '--report', out],
        ),
        ('use the file without PyTorch', [*runner, f'{out}/toy_det.png']),
    ]


def val_images() -> list[str]:
    """Return the names of up to four pictures of the validation set; [] as long as there is no data set."""
    folder = ROOT / DATA / 'val2017'
    names = sorted(path.name for path in folder.glob('*.*')) if folder.is_dir() else []
    return [*names[:2], *names[3:5]]


def main(argv: list[str] | None = None) -> int:
    """Run all steps and return 0; the first that fails ends the demonstration with its status.

    `argv` are the words of the command line, None those of `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out', default='work_dirs/demo', help='folder of the report (default: work_dirs/demo)'
    )
    args = parser.parse_args(argv)
    start = time.perf_counter()
    count = len(steps(args.out))
    for index in range(count):
        purpose, command = steps(args.out)[index]
        print(f'\n[{index + 1}/{count}] {purpose}\n$ {shlex.join(command)}', flush=True)
        command = [sys.executable if word == 'python' else word for word in command]
        if command[0].startswith('tools/'):
            command = ['env', f'PYTHON={sys.executable}', *command]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            print(
                f'error: step {index + 1} ended with status {status}: {shlex.join(command)}', file=sys.stderr
            )
            return status
    print(
        f'\nDone in {time.perf_counter() - start:.0f} s. Where things are:\n'
        f'  {args.out}/report.html         the proof, one self-contained page\n'
        f'  {args.out}/detections.png      both engines side by side\n'
        f'  {args.out}/toy_det.png         detections of the ONNX file alone\n'
        f'  work_dirs/atss_toy/            the exported file, both metrics, the dumped tensors'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
