"""What the service bears: load, a full queue, malformed uploads, and a kill in the middle. Loopback only, and bounded.

    python benchmarks/load.py runs/gland --data DATA --requests 300 --clients 8

It starts `das3d serve` on a free port of this machine for each trial, prints a table for docs/results/service.md, and exits
with 1 where something is not as it must be: an answer of 5xx, a malformed upload that is not answered by 4xx, a verdict
that was answered and is not in the database.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import tifffile
from PIL import Image

from das3d.datasets import find_folder
from das3d.service.inspections import Inspections

Files = dict[str, tuple[str, bytes]]
problems: list[str] = []


def must(true: bool, what: str) -> None:
    if not true:
        problems.append(what)
        print(f"NOT AS IT MUST BE: {what}", file=sys.stderr)


@contextmanager
def service(model: str, out: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the address of a service that runs while the block does."""
    words = [sys.executable, "-m", "das3d", "serve", model, "--out", str(out), "--port", "0", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "listening on" not in (line := process.stdout.readline()):
        if not line:
            sys.exit("the service did not start")
    try:
        yield process, line.split()[-1]
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def post(client: httpx2.Client, address: str, files: Files) -> tuple[int, float, dict[str, object]]:
    begun = time.perf_counter()
    answer = client.post(f"{address}/inspections", files=files, timeout=120)
    return answer.status_code, time.perf_counter() - begun, answer.json()


def memory(address: str) -> float:
    """MiB that the service occupies."""
    text = httpx2.get(f"{address}/metrics").text
    found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    assert found
    return float(found[1]) / (1 << 20)


def load(
    address: str, parts: list[Files], requests: int, clients: int
) -> tuple[list[int], list[float], list[float], float]:
    """Statuses, seconds of each answer, memory after each tenth, and seconds altogether."""
    statuses: list[int] = []
    seconds: list[float] = []
    memories: list[float] = []
    left = iter(range(requests))
    lock = threading.Lock()

    def work() -> None:
        with httpx2.Client() as client:
            while (number := next_of(left, lock)) is not None:
                status, took, _ = post(client, address, parts[number % len(parts)])
                with lock:
                    statuses.append(status)
                    seconds.append(took)
                if number % max(requests // 10, 1) == 0:
                    memories.append(memory(address))

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work) for _ in range(clients)]:
            done.result()
    return statuses, seconds, memories, time.perf_counter() - begun


def next_of(numbers: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(numbers, None)


# ------------------------------------------------------------------------------------------- malformed uploads


def malformed(good: Files, seed: int) -> tuple[str, Files]:
    """The kind of one malformed upload, and its files."""
    rng = random.Random(seed)
    kind, make = rng.choice(list(KINDS.items()))
    return kind, good | make(good, rng)


def truncated(good: Files, rng: random.Random) -> Files:
    member = rng.choice(list(good))
    name, content = good[member]
    return {member: (name, content[: rng.randrange(len(content) // 2)])}


def wrong_type(good: Files, rng: random.Random) -> Files:
    member = rng.choice(list(good))
    content = rng.choice(
        [b"%PDF-1.7 not a scan", b"GIF89a" + bytes(100), b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(50), b"\0" * 999]
    )
    return {member: (f"part{rng.choice(['.png', '.jpg', '.tiff', '.npy', '.npz', '.ply', '.pcd', '.exe', ''])}", content)}


def huge(good: Files, rng: random.Random) -> Files:
    side = rng.choice([20_000, 100_000, 2**31 - 1])
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    npy = io.BytesIO()
    np.lib.format.write_array_header_1_0(npy, {"descr": "<f4", "fortran_order": False, "shape": (side, side)})
    ply = f"ply\nformat binary_little_endian 1.0\nobj_info num_cols {side}\nobj_info num_rows {side}\n"
    ply += f"element vertex {side**2}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    pcd = f"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH {side}\nHEIGHT {side}\nPOINTS {side**2}\nDATA binary\n"
    depth = {".png": png, ".npy": npy.getvalue(), ".ply": ply.encode(), ".pcd": pcd.encode()}
    suffix = rng.choice(list(depth))
    return {"depth": (f"huge{suffix}", depth[suffix])}


def bomb(good: Files, rng: random.Random) -> Files:
    """A few hundred kilobytes that would unpack to gigabytes."""
    return {"depth": rng.choice(bombs())}


def bombs() -> list[tuple[str, bytes]]:
    if not _BOMBS:
        array, header = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(array, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("depth.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10_000, 7_000)})
            for _ in range(560):
                file.write(bytes(10**6))
        with zipfile.ZipFile(header, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("depth.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(10**8))
        tiff = io.BytesIO()
        tifffile.imwrite(tiff, np.zeros((20_000, 10_000), np.float32), compression="zlib")
        _BOMBS.extend([("bomb.npz", array.getvalue()), ("bomb.npz", header.getvalue()), ("bomb.tiff", tiff.getvalue())])
    return _BOMBS


_BOMBS: list[tuple[str, bytes]] = []


def not_numbers(good: Files, rng: random.Random) -> Files:
    value = rng.choice([np.nan, np.inf, -1.0, 0.0, 1e30])
    width, height = Image.open(io.BytesIO(good["rgb"][1])).size
    file = io.BytesIO()
    np.save(file, np.full((height, width), value, np.float32))
    return {"depth": ("values.npy", file.getvalue())}


KINDS: dict[str, Callable[[Files, random.Random], Files]] = {
    "truncated": truncated,
    "wrong type": wrong_type,
    "huge dimensions": huge,
    "decompression bomb": bomb,
    "NaN, infinite or negative": not_numbers,
}


# ------------------------------------------------------------------------------------------- the four trials


def steady(model: str, folder: Path, parts: list[Files], requests: int, clients: int) -> list[str]:
    with service(model, folder) as (_, address):
        load(address, parts, 2 * clients, clients)  # until every thread and buffer is there
        statuses, seconds, memories, total = load(address, parts, requests, clients)
    must(set(statuses) == {201}, f"steady load: statuses {dict(Counter(statuses))}")
    p50, p99 = np.quantile(seconds, (0.5, 0.99))
    growth = memories[-1] - memories[len(memories) // 2]
    must(growth < 50, f"steady load: memory grows by {growth:.0f} MiB in the second half")
    held = " ".join(f"{one:.0f}" for one in memories)
    return [
        f"| load, {clients} clients | {requests / total:.2f} parts a second, p50 {p50:.2f} s, p99 {p99:.2f} s |",
        f"| answers | {dict(Counter(statuses))} |",
        f"| memory after each tenth | {held} MiB |",
    ]


def overload(model: str, folder: Path, parts: list[Files], requests: int, clients: int) -> list[str]:
    with service(model, folder, "--queue", "4") as (_, address):
        statuses, _, _, _ = load(address, parts, requests, 4 * clients)
        with httpx2.Client() as client:
            must(post(client, address, parts[0])[0] == 201, "a part after the overload is not inspected")
    found = Counter(statuses)
    must(set(found) == {201, 429}, f"overload: statuses {dict(found)}")
    return [f"| {4 * clients} clients, queue of 4 | {dict(found)} |"]


def strangers(model: str, folder: Path, parts: list[Files], uploads: int) -> list[str]:
    found: Counter[tuple[str, int]] = Counter()
    with service(model, folder) as (process, address), httpx2.Client() as client:
        post(client, address, parts[0])
        before = memory(address)
        most = before
        for seed in range(uploads):
            kind, files = malformed(parts[0], seed)
            status, _, told = post(client, address, files)
            found[kind, status] += 1
            must(400 <= status < 500, f"malformed upload {seed} ({kind}): {status} {told}")
            most = max(most, memory(address)) if seed % 20 == 0 else most
        must(process.poll() is None, "the service has ended")
        must(post(client, address, parts[0])[0] == 201, "a part after the malformed uploads is not inspected")
        after = memory(address)
    lines = [f"| {kind} | {count} x {status} |" for (kind, status), count in sorted(found.items())]
    return [*lines, f"| memory before, at most, after | {before:.0f}, {most:.0f}, {after:.0f} MiB |"]


def killed(model: str, folder: Path, parts: list[Files], clients: int) -> list[str]:
    answered: list[dict[str, object]] = []

    def work() -> None:
        with httpx2.Client() as client:
            try:
                while True:
                    status, _, told = post(client, address, random.choice(parts))
                    if status == 201:
                        answered.append(told)
            except httpx2.HTTPError:
                return

    with service(model, folder) as (process, address):
        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while len(answered) < 20 and any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
        must(len(answered) >= 20, f"kill: {len(answered)} answers before the service died by itself")
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    kept = Inspections(folder)
    rows = {row.id: row for row in kept.page(limit=10_000)}
    kept.close()
    lost = [told for told in answered if told["id"] not in rows or rows[int(str(told["id"]))].score != told["score"]]
    without = [row.id for row in rows.values() if not (folder / row.map).is_file()]
    must(not lost and not without, f"kill: {len(lost)} answered verdicts lost, {len(without)} rows without a map")
    with service(model, folder) as (_, address):
        total = httpx2.get(f"{address}/inspections?count=true").json()["total"]
    must(total == len(rows), f"kill: {total} inspections after the restart, {len(rows)} before")
    return [f"| kill -9 under load | {len(answered)} answered, {len(rows)} recorded, {len(lost)} lost |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="folder of parts, in any layout")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--malformed", type=int, default=1000)
    words = parser.parse_args()
    found = find_folder(words.data, check=False)[:50]
    parts = [
        {member: (path.name, path.read_bytes()) for member, path in (("rgb", part.rgb), ("depth", part.depth)) if path}
        for part in found
    ]
    size = sum(len(content) for files in parts for _, content in files.values()) / len(parts)
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            *steady(words.model, Path(folder, "steady"), parts, words.requests, words.clients),
            *overload(words.model, Path(folder, "overload"), parts, words.requests // 3, words.clients),
            *strangers(words.model, Path(folder, "strangers"), parts, words.malformed),
            *killed(words.model, Path(folder, "killed"), parts, words.clients),
        ]
    print(f"{len(parts)} parts, {size / 1e6:.2f} MB each; {os.cpu_count()} cores\n")
    print("| trial | found |\n|---|---|")
    print("\n".join(lines))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
