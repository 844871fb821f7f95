import dataclasses

from mmdeploy_ext.contract.facts import Count, Facts, Stride


@dataclasses.dataclass(frozen=True)
class CircleFacts(Facts):
    count: Count
    stride: Stride
