"""The shop as a FastAPI application, with a lifespan."""

import contextlib

import fastapi
import fastapi.responses
import pages

pages.begin()


@contextlib.asynccontextmanager
async def lifespan(app):
    pages.note("lifespan", "startup")
    yield
    pages.note("lifespan", "shutdown")


app = fastapi.FastAPI(lifespan=lifespan)


async def page(request: fastapi.Request):
    upload = pages.Upload()
    async for data in request.stream():
        upload.feed(data)
    nonce = request.headers.get("x-nonce", "-")
    found = pages.answer(request.url.path, request.url.query, nonce, upload)
    if found.chunked:
        return fastapi.responses.StreamingResponse(
            iter(found.parts), status_code=found.status, headers=dict(found.headers)
        )
    return fastapi.Response(found.parts[0], status_code=found.status, headers=dict(found.headers))


app.add_api_route("/{path:path}", page, methods=["GET", "POST"])
