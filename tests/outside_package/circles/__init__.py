from mmdeploy_ext import register_family
from mmdeploy_ext.contract.options import Option
from mmdeploy_ext.contract.schema import full_record, number

RADIUS = Option('radius', 'pixels', 'what the graph gives: pixels, or their logarithm', ('pixels', 'log'))
CHECK = full_record(count=number(1, 1000, integer=True), stride=number(1, 64, integer=True))
register_family(
    'circles', 'circles.family:CircleFamily', options=(RADIUS,), postprocess=CHECK, runtime='circles.runtime'
)
