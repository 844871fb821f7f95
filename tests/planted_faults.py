"""Faults planted in our own code, so that a fresh export has them too: only its inputs can tell.

Each is one that somebody could make: a wrong constant, axis, sign or default, a case forgotten. What the
PyTorch reference runs stays as it is: modules that both share are faulty only while they are traced.
"""

import planted_atss_rtdetr
import planted_frames
import planted_networks
import planted_solo
import planted_streampetr
from planting import FAULTS

MODULES = (planted_networks, planted_atss_rtdetr, planted_solo, planted_frames, planted_streampetr)
__all__ = ['FAULTS', 'MODULES']
