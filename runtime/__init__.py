"""Runtime: sessions and devices."""

from .devices.base import LayerWaits
from .session import DeviceWarning, InferenceSession, Profile, Segment, SessionStats

__all__ = ["DeviceWarning", "InferenceSession", "LayerWaits", "Profile", "Segment", "SessionStats"]
