"""The shop as a Flask application."""

import flask
import pages

pages.begin()
app = flask.Flask("shop")


@app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/<path:path>", methods=["GET", "POST"])
def page(path):
    upload = pages.Upload()
    while data := flask.request.stream.read(65536):
        upload.feed(data)
    query = flask.request.query_string.decode("latin-1")
    found = pages.answer("/" + path, query, flask.request.headers.get("X-Nonce", "-"), upload)
    body = iter(found.parts) if found.chunked else found.parts[0]
    return flask.Response(body, status=found.status, headers=found.headers)
