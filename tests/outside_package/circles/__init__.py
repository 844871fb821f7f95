from mmdeploy_ext import register_family
from mmdeploy_ext.contract.options import Option

RADIUS = Option('radius', 'pixels', 'what the graph gives: pixels, or their logarithm', ('pixels', 'log'))
register_family(
    'circles',
    'circles.family:CircleFamily',
    options=(RADIUS,),
    facts='circles.runtime:CircleFacts',
    runtime='circles.runtime',
)
