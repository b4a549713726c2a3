import pytest


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on how long is simulated."""
    monkeypatch.setattr("prefillshare.simulate.plan.SHORT_CALLS", 500)
    monkeypatch.setattr("prefillshare.simulate.plan.LONG_CALLS", 2000)
