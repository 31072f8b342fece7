"""The shop as an ASGI application, with a lifespan."""

import asyncio

import pages

pages.begin()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    upload = pages.Upload()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        upload.feed(message.get("body", b""))
        more = message.get("more_body", False)
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    if wait_s := pages.slow_s(path, query):
        await asyncio.sleep(wait_s)
    nonce = dict(scope["headers"]).get(b"x-nonce", b"-").decode("latin-1")
    page = pages.answer(path, query, nonce, upload)
    headers = [(name.lower().encode(), value.encode()) for name, value in page.headers]
    await send({"type": "http.response.start", "status": page.status, "headers": headers})
    for part in page.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def lifespan(receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
