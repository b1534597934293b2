"""Runtime: sessions and devices."""

from .devices.base import Device, LayerWaits, RegionResult
from .session import DeviceWarning, InferenceSession, PassedOver, Profile, Segment, SessionStats
from .trace import TracedTensor

__all__ = [
    "Device",
    "DeviceWarning",
    "InferenceSession",
    "LayerWaits",
    "PassedOver",
    "Profile",
    "RegionResult",
    "Segment",
    "SessionStats",
    "TracedTensor",
]
