"""Programs that load VAD's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'vad',
    'autoware',
    'mmdeploy_ext.systems.vad.targets.autoware_export:VadFiles',
    'mmdeploy_ext.systems.vad.targets.autoware:AutowareVad',
    help="the three files that Autoware's tensorrt_vad loads, of plain operators",
    fixes=dict(precision='fp32'),
    checks='mmdeploy_ext.targets.autoware.check',
)
