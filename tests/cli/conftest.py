"""Verbs in the test's own process."""

import logging

import pytest


@pytest.fixture
def keep_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging stays as pytest set it up."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
