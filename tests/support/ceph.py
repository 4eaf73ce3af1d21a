"""A real S3 server on loopback: Ceph's gateway with one monitor and one object store below it.

From Debian's packages ceph-mon, ceph-osd, ceph-common and radosgw. Objects live in memory; they and
their metadata outlive the gateway, which is what dies in tests. Everything is below one folder, is
owned by this process, and dies with it.
"""

import contextlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{ports[0]}/0,v1:127.0.0.1:{ports[1]}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file =
crash dir = {folder}
auth allow insecure global id reclaim = false
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon data avail crit = 1
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class update on start = false
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{ports[2]}
rgw thread pool size = 32
rgw run sync thread = false
rgw enable quota threads = false
rgw enable gc threads = false
rgw enable lc threads = false
"""
_KEYS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *"],
    "client.rgw": ["mon", "allow rw", "osd", "allow rwx"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
}
_ACCESS_KEY, _SECRET_KEY = "ceph-tester", "secret-of-the-ceph-tester"


@dataclass
class Gateway:
    """A running server. Only its front end is ever killed: what was written stays."""

    folder: Path
    port: int
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    parent: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead a process, this or another, to the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start the front end, and wait until it answers."""
        assert not self.runs
        self._run("radosgw", "-n", "client.rgw")
        self._wait("radosgw", self._answers)

    @property
    def runs(self) -> bool:
        """Whether the front end runs."""
        return "radosgw" in self.processes

    def kill(self) -> None:
        """Kill the front end as a power cut would; its port refuses connections from now on."""
        process = self.processes.pop("radosgw")
        process.kill()
        process.wait()

    def bucket(self, name: str) -> str:
        """Make a bucket (names have at least 3 characters); return its URI."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def make_key(self, key: str) -> None:
        """Give the user one more access key, which is its own secret."""
        self._admin("key", "create", "--uid", "tester", "--access-key", key, "--secret", key)

    def drop_key(self, key: str) -> None:
        """Take an access key away."""
        self._admin("key", "rm", "--uid", "tester", "--access-key", key)

    def client(self) -> Any:
        """Return a boto3 client of the server, whatever this process's environment."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=_ACCESS_KEY,
            aws_secret_access_key=_SECRET_KEY,
            region_name="us-east-1",
            config=Config(request_checksum_calculation="when_required"),
        )

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.environment["AWS_ENDPOINT_URL"], timeout=5):
                return True
        except urllib.error.HTTPError as refused:
            refused.close()
            return True
        except OSError:
            return False

    def _run(self, program: str, *arguments: str) -> None:
        # Whatever ends this process, the kernel then ends its daemons; to the kernel it is the
        # thread that counts, so they all come from one that lives as long as the server.
        command = ["setpriv", "--pdeathsig", "KILL", program, "-f", *self._config(), *arguments]
        with open(self.folder / f"{program}.out", "ab") as out:
            self.processes[program] = self.parent.submit(
                subprocess.Popen, command, stdout=out, stderr=subprocess.STDOUT
            ).result()

    def _wait(self, program: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not ready():
            process = self.processes[program]
            if process.poll() is not None or time.monotonic() > until:
                said = (self.folder / f"{program}.out").read_text(errors="replace")[-3000:]
                raise RuntimeError(
                    f"{program} did not start (status {process.returncode}):\n{said}"
                )
            time.sleep(0.05)

    def _config(self) -> tuple[str, str]:
        return "-c", str(self.folder / "ceph.conf")

    def _call(self, *command: str) -> None:
        program, *arguments = command
        done = subprocess.run(
            [program, *self._config(), *arguments], capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

    def _admin(self, *command: str) -> None:
        self._call("radosgw-admin", "-n", "client.rgw", *command)

    def build(self) -> None:
        """Start everything, from nothing."""
        config, fsid = self.folder / "ceph.conf", str(uuid.uuid4())
        ports = (*_free_ports(2), self.port)
        config.write_text(_CONFIG.format(fsid=fsid, folder=self.folder, ports=ports))
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        Path(keyring).touch()
        for name, caps in _KEYS.items():
            pairs = zip(caps[::2], caps[1::2], strict=True)
            allowed = [word for who, what in pairs for word in ("--cap", who, what)]
            self._call("ceph-authtool", keyring, "--gen-key", "-n", name, *allowed)
        addresses = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
        self._call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monmap)
        self._call("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._run("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._call("ceph", "osd", "new", osd)
        self._call("ceph", "auth", "import", "-i", keyring)
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph-osd", "-i", "0")
        self.start()
        keys = ("--access-key", _ACCESS_KEY, "--secret", _SECRET_KEY)
        self._admin("user", "create", "--uid", "tester", "--display-name", "tester", *keys)

    def stop(self) -> None:
        """End everything and forget it."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.parent.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Gateway]:
    """Give a fresh server, its data below `folder` (a short path: sockets have names of 108 bytes)."""
    gateway = Gateway(folder, port=_free_ports(1)[0])
    try:
        gateway.build()
        yield gateway
    finally:
        gateway.stop()


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
