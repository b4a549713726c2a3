"""The workers' connector for tests of failures: its pulls stop at a chosen point until the test lets them go on."""

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from prefillshare.engine.connector import SharedPrefillConnector
from tests.e2e.failing import AFTER_READ, BEFORE_READ, reached

if TYPE_CHECKING:
    from vllm.forward_context import ForwardContext
    from vllm.v1.kv_cache_interface import KVCacheConfig


class HeldConnector(SharedPrefillConnector):
    """Holds pulls while a file of the point's name lies in `kv_connector_extra_config["hold_dir"]`.

    A pull is held alone: the engine's loop goes on, so other requests run, abort and end meanwhile.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._hold_dir = Path(vllm_config.kv_transfer_config.kv_connector_extra_config["hold_dir"])
        self._held: dict[str, Any] = {}
        if role is KVConnectorRole.WORKER:
            self._pop_done_transfers = self.connector_worker._pop_done_transfers
            self.connector_worker._pop_done_transfers = self._pop_unless_held

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        pulls = self._connector_metadata.reqs_to_recv
        if self._holds(BEFORE_READ, pulls):
            self._held.update(pulls)
            pulls.clear()
        elif not (self._hold_dir / BEFORE_READ).exists():
            pulls.update(self._held)
            self._held.clear()
        super().start_load_kv(forward_context, **kwargs)

    def _pop_unless_held(self, transfers: dict[str, list[int]]) -> tuple[set[str], set[str]]:
        if self._holds(AFTER_READ, transfers):
            return set(), set()
        return self._pop_done_transfers(transfers)

    def _holds(self, point: str, pulls: Sized) -> bool:
        if not len(pulls) or not (self._hold_dir / point).exists():
            return False
        (self._hold_dir / reached(point)).touch()
        return True
