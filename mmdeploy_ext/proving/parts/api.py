"""Parts of any detector, from Python."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import after_weights
from mmdeploy_ext.proving.parts.export import ModelFactory, RecordedPart, export_folder, read_model
from mmdeploy_ext.proving.parts.folder import CutFolder
from mmdeploy_ext.proving.parts.proof import prove_folder
from mmdeploy_ext.proving.parts.record import Recording
from mmdeploy_ext.proving.parts.samples import samples_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.spec.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class ExportedParts:
    """Result of `export_parts`.

    Attributes:
        folder: the files and their manifest.
        factory: config and checkpoint.
        samples: keyword arguments of the test path.
        recorded: parts with their calls, and the run of the test path.
    """

    folder: CutFolder
    factory: ModelFactory
    samples: Sequence[Any]
    recorded: tuple[list[RecordedPart], Recording]

    def prove(self) -> Verdict:
        """Prove the files against the model, on the samples of the export."""
        with after_weights():
            return prove_folder(self.factory, self.folder, self.samples, self.recorded)


def export_parts(
    config: str | Path,
    checkpoint: str | Path,
    parts: Sequence[str],
    output: str | Path = 'cut',
    *,
    samples: Sequence[dict[str, Any]] = (),
    names: Mapping[str, str] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> ExportedParts:
    """Export parts of a detector, as `mm2onnx export --parts`. Call `prove` to compare.

    Args:
        config: mmcv 1.x config; the model needs no family.
        checkpoint: the weights.
        parts: paths of modules, joined by '+', or methods: 'backbone+neck', 'extract_feat()'.
        output: folder for `parts.json` and a file per part.
        samples: keyword arguments of the test path, in order; (): the config's data set, else views of
            the package's image. A proof needs at least two.
        names: path of a tensor, such as 'mlvl_feats.0', -> its name in the files.
        cfg_options: dotted key -> value that overrides the config.
        options: `opset`, `exporter` ('torchscript', 'dynamo'), `precision` ('fp32', 'fp16'), `simplify`,
            `seeded`.

    Raises:
        UsageError: unreadable config, or unknown part.
        ConfigError: a part cannot be one graph; the message names the argument or constant.
        ExportError: the exporter failed.
    """
    factory = read_model(config, checkpoint, cfg_options)
    chosen = list(samples) or samples_of(factory.cfg)[0]
    folder, *recorded = export_folder(factory, list(parts), chosen, output, options, names)
    return ExportedParts(folder, factory, chosen, tuple(recorded))
