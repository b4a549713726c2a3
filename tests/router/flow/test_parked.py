from prefillshare.router.flow.parked import Parked
from tests.router.fakes import prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")


def test_kv_takes_room_until_it_is_released() -> None:
    parked = Parked({"a": 100})
    release = parked.hold(A, 60)
    assert parked.has_room(A, 40)
    assert not parked.has_room(A, 41)
    assert parked.has_room(B, 10**9)  # nobody knows its limit
    release()
    assert parked[A] == 0
    assert parked.has_room(A, 101)  # alone
