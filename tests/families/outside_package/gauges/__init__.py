from mmdeploy_ext import register_family

register_family(
    'gauges',
    'gauges.family:GaugeFamily',
    claims=('GaugeHead',),
    runtime='mmdeploy_ext.families.common.runtime.padded_results',
)
