"""Data root, checksums, arrays, files, downloads from a server on this machine."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from common.data import (
    DatasetSpec,
    RemoteFile,
    array_sha256,
    data_root,
    download,
    fetch,
    locate,
    missing,
)
from common.data import spec as spec_module
from common.data.arrays import as_tensor, dense_tensor
from common.errors import ArgumentError, DataError, RunError, require_int
from common.files import file_sha256, put_in_place, replacing, write_text

BODY = np.random.default_rng(0).bytes(300_000)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


BODY_SHA256 = sha256(BODY)


class Server(ThreadingHTTPServer):
    """Serves BODY, or nothing under ``absent.bin``, as well or badly as the test asks for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        self.honours_range = True
        self.cuts = []
        self.status = 200
        self.delay = 0.0
        self.content_length = str

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/body.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status != 200 or self.path == "/absent.bin":
            self.send_error(404 if server.status == 200 else server.status)
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
        if (length := server.content_length(len(BODY) - start)) is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        end = server.cuts.pop(0) if server.cuts else len(BODY)
        with suppress(ConnectionError):  # of a client that has heard enough
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
    with pytest.raises(ArgumentError, match="arrays must be of a type without objects"):
        array_sha256(np.array([{}, None]))


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


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"),
    [(False, True, False), (True, True, True), (True, False, False)],
)
def test_fetch_shows_progress_only_on_a_terminal(
    server, tmp_path, capsys, monkeypatch, terminal, progress, shown
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    fetch(dataset(server.url), tmp_path, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("body.bin" in err) is shown
    assert bool(err) is shown


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
    assert server.ranges == [None, None]


@pytest.mark.parametrize("size", [1000, len(BODY)])
def test_a_stale_part_of_unknown_checksum_is_not_continued(server, tmp_path, size):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "body.bin.part").write_bytes(b"x" * size)
    [path] = fetch(dataset(server.url, checksum=None), tmp_path)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("given", [None, "many"])
def test_without_a_length_only_a_checksum_tells_whether_a_file_is_whole(server, tmp_path, given):
    server.content_length = lambda length: given
    [path] = fetch(dataset(server.url), tmp_path)
    assert path.read_bytes() == BODY
    path.unlink()
    server.cuts = [50_000]
    with pytest.raises(DataError, match="neither its length nor its checksum is known"):
        fetch(dataset(server.url, checksum=None), tmp_path)
    assert not path.exists()


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


@pytest.mark.parametrize(
    ("home", "call", "place"),
    [(Path, "mkdir", "toy"), (os, "open", "toy"), (os, "replace", "body.bin")],
)
def test_a_root_without_permission(server, tmp_path, monkeypatch, home, call, place):
    """To make the folder, its lock or the file in it."""

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(home, call, refuse)
    message = rf"cannot write \S*{place}: Permission denied; .*CLUSTRAST_DATA"
    with pytest.raises(DataError, match=message):
        fetch(dataset(server.url), tmp_path)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "body.bin").write_bytes(BODY)
    monkeypatch.setattr(spec_module, "file_sha256", refuse)
    for check in (
        lambda: fetch(dataset(None), tmp_path),
        lambda: locate(dataset(None), "body.bin", tmp_path),
    ):
        with pytest.raises(DataError, match=r"cannot read .*body.bin: Permission denied"):
            check()


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


def test_one_refused_file_does_not_keep_the_others_away(server, tmp_path):
    absent = server.url.replace("body.bin", "absent.bin")
    spec = dataset(
        server.url,
        files=(
            RemoteFile("absent.bin", absent, BODY_SHA256, ""),
            RemoteFile("wrong.bin", server.url, sha256(b"other"), ""),
            RemoteFile("manual.txt", None, None, "ask the authors"),
            RemoteFile("body.bin", server.url, BODY_SHA256, ""),
        ),
    )
    with pytest.raises(DataError) as caught:
        fetch(spec, tmp_path)
    message = str(caught.value)
    for part in (f"cannot download {absent} (404", "wrong.bin.part is damaged", "ask the authors"):
        assert part in message
    assert "\n" not in message
    assert (tmp_path / "toy" / "body.bin").read_bytes() == BODY
    assert [file.name for file in missing(spec, tmp_path)] == [
        "absent.bin",
        "wrong.bin",
        "manual.txt",
    ]


def test_fetch_reads_a_whole_file_once(server, tmp_path, monkeypatch):
    whole = RemoteFile("whole.bin", server.url, BODY_SHA256, "")
    spec = dataset(server.url, files=(whole, RemoteFile("body.bin", server.url, BODY_SHA256, "")))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "whole.bin").write_bytes(BODY)
    read = []
    monkeypatch.setattr(
        spec_module, "file_sha256", lambda path: read.append(path.name) or file_sha256(path)
    )
    fetch(spec, tmp_path)
    assert read == ["whole.bin", "body.bin.part"]


def test_a_file_that_the_data_set_does_not_have(tmp_path):
    with pytest.raises(ArgumentError, match=r"file of toy must be one of body.bin, got 'nothing'"):
        locate(dataset(None), "nothing", tmp_path)


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
    for check in (locate, fetch):
        arguments = (spec, "pack.npz", tmp_path) if check is locate else (spec, tmp_path)
        with pytest.raises(DataError, match=r"pack.npz is damaged.*; restore it, or delete it and"):
            check(*arguments)
    assert server.ranges == []
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


@pytest.mark.parametrize("error", [DataError, RunError])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / "folder" / "file"
    write_text(path, "old", error)
    with pytest.raises(error, match=r"cannot write .*file: No space left"), replacing(path, error):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a \ud800", error)
    with pytest.raises(error, match="cannot write"), replacing(path, error):
        pass  # nothing was written
    assert path.read_text() == "old"
    write_text(path, "новое", error)
    assert path.read_text(encoding="utf-8") == "новое"
    assert list(tmp_path.rglob("*")) == [path.parent, path]


def test_two_writers_of_a_file_do_not_share_the_temporary_one(tmp_path):
    path = tmp_path / "file"
    with replacing(path, RunError) as first, replacing(path, RunError) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.parent == second.parent == tmp_path
        assert first.name.startswith(".file.")
        assert first.suffix == ".tmp"
    assert path.read_text() == "first"


def test_a_folder_that_cannot_be_made_is_the_error_that_was_asked_for(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*below"):
        write_text(tmp_path / "file" / "below", "text", RunError)


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    (tmp_path / "new").write_text("text")
    put_in_place(tmp_path / "new", tmp_path / "file")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "file").read_text() == "text"


def test_arrays_of_any_notation_become_tensors():
    rows = np.arange(6).reshape(2, 3)
    expected = torch.arange(6).view(2, 3)
    for values in (rows, rows.tolist(), rows.astype(">i8"), rows[::-1][::-1], expected):
        assert torch.equal(as_tensor("x", values), expected)
    for values in (sp.csr_matrix(rows), sp.coo_array(rows), expected.to_sparse(), rows):
        assert torch.equal(dense_tensor("x", values), expected)


@pytest.mark.parametrize("values", [None, "text", ["a"], [[1], [2, 3]], [{}], sp.eye_array(2)])
def test_what_is_no_array_of_numbers_is_named(values):
    with pytest.raises(ArgumentError, match="y must be an array of numbers, got"):
        as_tensor("y", values)


def test_integers_of_any_type_are_taken_and_nothing_else():
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        number = require_int("k", value, 3, 3)
        assert (number, type(number)) == (3, int)
    for value in (2, 2.5, 3.0, True, np.True_, "3", None, [3]):
        with pytest.raises(ArgumentError, match="k must be an integer of at least 3, got"):
            require_int("k", value, 3)
    assert require_int("k", 0, 0) == 0
    with pytest.raises(ArgumentError, match="k must be an integer from 0 to 5, got True"):
        require_int("k", True, 0, 5)
    with pytest.raises(ArgumentError, match="k must be an integer from 1 to 5, got 6"):
        require_int("k", 6, 1, 5)
