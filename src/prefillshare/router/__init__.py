"""The router: an ASGI app that turns one OpenAI call into a prefill leg and a decode leg."""
