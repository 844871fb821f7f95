"""A module and constants of the kits that tests judge."""

from mmdeploy_ext.bench.kit.runners import run_onnxruntime

GENERATED = [dict(name='generated', licence='Apache-2.0')]
FRAMES = 4
ATSS = 'configs/demo/atss_toy.py', 'demo/checkpoints/atss_toy.pth'
MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, image, time, memory):
        pooled = torch.relu(self.conv(image)).mean((2, 3))
        age = torch.sin((time - 1.6e9).float())
        memory = 0.5 * memory + pooled + age
        return self.head(memory), memory

def make():
    torch.manual_seed(0)
    return Net().eval()

def samples():
    generator = torch.Generator().manual_seed(1)
    for index in range(3):
        image = torch.rand(1, 3, 16, 16, generator=generator)
        time = torch.tensor([1.6e9 + 0.5 * index + 0.1], dtype=torch.float64)
        yield image, time, torch.rand(1, 8, generator=generator)
"""


def run(kit, outputs):
    """Run a kit in ONNX Runtime here; return both folders."""
    run_onnxruntime.main(str(outputs), kit=kit)
    return kit, outputs


def load(folder):
    """Return the names that the file module.py of a folder defines."""
    code = {}
    exec(compile((folder / 'module.py').read_text(), str(folder / 'module.py'), 'exec'), code)
    return code
