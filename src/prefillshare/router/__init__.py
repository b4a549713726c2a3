"""The router: an ASGI app that turns one OpenAI call into a prefill leg and a decode leg.

Its modules, in the order in which a call meets them (docs/architecture.md has the words):

    server, bounded_protocol, turned_away   what is turned away before the app sees it
    gate, auth, tenants, rates, limits      who calls, and how much they may
    endpoint, exchange, record              one request from its body to its last byte, and what is noted of it
    drain, disconnect                       what ends it early: a router that stops, a client that leaves
    admission, unsupported, sampling, sessions, call
                                            a body becomes a `Call`, or is refused by name
    choices                                 several answers to one request, a call each
    serving                                 one call from its ticket to its last byte, over all that it tries
    flow/                                   the call waits for room on its workers, and gets a `Ticket`
    relay                                   runs the two legs
    route, tools, legs                      which pools serve the model, whether it calls tools, what each leg sends
    placement/, divergence                  rules that choose the worker of a leg; a notice where sharing is lost
    turns, while_up, fast_json              a leg waits for its turn on a shared device, and ends with its worker
    hedge, retry                            a second worker that may be faster, or that may succeed
    answer, sse                             what the client sees of the decode worker's answer
    accounting                              who paid for the base KV that the call reused
    extension/                              after the answer: the base prefills it for the next call

What stands behind the calls:

    pool, worker_facts, fleet               the workers, what they have in common, and all that is served at the moment
    health/                                 which workers are up
    admin/                                  they join, drain and leave while the router runs
    observer, metrics, worker_metrics, tenant_metrics, tracing, log_format, status/, about
                                            everything that the router tells of its calls and of itself
    errors, privacy                         what a client is told of a failure, and what a log may say of one
    services, assembly, app                 all of it put together; `app.create_app` is where to begin reading
"""
