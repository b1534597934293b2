"""When a session loads and closes its device."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.errors import DeviceError
from nnloom.runtime import DeviceWarning, InferenceSession
from nnloom.runtime import session as session_module
from nnloom.runtime.devices.model import ModelDevice


class Board(ModelDevice):
    """The golden model as a board that can be unplugged."""

    simulated = False

    def __init__(self) -> None:
        super().__init__()
        self.loads, self.gone, self.closed = 0, False, False

    def load(self, artifact):
        if self.gone:
            raise DeviceError("gone")
        self.loads += 1
        super().load(artifact)

    def run_region(self, *arguments, **options):
        if self.gone:
            raise DeviceError("gone")
        return super().run_region(*arguments, **options)

    def close(self):
        self.closed = True
        super().close()


def test_a_device_that_cannot_be_loaded_is_closed(plain):
    board = Board()
    board.gone = True
    with pytest.raises(DeviceError, match="gone"):
        InferenceSession(plain, board, fallback=False)
    assert board.closed


def test_a_device_is_loaded_once_for_all_requests_and_once_after_a_failure(plain, monkeypatch):
    monkeypatch.setattr(session_module, "BACK_OFF_SECONDS", (0.0, 0.0))
    board = Board()
    with InferenceSession(plain, board) as session:
        x = np.zeros(session.get_inputs()[0].shape, np.int8)
        for _ in range(3):
            session.run(x)
        assert board.loads == 1
        board.gone = True
        with pytest.warns(DeviceWarning):
            session.run(x)
        assert not session.device_up
        board.gone = False
        for _ in range(3):
            session.run(x)
        assert session.device_up and board.loads == 2
