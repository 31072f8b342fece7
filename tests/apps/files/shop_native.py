"""The shop as a native handler."""

import time

import pages

from quiesce import Response

pages.begin()


def app(request):
    upload = pages.Upload()
    if request.file is not None:
        while data := request.file.read(65536):
            upload.feed(data)
    query = request.query.decode("latin-1")
    if wait_s := pages.slow_s(request.path, query):
        time.sleep(wait_s)
    nonce = dict(request.headers).get(b"x-nonce", b"-").decode("latin-1")
    page = pages.answer(request.path, query, nonce, upload)
    body = iter(page.parts) if page.chunked else page.parts[0]
    return Response(body, page.status, page.headers)
