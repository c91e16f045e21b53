"""TLS, which gunicorn itself speaks."""

import hashlib
import ssl
from http.client import HTTPSConnection

from gunicorn_cluster_ext.routing.rules import rendezvous
from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.stock import Mode, modes, subject_of, whoami


@modes
def test_tls(gunicorn: StartGunicorn, certificate: Certificate, mode: Mode) -> None:
    args = (*certificate.gunicorn_options, "--keep-alive", "20", "--threads", "4")
    config = "cluster_sticky = ['hash:ip', 'cookie']\n" if mode.hands_over else ""
    server = gunicorn(
        "misbehaving:app", "-k", mode.kind, "-w", "2", *args, config=config, wait=False
    )
    server.wait_listening()
    subject = subject_of(server, mode)
    trusting = ssl.create_default_context(cafile=str(certificate.path))
    seen = []
    for _ in range(6):
        client = HTTPSConnection("127.0.0.1", server.port, context=trusting, timeout=30)
        try:
            pids = set()
            for slot in (0, 1, 0):
                client.request("GET", "/who", headers={"Cookie": f"gunicorn_worker={slot}"})
                who = whoami(client)
                assert (who["scheme"], who["client"]) == ("https", "127.0.0.1")
                pids.add(who["pid"])
            assert len(pids) == 1, "one connection stays with one worker"
            body = b"secret" * 100_000
            client.request("POST", "/", body=body)
            assert whoami(client)["sha1"] == hashlib.sha1(body).hexdigest()
            seen.append(who["worker"])
        finally:
            client.close()
    if mode.hands_over:
        assert set(seen) == {rendezvous(b"127.0.0.1", range(2))}
    if subject.view is not None:
        assert "cannot work with TLS" in server.log_text()
        client = HTTPSConnection("127.0.0.1", server.port, context=trusting, timeout=30)
        client.request("GET", "/who")
        response = client.getresponse()
        assert response.headers["Set-Cookie"] is None
        client.close()
    # A client that speaks plainly harms nobody.
    with server.connect() as connection:
        connection.send(request_bytes("GET", "/"))
        connection.closed_by_peer()
    server.stop()
    assert "Traceback" not in server.log_text()
