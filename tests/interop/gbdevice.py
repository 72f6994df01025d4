"""A GB/T 28181 device that is not ours: SIP over UDP, catalogue, and PS of other makers' muxers over RTP.

`Clip` cuts a PS file into RTP payloads and knows which packets each picture needs. `Wire` spoils the way, seeded, and
counts what it did. `Device` registers, answers and sends. Nothing here is shared with the gateway.
"""
import hashlib
import random
import re
import socket
import struct
import threading
import time
import xml.etree.ElementTree as ElementTree

import siplog

HOST = "127.0.0.1"
PAYLOAD = 1400
ALIEN = 999999999


class Run:
    """The packs from one PTS to the next: one RTP timestamp."""

    def __init__(self, pts):
        self.pts, self.payloads = pts, []


class Clip:
    """A PS file with one video stream. pictures: (first, last) packet of each, from the sizes of its access units.

    group: pictures of a group, where each picture gets a pack of its own, and each key frame the stream's system header and
    map, as devices do it; for muxers that align PES to pictures and leave that out.
    """

    def __init__(self, path, sizes, group=0):
        data = path.read_bytes()
        pieces, begins = self.read(data)
        if group:
            data = self.packed(data, begins, group)
            pieces, begins = self.read(data)
        self.runs, self.count = [], 0
        starts = []  # of every packet, in bytes of the file
        for (begin, pts), (end, _) in zip(begins, begins[1:] + [(len(data), 0)]):
            run = Run(pts)
            for at in range(begin, end, PAYLOAD):
                run.payloads.append(data[at:min(at + PAYLOAD, end)])
                starts.append(at)
            self.runs.append(run)
        self.count = len(starts)
        # Where a byte of the elementary stream is in the file, and in which packet that is.
        self.pictures, place = [], 0
        flat, total = [], 0
        for at, size in pieces:
            flat.append((total, at, size))
            total += size

        def packet(offset):
            while not flat[packet.piece][0] <= offset < flat[packet.piece][0] + flat[packet.piece][2]:
                packet.piece += 1
            base, at, _ = flat[packet.piece]
            where = at + offset - base
            while packet.number + 1 < len(starts) and starts[packet.number + 1] <= where:
                packet.number += 1
            return packet.number

        packet.piece = packet.number = 0
        for size in sizes:
            first = packet(place)
            self.pictures.append((first, packet(place + size - 1)))
            place += size
        if total != place:
            raise ValueError(f"{path.name}: {total} bytes of video, its pictures have {place}")
        # Packets that end a picture and hold nothing of the next: muxers that do not align PES to pictures have none.
        after = [first for first, _ in self.pictures[1:]] + [self.count]
        self.ends = {last for (_, last), following in zip(self.pictures, after) if following > last}

    @staticmethod
    def packed(data, begins, group):
        video = data.index(b"\0\0\1\xe0")
        head = data[14 + (data[13] & 7):video]
        out = b""
        for number, ((begin, pts), (end, _)) in enumerate(zip(begins, begins[1:] + [(len(data), 0)])):
            while data[begin + 3] < 0xC0 and begin < end:  # its own pack header, system header, map
                size = 14 + (data[begin + 13] & 7) if data[begin + 3] == 0xBA else 6 + int.from_bytes(data[begin + 4:begin + 6])
                begin += size
            end = len(data) - 4 if data[end - 4:end] == b"\0\0\1\xb9" else end
            clock = pts - 3600 if pts >= 3600 else 0
            bits = 1 << 46 | (clock >> 30 & 7) << 43 | 1 << 42 | (clock >> 15 & 0x7FFF) << 27 | 1 << 26 | (clock & 0x7FFF) << 11 | 1 << 10 | 1
            out += b"\0\0\1\xba" + bits.to_bytes(6, "big") + data[10:13] + b"\xf8"
            out += (head if number % group == 0 else b"") + data[begin:end]
        return out

    @staticmethod
    def read(data):
        """(offset, size) of every piece of video, and (offset, PTS) of every place where a new PTS comes: a pack, or a PES in it."""
        at, pack, pieces, begins = 0, None, [], []
        while at + 6 <= len(data):
            code = data[at + 3]
            if data[at:at + 3] != b"\0\0\1":
                raise ValueError(f"no start code at {at}")
            if code == 0xBA:
                pack = at
                at += 14 + (data[at + 13] & 7)
            elif code == 0xB9:
                break
            else:
                size = int.from_bytes(data[at + 4:at + 6])
                if code & 0xF0 == 0xE0:
                    head = 9 + data[at + 8]
                    pieces.append((at + head, 6 + size - head))
                    if pack is None:
                        pack = at
                    if data[at + 7] >> 7:
                        t = data[at + 9:at + 14]
                        pts = (t[0] >> 1 & 7) << 30 | t[1] << 22 | (t[2] >> 1) << 15 | t[3] << 7 | t[4] >> 1
                        if not begins or begins[-1][1] != pts:
                            begins.append((pack, pts))
                    pack = None
                at += 6 + size
        begins[0] = (0, begins[0][1])
        return pieces, begins


class Wire:
    """What becomes of packets on their way. Rates are shares of all; `alien`: one packet of another SSRC after every so many;
    `cut`: markers before every new timestamp, although the picture goes on; `own`: an SSRC other than the one asked for."""

    def __init__(self, seed=0, drop=0.0, reorder=0.0, duplicate=0.0, alien=0, cut=False, own=False):
        self.cut, self.own = cut, own
        self.random, self.drop, self.reorder, self.duplicate, self.alien = random.Random(seed), drop, reorder, duplicate, alien
        self.sent, self.dropped, self.late, self.twice, self.aliens = 0, set(), 0, 0, 0
        self.held, self.highest = [], -1

    def pass_on(self, number, packet, last):
        """The packets that leave when this one is due. The first and the last always do, in their turn."""
        out, inner = [], 0 < number < last
        fate = self.random.random()
        if inner and fate < self.drop:
            self.dropped.add(number)
        elif inner and fate < self.drop + self.reorder:
            # Overtaken by one to three: at a handful a picture that is within 120 ms.
            self.held.append((number + self.random.randint(1, 3), number, packet))
        else:
            out.append((number, packet))
            if inner and self.random.random() < self.duplicate:
                out.append((number, packet))
        for entry in [e for e in self.held if e[0] <= number or number == last]:
            self.held.remove(entry)
            out.insert(0 if number == last else len(out), entry[1:])
        for place, (which, _) in enumerate(out):
            if place and out[place - 1][0] == which:
                self.twice += 1
            elif which < self.highest:
                self.late += 1
            self.highest = max(self.highest, which)
        self.sent += len(out)
        packets = [one for _, one in out]
        if self.alien and inner and number % self.alien == 0:
            packets.append(packet[:8] + struct.pack(">I", ALIEN) + packet[12:])
            self.aliens += 1
        return packets


class Call:
    """One session the gateway asked for; media begins with its ACK and ends with its BYE, or the clip."""

    def __init__(self, invite, answer):
        self.invite, self.answer = invite, answer
        self.acknowledged, self.ended = threading.Event(), threading.Event()
        self.done, self.problem = threading.Event(), ""


class Device:
    """channels: {code: (name, Clip, Wire)}."""

    def __init__(self, code, password, server_id, server, port, channels=None, charset="GB2312"):
        self.code, self.password, self.server_id, self.server = code, password, server_id, server
        self.channels, self.charset = channels or {}, charset
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, port))
        self.socket.settimeout(0.2)
        self.port, self.number, self.lock = port, 0, threading.Lock()
        self.answers, self.arrived = {}, threading.Condition()
        self.answered, self.calls, self.requests, self.problems = {}, {}, [], []
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def close(self):
        self.closed.set()
        for call in list(self.calls.values()):
            call.ended.set()
        self.thread.join(2)
        self.socket.close()

    # -- requests of ours --

    def request(self, method, uri, more, body=b"", call_id=None, cseq=1, seconds=4):
        """Sends, repeats as UDP wants, and gives the final answer, or None."""
        with self.lock:
            self.number += 1
            number = self.number
        call_id = call_id or f"{self.code[-4:]}-{self.port}-{number}-{time.time_ns()}"
        lines = [f"{method} {uri} SIP/2.0", f"Via: SIP/2.0/UDP {HOST}:{self.port};rport;branch=z9hG4bKd{self.port}x{number}",
                 f"From: <sip:{self.code}@{self.code[:10]}>;tag=d{number}",
                 f"To: <sip:{self.code if method == 'REGISTER' else self.server_id}@{self.code[:10]}>", f"Call-ID: {call_id}",
                 f"CSeq: {cseq} {method}", "Max-Forwards: 70", "User-Agent: interop", *more, f"Content-Length: {len(body)}"]
        packet = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        key, deadline, wait = (call_id, cseq), time.monotonic() + seconds, 0.5
        with self.arrived:
            while key not in self.answers and time.monotonic() < deadline:
                self.socket.sendto(packet, self.server)
                self.arrived.wait(min(wait, max(0.0, deadline - time.monotonic())))
                wait = min(wait * 2, 4)
            return self.answers.get(key)

    def register(self, expires=3600, password=None):
        """The whole exchange: (challenges, final answer)."""
        uri, call_id = f"sip:{self.server_id}@{self.server_id[:10]}", f"r{self.port}-{time.time_ns()}"
        more = [f"Contact: <sip:{self.code}@{HOST}:{self.port}>", f"Expires: {expires}"]
        first = self.request("REGISTER", uri, more, call_id=call_id)
        if first is None or first.status != 401:
            return [], first
        challenges = [line.partition(":")[2].strip() for line in first.lines if line.lower().startswith("www-authenticate:")]
        _, asked = siplog.credentials(challenges[0])
        make = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}[asked.get("algorithm", "MD5")]

        def digest(*parts):
            return make(":".join(parts).encode()).hexdigest()

        ha1, ha2 = digest(self.code, asked["realm"], password or self.password), digest("REGISTER", uri)
        fields = [("username", self.code), ("realm", asked["realm"]), ("nonce", asked["nonce"]), ("uri", uri)]
        if "qop" in asked:
            fields += [("cnonce", "c0ffee"), ("response", digest(ha1, asked["nonce"], "00000001", "c0ffee", "auth", ha2))]
        else:
            fields += [("response", digest(ha1, asked["nonce"], ha2))]
        value = "Digest " + ", ".join(f'{key}="{text}"' for key, text in fields)
        value += f", algorithm={asked['algorithm']}" if "algorithm" in asked else ""
        value += ", nc=00000001, qop=auth" if "qop" in asked else ""
        return challenges, self.request("REGISTER", uri, [*more, f"Authorization: {value}"], call_id=call_id, cseq=2)

    def message(self, root, cmd, sn, inner, subject=None):
        text = (f'<?xml version="1.0" encoding="{self.charset}"?>\r\n<{root}>\r\n<CmdType>{cmd}</CmdType>\r\n<SN>{sn}</SN>\r\n'
                f"<DeviceID>{subject or self.code}</DeviceID>\r\n{inner}</{root}>\r\n")
        return self.request("MESSAGE", f"sip:{self.server_id}@{self.server_id[:10]}", ["Content-Type: Application/MANSCDP+xml"],
                            text.encode(self.charset))

    def keepalive(self):
        return self.message("Notify", "Keepalive", 1, "<Status>OK</Status>\r\n")

    # -- requests of the gateway --

    def run(self):
        while not self.closed.is_set():
            try:
                packet, source = self.socket.recvfrom(65536)
            except TimeoutError:
                continue
            except OSError:  # nobody is there for what we sent
                continue
            message = siplog.Message(time.time(), True, packet)
            if message.is_response:
                if message.status >= 200:
                    with self.arrived:
                        self.answers[(message.header("Call-ID"), int(message.header("CSeq").split()[0]))] = message
                        self.arrived.notify_all()
                continue
            branch = (re.search(r"branch=([^;,\s]+)", message.header("Via")) or [None, ""])[1] + message.start.split()[0]
            if branch in self.answered:
                if self.answered[branch]:
                    self.socket.sendto(self.answered[branch], source)
                continue
            self.requests.append(message)
            try:
                answer = self.handle(message)
            except Exception as e:
                self.problems.append(f"{type(e).__name__}: {e}: {message}")
                answer = self.answer(message, "500 Server Internal Error")
            self.answered[branch] = answer
            if answer:
                self.socket.sendto(answer, source)

    def answer(self, message, status, more=(), body=b""):
        lines = [f"SIP/2.0 {status}"] + [line for line in message.lines[1:] if line.split(":")[0].lower() in ("via", "from", "call-id", "cseq")]
        to = message.header("To")
        lines += [f"To: {to}" if "tag=" in to else f"To: {to};tag=t{self.port}", *more, f"Content-Length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def handle(self, message):
        method = message.start.split()[0]
        call = self.calls.get(message.header("Call-ID"))
        if method == "MESSAGE":
            root, _ = siplog.xml(message.body)
            threading.Thread(target=self.reply, args=(root,), daemon=True).start()
            return self.answer(message, "200 OK")
        if method == "INVITE":
            return self.invite(message)
        if method == "ACK":
            if call:
                call.acknowledged.set()
            return None
        if method == "BYE" and call:
            call.ended.set()
            return self.answer(message, "200 OK")
        status = {"SUBSCRIBE": "489 Bad Event", "BYE": "481 Call Does Not Exist"}.get(method, "405 Method Not Allowed")
        return self.answer(message, status)

    def reply(self, root):
        if root.tag != "Query":
            return
        cmd, sn = root.findtext("CmdType"), root.findtext("SN")
        if cmd == "Catalog":
            for number, (code, (name, _, _)) in enumerate(self.channels.items()):
                self.message("Response", cmd, sn, f'<SumNum>{len(self.channels)}</SumNum>\r\n<DeviceList Num="1">\r\n<Item>\r\n'
                             f"<DeviceID>{code}</DeviceID>\r\n<Name>{name}</Name>\r\n<Manufacturer>Interop</Manufacturer>\r\n"
                             f"<Model>P{number}</Model>\r\n<Owner>0</Owner>\r\n<CivilCode>411300</CivilCode>\r\n<Address>园区</Address>\r\n"
                             f"<Parental>0</Parental>\r\n<ParentID>{self.code}</ParentID>\r\n<RegisterWay>1</RegisterWay>\r\n"
                             "<Secrecy>0</Secrecy>\r\n<Status>ON</Status>\r\n</Item>\r\n</DeviceList>\r\n")
        elif cmd == "DeviceInfo":
            self.message("Response", cmd, sn, "<Result>OK</Result>\r\n<Manufacturer>Interop</Manufacturer>\r\n<Model>Python</Model>\r\n"
                         f"<Firmware>1</Firmware>\r\n<Channel>{len(self.channels)}</Channel>\r\n")

    def invite(self, message):
        code = re.search(r"sip:(\d+)@", message.header("To"))[1]
        if code not in self.channels:
            return self.answer(message, "404 Not Found")
        lines = siplog.sdp(message.body)
        offer = {letter: value for letter, value in lines if letter != "a"}
        attributes = [value for letter, value in lines if letter == "a"]
        m, target = offer["m"].split(), offer["c"].split()[-1]
        tcp, y, listens = m[2] == "TCP/RTP/AVP", offer["y"], "setup:active" in attributes
        # What the standard wants of an INVITE [GB/T28181-2022 9.2.1, annex G].
        subject = message.header("Subject")
        for wrong, what in ((offer.get("s") != "Play", f"s={offer.get('s')}"), (m[0] != "video" or "96" not in m[3:], f"m={offer['m']}"),
                            (not re.fullmatch(r"0\d{9}", y), f"y={y}"), ("recvonly" not in attributes, f"{attributes}"),
                            ("rtpmap:96 PS/90000" not in attributes, f"{attributes}"),
                            (tcp and not {"setup:passive", "setup:active"} & set(attributes), f"{attributes}"),
                            (not subject.startswith(f"{code}:{y},{self.server_id}:"), f"Subject: {subject}"),
                            (self.server_id not in message.header("Contact"), f"Contact: {message.header('Contact')}")):
            if wrong:
                self.problems.append(f"INVITE: {what}")
        media = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        media.bind((HOST, 0))
        if listens:
            media.listen(1)
        port = media.getsockname()[1]
        setup = f"a=setup:{'passive' if listens else 'active'}\r\na=connection:new\r\n" if tcp else ""
        body = (f"v=0\r\no={code} 0 0 IN IP4 {HOST}\r\ns=Play\r\nc=IN IP4 {HOST}\r\nt=0 0\r\nm=video {port} {m[2]} 96\r\na=sendonly\r\n"
                f"a=rtpmap:96 PS/90000\r\n{setup}y={y}\r\n").encode()
        more = [f"Contact: <sip:{code}@{HOST}:{self.port}>", "Content-Type: application/sdp"]
        call = Call(message, self.answer(message, "200 OK", more, body))
        self.calls[message.header("Call-ID")] = call
        _, clip, wire = self.channels[code]
        ssrc = int(y) + 1 if wire.own else int(y)
        way = (media, None if listens else (target, int(m[1])), tcp)
        threading.Thread(target=self.stream, args=(call, clip, wire, way, ssrc), daemon=True).start()
        return call.answer

    def stream(self, call, clip, wire, way, ssrc):
        media, target, tcp = way
        try:
            if not call.acknowledged.wait(5):
                raise TimeoutError("no ACK")
            if tcp:
                media.settimeout(3)
            if tcp and target:
                media.connect(target)
            elif tcp:
                listener, (media, _) = media, media.accept()
                listener.close()
            begin, number, sequence = time.monotonic(), 0, (ssrc * 7919) & 0xFFFF  # some of them wrap
            for run in clip.runs:
                time.sleep(max(0.0, begin + (run.pts - clip.runs[0].pts) / 90000 - time.monotonic()))
                if call.ended.is_set():
                    return
                for index, payload in enumerate(run.payloads):
                    marker = 0x80 if number in clip.ends or wire.cut and index + 1 == len(run.payloads) else 0
                    head = struct.pack(">BBHII", 0x80, marker | 96, (sequence + number) & 0xFFFF, run.pts & 0xFFFFFFFF, ssrc)
                    packet = head + payload
                    for packet in wire.pass_on(number, packet, clip.count - 1):
                        if tcp:
                            media.sendall(struct.pack(">H", len(packet)) + packet)
                        else:
                            media.sendto(packet, target)
                    number += 1
            call.done.set()
            call.ended.wait(20)
        except OSError as e:
            call.problem = f"{type(e).__name__}: {e}"
        finally:
            media.close()
