"""A Django site in one file: uploads to a media directory, sends mail, runs a subprocess.  Copied into a release."""

import os
import subprocess
import sys
import tempfile

from django.conf import settings
from django.core.files.storage import default_storage
from django.core.mail import send_mail
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["localhost"],
    SECRET_KEY="not one",
    ROOT_URLCONF=__name__,
    MEDIA_ROOT=os.environ["MEDIA"],
    FILE_UPLOAD_MAX_MEMORY_SIZE=1000,  # larger uploads go through a temporary file
    EMAIL_HOST="127.0.0.1",
    EMAIL_PORT=2525,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["MEDIA"] + "/site.db"}},
)


def upload(request):
    given = request.FILES["file"]
    temporary = given.temporary_file_path()
    return HttpResponse(f"{default_storage.save(given.name, given)} by way of {temporary}")


def mail(request):
    sent = send_mail("A parcel", "is on its way", "shop@localhost", ["you@localhost"])
    return HttpResponse(f"{sent} sent")


def run(request):
    code = "import os; print(os.getuid(), sum(range(10)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    return HttpResponse(done.stdout)


def query(request):
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("create table if not exists parcels (name text)")
        cursor.execute("insert into parcels values ('a')")
        cursor.execute("select count(*) from parcels")
        return HttpResponse(str(cursor.fetchone()[0]))


def temporary(request):
    """Names of files that were made in all the places where libraries make them."""
    names = []
    for folder in (None, "/tmp", "/var/tmp", "/dev/shm"):
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            names.append(file.name)
    return HttpResponse("\n".join(names))


def home(request):
    return HttpResponse("welcome")


urlpatterns = [
    path("", home),
    path("upload", upload),
    path("mail", mail),
    path("run", run),
    path("query", query),
    path("temporary", temporary),
]
settings.MIDDLEWARE = []
application = get_wsgi_application()
