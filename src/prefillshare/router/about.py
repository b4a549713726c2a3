"""What the router tells of itself: its models, its health, its metrics."""

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefillshare.router.drain import Drain
from prefillshare.router.errors import RouterError, model_not_found
from prefillshare.router.fleet import Fleet
from prefillshare.router.flow.control import FlowControl
from prefillshare.router.metrics import Metrics


class About:
    def __init__(self, fleet: Fleet, metrics: Metrics, draining: Drain) -> None:
        self._fleet, self._metrics, self._draining = fleet, metrics, draining
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/health", self._health),
            Route("/metrics", self._prometheus),
        ]

    async def _models(self, request: Request) -> Response:
        cards = [self._card(request, model) for model in self._callable_by(request)]
        return JSONResponse({"object": "list", "data": cards})

    async def _model(self, request: Request) -> Response:
        model = request.path_params["model"]
        if model not in (known := self._callable_by(request)):
            raise model_not_found(model, sorted(known))
        return JSONResponse(self._card(request, model))

    async def _health(self, request: Request) -> Response:
        """200 when every model can be served. Who is no operator learns nothing else."""
        fleet, draining = self._fleet, self._draining.begun
        routes = [fleet.routes[model] for model in fleet.models]
        ready = all(route.prefill.ready() and route.decode.ready() for route in routes) and not draining
        status = "ok" if ready else "draining" if draining else "unavailable"
        body: dict[str, object] = {"status": status}
        if request.scope["user"].caller.operator:
            body["pools"] = {pool.name: pool.report() for pool in fleet.pools}
            body["models"] = {
                model: {"prefill": route.prefill.name, "decode": route.decode.name}
                for model, route in fleet.routes.items()
            }
        return JSONResponse(body, 200 if ready else 503)

    async def _prometheus(self, request: Request) -> Response:
        check_operator(request)
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    def _callable_by(self, request: Request) -> tuple[str, ...]:
        return request.scope["user"].caller.may_call(self._fleet.models)

    def _card(self, request: Request, model: str) -> dict[str, object]:
        """With what vLLM's cards have besides OpenAI's, which its benchmark and LiteLLM read."""
        flow: FlowControl = request.app.state.services.flow
        return {
            "id": model,
            "object": "model",
            "created": self._created,
            "owned_by": "prefillshare",
            "root": model,  # at a worker the folder, which is nobody's business here
            "parent": None,
            "max_model_len": flow.longest_call(self._fleet.routes[model].decode),
        }


def check_operator(request: Request) -> None:
    """Raises RouterError (403) for a caller whose key is not an operator's. Where no key is needed everybody is one."""
    if not request.scope["user"].caller.operator:
        raise RouterError(403, f"{request.url.path} is for keys with `operator: true`.", code="not_an_operator")
