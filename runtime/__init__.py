"""Runtime: sessions and devices."""

from .session import DeviceWarning, InferenceSession, Profile, Segment, SessionStats

__all__ = ["DeviceWarning", "InferenceSession", "Profile", "Segment", "SessionStats"]
