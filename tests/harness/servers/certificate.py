"""A self-signed certificate for 127.0.0.1."""

import subprocess
from pathlib import Path

from tests.harness.process import find_program


class Certificate:
    def __init__(self, directory: Path) -> None:
        self.path, self.key = directory / "cert.pem", directory / "key.pem"
        command = [find_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=test"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-keyout", str(self.key), "-out", str(self.path)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    @property
    def gunicorn_options(self) -> list[str]:
        return ["--keyfile", str(self.key), "--certfile", str(self.path)]

    def redis_options(self) -> dict[str, str]:
        """Return options of a redis-server that uses TLS with clients and with other servers."""
        return {
            "tls-cert-file": str(self.path),
            "tls-key-file": str(self.key),
            "tls-ca-cert-file": str(self.path),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
            "tls-cluster": "yes",
        }

    @property
    def query(self) -> str:
        """The query of a client's URL that makes it trust the certificate."""
        return f"?ssl_ca_certs={self.path}"
