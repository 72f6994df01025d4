"""Reads what SIPp wrote down with -trace_msg, and checks SIP and MANSCDP from the outside.

Knows nothing of the gateway's code: the digest is computed anew, XML is read by Python's own parser.
"""
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from datetime import datetime

RECORD = re.compile(rb"^-{40,} (\d{4}-\d\d-\d\d[ T\t]\d\d:\d\d:\d\d\.\d+)[^\n]*\n"
                    rb"(?:UDP|TCP|TLS) message (received|sent) [\[(]?(\d+)[\])]? ?bytes ?[\])]?:?\s*?\n\n", re.M)


class Message:
    """One SIP message: `time` (s, wall clock), `received` by SIPp or sent, `head` lines, `body` bytes, `size` bytes."""

    def __init__(self, time, received, raw):
        self.time, self.received, self.size = time, received, len(raw)
        head, _, self.body = raw.partition(b"\r\n\r\n")
        # The gateway's heads are ASCII; anything else is a failure and not a reason to stop reading.
        self.lines = head.decode("ascii", "replace").split("\r\n")
        self.start = self.lines[0]
        self.is_response = self.start.startswith("SIP/2.0 ")
        self.status = int(self.start.split()[1]) if self.is_response else None
        self.method = self.header("CSeq").split()[-1] if self.header("CSeq") else self.start.split()[0]

    def header(self, name):
        """The first value of a header, or an empty string."""
        for line in self.lines[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name.lower():
                return value.strip()
        return ""

    def __str__(self):
        return "\n".join(self.lines) + "\n\n" + self.body.decode("gb18030", "replace")


def read(path):
    """All messages of a trace; a last one that is not written out yet is left for the next time."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    messages = []
    for found in RECORD.finditer(text):
        size = int(found[3])
        raw = text[found.end():found.end() + size]
        if len(raw) < size:
            break
        stamp = found[1].decode().replace("\t", " ").replace("T", " ")
        messages.append(Message(datetime.fromisoformat(stamp).timestamp(), found[2] == b"received", raw))
    return messages


def md5(*parts):
    return hashlib.md5(":".join(parts).encode()).hexdigest()


def credentials(value):
    """The parameters of an Authorization or WWW-Authenticate header."""
    scheme, _, rest = value.partition(" ")
    pairs = re.findall(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,]+))', rest)
    return scheme, {key.lower(): quoted or plain for key, quoted, plain in pairs}


def digest_is_right(challenge, authorization, method, request_uri, username, password):
    """None, or what is wrong with the answer to a challenge [RFC 2617 3.2.2]."""
    (_, asked), (scheme, given) = credentials(challenge), credentials(authorization)
    for key, expected in (("realm", asked["realm"]), ("nonce", asked["nonce"]), ("username", username), ("uri", request_uri)):
        if given.get(key) != expected:
            return f"{key} is {given.get(key)!r}, not {expected!r}"
    ha1, ha2 = md5(username, asked["realm"], password), md5(method, request_uri)
    if "qop" in asked:
        for key in ("cnonce", "nc", "qop"):
            if not given.get(key):
                return f"{key} is missing although qop was offered"
        right = md5(ha1, asked["nonce"], given["nc"], given["cnonce"], given["qop"], ha2)
    else:
        right = md5(ha1, asked["nonce"], ha2)
    if scheme != "Digest" or given.get("response") != right:
        return f"response is {given.get('response')}, not {right}"
    return None


def xml(body):
    """(root element, the charset it was declared and written in). The declaration must be the truth."""
    declared = re.match(rb'<\?xml version="1\.0" encoding="([\w-]+)"\?>', body)
    if not declared:
        raise ValueError(f"no XML declaration with a charset: {body[:60]!r}")
    charset = declared[1].decode()
    # Python's parser has no GB18030: the bytes are decoded by the declared charset, strictly, and parsed as text.
    text = body.decode(charset, "strict")
    return ElementTree.fromstring(text[text.index("?>") + 2:]), charset


def sdp(body):
    """The lines of an SDP as (letter, value) pairs."""
    return [(line[0], line[2:]) for line in body.decode("ascii").split("\r\n") if line]
