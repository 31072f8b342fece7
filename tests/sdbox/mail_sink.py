"""A mail server that takes one message after another and writes each to a file.  Type=notify.

python mail_sink.py PORT FILE
"""

import os
import socket
import sys


def main(port: int, path: str) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    while True:
        client, _ = listener.accept()
        with client, client.makefile("rwb") as stream:
            _talk(stream, path)


def _talk(stream, path):
    def say(line):
        stream.write(line + b"\r\n")
        stream.flush()

    say(b"220 sink")
    while line := stream.readline():
        verb = line[:4].upper()
        if verb == b"DATA":
            say(b"354 go on")
            with open(path, "ab") as file:
                while (text := stream.readline()) not in (b".\r\n", b""):
                    file.write(text)
        say(b"221 bye" if verb == b"QUIT" else b"250 ok")
        if verb == b"QUIT":
            return


main(int(sys.argv[1]), sys.argv[2])
