"""The shop as a WSGI application."""

import time

import pages

pages.begin()


def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
    upload = pages.Upload()
    while data := environ["wsgi.input"].read(65536):
        upload.feed(data)
    if wait_s := pages.slow_s(path, query):
        time.sleep(wait_s)
    page = pages.answer(path, query, environ.get("HTTP_X_NONCE", "-"), upload)
    start_response(f"{page.status} Said", page.headers)
    return iter(page.parts) if page.chunked else page.parts
