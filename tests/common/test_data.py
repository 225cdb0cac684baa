"""Data root, checksums, downloads from a server on this machine, unpacking."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from common.data import (
    DatasetSpec,
    RemoteFile,
    array_sha256,
    data_root,
    download,
    fetch,
    file_sha256,
    locate,
    missing,
    unpack,
)
from common.errors import DataError

BODY = np.random.default_rng(0).bytes(300_000)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


BODY_SHA256 = sha256(BODY)


class Server(ThreadingHTTPServer):
    """Serves BODY, as well or badly as the test asks for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        self.honours_range = True
        self.cuts = []
        self.status = 200
        self.delay = 0.0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/body.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not server.honours_range:
            start = 0
        if start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        end = server.cuts.pop(0) if server.cuts else len(BODY)
        for position in range(start, end, 10_000):
            self.wfile.write(BODY[position : min(position + 10_000, end)])
            time.sleep(server.delay)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def dataset(url, checksum=BODY_SHA256, **more):
    file = RemoteFile("body.bin", url, checksum, "https://example.org")
    fields = {
        "name": "toy",
        "domain": "graphs",
        "title": "",
        "task": "",
        "licence": "",
        "citation": "",
        "size": "",
        "files": (file,),
    }
    return DatasetSpec(**(fields | more))


def test_data_root_is_the_variable_or_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLUSTRAST_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("CLUSTRAST_DATA", "~/somewhere")
    assert data_root() == Path.home() / "somewhere"
    monkeypatch.delenv("CLUSTRAST_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root().name == "clustrast"


def test_the_package_imports_neither_torch_nor_numpy():
    code = "import sys, common.data; print({'torch', 'numpy', 'lightning'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_array_checksum_sees_values_types_and_shapes():
    array = np.arange(6, dtype=np.int32)
    different = [array[::-1], array.astype(np.int64), array.reshape(2, 3), array.astype("f4")]
    sums = {array_sha256(one) for one in [array, *different]}
    assert len(sums) == 5
    assert array_sha256(array) == array_sha256(array.astype(">i4"))
    assert array_sha256(array, array) != array_sha256(array)


def test_fetch_brings_a_file_once(server, tmp_path):
    spec = dataset(server.url)
    assert missing(spec, tmp_path) == list(spec.files)
    path = tmp_path / "toy" / "body.bin"
    assert fetch(spec, tmp_path) == [path]
    assert path.read_bytes() == BODY
    assert missing(spec, tmp_path) == []
    assert fetch(spec, tmp_path) == []
    assert len(server.ranges) == 1
    assert locate(spec, "body.bin", tmp_path) == path
    assert list(path.parent.glob("*.part")) == []


def test_fetch_shows_progress_only_on_a_terminal(server, tmp_path, capsys):
    fetch(dataset(server.url), tmp_path, progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_broken_connection_is_continued(server, tmp_path):
    server.cuts = [100_000, 250_000]
    [path] = fetch(dataset(server.url), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=250000-"]


def test_a_connection_that_keeps_breaking_leaves_the_part_for_the_next_call(server, tmp_path):
    server.cuts = [100_000, 150_000, 200_000]
    spec = dataset(server.url)
    with pytest.raises(DataError, match="200000 of 300000 bytes") as caught:
        fetch(spec, tmp_path)
    assert str(tmp_path / "toy" / "body.bin") in str(caught.value)
    assert "clustrast datasets fetch toy" in str(caught.value)
    assert [file.name for file in missing(spec, tmp_path)] == ["body.bin"]
    [path] = fetch(spec, tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges[-1] == "bytes=200000-"


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.honours_range = False
    server.cuts = [100_000]
    [path] = fetch(dataset(server.url), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 5])
def test_a_part_of_full_or_too_great_length(server, tmp_path, size):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "body.bin.part").write_bytes((BODY + b"extra")[:size])
    [path] = fetch(dataset(server.url), tmp_path)
    assert path.read_bytes() == BODY


def test_wrong_bytes_never_get_the_name(server, tmp_path):
    spec = dataset(server.url, checksum=sha256(b"something else"))
    with pytest.raises(DataError, match="SHA-256"):
        fetch(spec, tmp_path)
    assert not list((tmp_path / "toy").glob("body.bin*"))


def test_a_stale_part_is_thrown_away_and_the_next_call_succeeds(server, tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "body.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="thrown away"):
        fetch(dataset(server.url), tmp_path)
    [path] = fetch(dataset(server.url), tmp_path)
    assert path.read_bytes() == BODY


def test_a_damaged_file_is_replaced_only_by_a_whole_one(server, tmp_path):
    path = tmp_path / "toy" / "body.bin"
    path.parent.mkdir()
    path.write_bytes(BODY[:-1])
    spec = dataset(server.url)
    with pytest.raises(DataError, match=r"damaged or incomplete.*clustrast datasets fetch toy"):
        locate(spec, "body.bin", tmp_path)
    server.status = 404
    with pytest.raises(DataError):
        fetch(spec, tmp_path)
    assert path.read_bytes() == BODY[:-1]
    server.status = 200
    fetch(spec, tmp_path)
    assert path.read_bytes() == BODY


def test_a_file_of_unknown_checksum_is_fetched_whole(server, tmp_path):
    server.cuts = [50_000]
    [path] = fetch(dataset(server.url, checksum=None), tmp_path)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3)])
def test_a_refusal_names_address_place_and_command(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(DataError) as caught:
        fetch(dataset(server.url), tmp_path)
    message = str(caught.value)
    for part in (str(status), server.url, str(tmp_path / "toy" / "body.bin"), "fetch toy"):
        assert part in message
    assert "\n" not in message
    assert len(server.ranges) == requests


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(DataError, match=r"cannot download .*it belongs at .*fetch toy"):
        fetch(dataset("http://127.0.0.1:9/body.bin"), tmp_path)


def test_a_root_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*CLUSTRAST_DATA"):
        fetch(dataset(server.url), tmp_path / "file" / "root")
    assert server.ranges == []


def test_a_root_without_permission(server, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=r"cannot write .*Permission denied.*CLUSTRAST_DATA"):
        fetch(dataset(server.url), tmp_path)


def test_a_disk_that_fills_keeps_what_has_arrived(server, tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, chunk):
            if self.tell() > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(chunk)

    whole_open = Path.open

    def open_on_full_disk(self, mode="r", *args, **kwargs):
        if self.suffix == ".part" and mode != "rb":
            return FullDisk(self, mode)
        return whole_open(self, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(DataError, match=r"cannot write .*No space left on device"):
            fetch(dataset(server.url), tmp_path)
    part = tmp_path / "toy" / "body.bin.part"
    kept = part.read_bytes()
    assert len(kept) > 100_000
    assert BODY.startswith(kept)
    [path] = fetch(dataset(server.url), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges[-1] == f"bytes={len(kept)}-"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_leaves_a_part_that_is_continued(server, tmp_path):
    server.delay = 0.05
    spec = dataset(server.url)
    code = (
        "import sys\n"
        "from common.data import fetch, DatasetSpec, RemoteFile\n"
        "file = RemoteFile('body.bin', sys.argv[1], sys.argv[2], '')\n"
        "fetch(DatasetSpec('toy', '', '', '', '', '', '', (file,)), sys.argv[3])\n"
    )
    arguments = [server.url, BODY_SHA256, str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE)
    part = tmp_path / "toy" / "body.bin.part"
    deadline = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors
    kept = part.stat().st_size
    assert 0 < kept < len(BODY)
    server.delay = 0.0
    [path] = fetch(spec, tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges[-1] == f"bytes={kept}-"


def test_two_fetches_at_once_bring_the_file_once(server, tmp_path):
    server.delay = 0.005
    spec = dataset(server.url)
    brought = []
    threads = [
        threading.Thread(target=lambda: brought.append(fetch(spec, tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = tmp_path / "toy" / "body.bin"
    assert sorted(brought) == [[], [], [path]]
    assert path.read_bytes() == BODY
    assert len(server.ranges) == 1


def test_a_file_by_hand_is_named_after_the_others_are_brought(server, tmp_path):
    manual = RemoteFile("manual.txt", None, None, "ask the authors")
    automatic = RemoteFile("body.bin", server.url, BODY_SHA256, "")
    spec = dataset(server.url, files=(manual, automatic))
    place = tmp_path / "toy" / "manual.txt"
    with pytest.raises(DataError, match="ask the authors") as caught:
        fetch(spec, tmp_path)
    assert str(place) in str(caught.value)
    assert (tmp_path / "toy" / "body.bin").read_bytes() == BODY
    with pytest.raises(DataError, match=r"manual.txt is missing.*by hand: ask the authors"):
        locate(spec, "manual.txt", tmp_path)
    place.write_text("1")
    assert fetch(spec, tmp_path) == []


def test_a_file_that_only_comes_by_hand_needs_no_writable_root(tmp_path):
    (tmp_path / "file").write_text("")
    spec = dataset(None, checksum=None)
    with pytest.raises(DataError, match="by hand"):
        fetch(spec, tmp_path / "file" / "root")


def test_a_pack_stands_for_the_files_it_holds(server, tmp_path):
    spec = dataset(server.url, packed="pack.npz", packed_sha256=sha256(b"pack"))
    pack = tmp_path / "toy" / "pack.npz"
    pack.parent.mkdir()
    pack.write_bytes(b"pack")
    assert missing(spec, tmp_path) == []
    assert fetch(spec, tmp_path) == []
    assert server.ranges == []
    assert locate(spec, "pack.npz", tmp_path) == pack
    pack.write_bytes(b"pac")
    with pytest.raises(DataError, match=r"pack.npz is damaged"):
        locate(spec, "pack.npz", tmp_path)
    lacking = dataset(server.url, packed="pack.npz", packed_lacks=("body.bin",))
    assert missing(lacking, tmp_path) == list(lacking.files)


def test_an_embedded_data_set_needs_nothing(tmp_path):
    spec = dataset(None, files=(), embedded=True)
    assert fetch(spec, tmp_path / "toy") == []
    assert missing(spec, tmp_path) == []
    assert not (tmp_path / "toy").exists()


def test_file_checksum(tmp_path):
    (tmp_path / "file").write_bytes(BODY)
    assert file_sha256(tmp_path / "file") == sha256(BODY)


def make_zip(path, name="folder/file.txt"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "content")


def make_tar(path, name="folder/file.txt", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(b"content")
    for key, value in attributes.items():
        setattr(member, key, value)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member, io.BytesIO(b"content"))


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpack(tmp_path, make):
    make(tmp_path / "archive")
    folder = unpack(tmp_path / "archive", tmp_path / "unpacked")
    assert (folder / "folder" / "file.txt").read_text() == "content"
    with pytest.raises(DataError, match="exists"):
        unpack(tmp_path / "archive", folder)


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:\\out.txt"])
def test_unpack_stays_in_its_folder(tmp_path, make, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    make(inner / "archive", name)
    with pytest.raises(DataError, match="outside"):
        unpack(inner / "archive", inner / "unpacked")
    assert list(tmp_path.rglob("*")) == [inner, inner / "archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_unpack_takes_plain_files_only(tmp_path, kind):
    make_tar(tmp_path / "archive", "link", type=kind, linkname="archive", size=0)
    with pytest.raises(DataError, match="not a plain file"):
        unpack(tmp_path / "archive", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("position", [2, 20, 40, 60])
def test_unpack_of_a_damaged_archive_leaves_nothing(tmp_path, make, position):
    make(tmp_path / "archive")
    content = bytearray((tmp_path / "archive").read_bytes())
    content[position : position + 7] = b"damaged"
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(DataError, match="cannot unpack"):
        unpack(tmp_path / "archive", tmp_path / "unpacked")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
