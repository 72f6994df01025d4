#!/usr/bin/python3
"""What no compiler checks: layers, file heads, unsafe code with its reason, nothing unfinished or in conflict, scripts that parse."""
import ast
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOP = {"Cargo.toml", "Cargo.lock", "README.md", "src", "config", "proto-fixtures", "benches", "tests", "docker"}
HEAD = 15  # lines of `//!`, but for the architecture page
# May use; nothing else. Every module above proto may use these three besides.
EVERYBODY = {"metrics", "task", "clock"}
ENGINES = {"config", "store", "transport", "media", *EVERYBODY}
DOMAIN = {"alarm", "catalog", "southbound", "northbound"}
USES = {
    "proto": set(),
    "config": {"proto"}, "store": {"proto"}, "transport": {"proto"}, "media": {"proto", "transport"},
    "metrics": {"proto"}, "task": {"proto"}, "clock": set(),
    "catalog": {"proto"} | ENGINES,
    "alarm": {"proto", "catalog"} | ENGINES,
    "southbound": {"proto", "catalog", "alarm"} | ENGINES,
    "northbound": {"proto", "catalog", "alarm"} | ENGINES,
    "console": {"proto"} | ENGINES | DOMAIN,
    "sim": {"proto"} | ENGINES | DOMAIN,
    "app": {"proto", "console", "sim"} | ENGINES | DOMAIN,
}
# Sans-IO: bytes, time and randomness come in as arguments.
IMPURE = r"\btokio\b|std::(fs|process|thread|env)\b|std::net::(Udp|Tcp)|\b(SystemTime|Instant)::now\b|\bSystemTime\b"
# The fuzz bodies need some instant to count from.
COUNTS_FROM_NOW = {"src/proto/fuzz.rs"}
UNSAFE = {"src/transport/batch.rs", "src/media/worker.rs", "src/media/tests/stream.rs", "tests/budget/main.rs", "benches/packet_path.rs"}
CONFLICT = r"(?m)^(<{7}|>{7}) \S"
UNFINISHED = r"\btodo!\(|\bunimplemented!\(|\bdbg!\(|\b(FIXME|TODO|XXX)\b"

problems = []


def complain(path, line, text):
    problems.append(f"{path}:{line}: {text}")


def matches(pattern, text):
    """(line number, what was found); comments are looked at too."""
    for found in re.finditer(pattern, text):
        yield text.count("\n", 0, found.start()) + 1, found[0]


def without_comments(text):
    return re.sub(r"//[^\n]*", "", text)


def check_source(path, text):
    parts = path.split("/")
    lines = text.splitlines()
    head = next((n for n, line in enumerate(lines) if not line.startswith("//!")), len(lines))
    if head == 0:
        complain(path, 1, "does not open with a //! head: what it is, what goes in and out, what holds")
    if head > HEAD and path != "src/lib.rs":
        complain(path, head, f"a head of {head} lines, {HEAD} at most")
    if "unsafe" in text:
        for line, _ in matches(r"\bunsafe\s*(\{|fn|impl)", without_comments(text)):
            if path not in UNSAFE:
                complain(path, line, "unsafe code outside the files that may have it")
            if "SAFETY" not in "\n".join(lines[max(0, line - 6):line]):
                complain(path, line, "unsafe code without a SAFETY remark before it")
    if parts[0] != "src" or len(parts) < 2:
        return
    module = parts[1].removesuffix(".rs")
    if module in ("lib", "main"):
        return
    if module not in USES:
        return complain(path, 1, f"module {module} has no place among the layers of src/lib.rs")
    code = "" if path.endswith(("/tests.rs", "_tests.rs")) or "tests" in parts[2:-1] else without_comments(text.split("#[cfg(test)]")[0])
    allowed = USES[module] | {module} | (EVERYBODY if module != "proto" else set())
    for line, found in matches(r"\bcrate::\w+", code):
        other = found.removeprefix("crate::")
        if other in USES and other not in allowed:
            complain(path, line, f"{module} may not use {other}")
    if module == "proto" and path not in COUNTS_FROM_NOW:
        for line, found in matches(IMPURE, code):
            complain(path, line, f"{found} in the protocol code, which does no I/O and reads no clock")


def main():
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, check=True).stdout
    paths = sorted(path for path in listed.decode().split("\0") if path and (ROOT / path).is_file())
    for top in {path.split("/")[0] for path in paths}:
        if top not in TOP and not top.startswith("."):
            complain(top, 1, "does not belong at the top")
    for path in paths:
        file = ROOT / path
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a fixture
        for line, _ in matches(CONFLICT, text):
            complain(path, line, "a conflict that was not resolved")
        if path.startswith("proto-fixtures/") or path == "Cargo.lock":
            continue
        if path.endswith(".rs"):
            check_source(path, text)
        try:
            if path.endswith(".py"):
                ast.parse(text)
            elif path.endswith(".json"):
                json.loads(text)
            elif path.endswith(".xml"):
                ElementTree.fromstring(text.encode())
        except (SyntaxError, ValueError, ElementTree.ParseError) as e:
            complain(path, 1, f"does not parse: {e}")
        if text.startswith("#!") and "bash" in text.split("\n", 1)[0]:
            parsed = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
            if parsed.returncode:
                complain(path, 1, parsed.stderr.strip())
        if path != ".ci/static.py":
            for line, found in matches(UNFINISHED, text):
                complain(path, line, f"unfinished: {found}")
    print("\n".join(problems) or f"{len(paths)} files are as they should be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
