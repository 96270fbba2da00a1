"""A file of 64 MB in little memory: what is held is one record, not the file."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys, time
from pathlib import Path
from wmtp.corpus.document import Document
from wmtp.corpus.readers.nikl import Nikl
from wmtp.corpus.readers.reader import Origin
from wmtp.corpus.readers.reading import read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began, count, size = time.process_time(), 0, 0
for one in read(Nikl(), Path(sys.argv[1]), "a", Origin("s", "l")):
    assert isinstance(one, Document)
    count, size = count + 1, size + len(one.text)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(count, size, grown, time.process_time() - began)
"""


def test_64_megabytes_of_json_take_a_few_megabytes_of_memory(tmp_path: Path) -> None:
    forms = [{"id": f"X.{i}", "form": "가을이 오면 들판은 누렇게 물든다. " * 4} for i in range(40)]
    document = {"id": "X", "metadata": {"title": "말뭉치"}, "paragraph": forms}
    element = json.dumps(document, ensure_ascii=False).encode() + b",\n"
    count = (64 << 20) // len(element) + 1
    path = tmp_path / "NWRW.json"
    with path.open("wb") as file:
        file.write(b'{"id": "N", "document": [\n')
        for _ in range(count - 1):
            file.write(element)
        file.write(element[:-2] + b"]}")
    assert path.stat().st_size > 64 << 20
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    documents, characters, grown, seconds = done.stdout.split()
    text = "\n".join(form["form"] for form in forms)
    assert (int(documents), int(characters)) == (count, count * len(text))
    assert int(grown) < 16 * 1024  # kB
    assert 64 / float(seconds) > 20  # MB/s; 150 on a core that does nothing else
