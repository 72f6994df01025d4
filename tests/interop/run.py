#!/usr/bin/python3
"""Interoperability: the gateway between peers that are not ours.

South: GStreamer's RTSP server (H.264, H.265; G.711 A-law and mu-law, AAC; over TCP, one over UDP); GB/T 28181 devices by
SIPp and by gbdevice.py, with PS by FFmpeg's and GStreamer's muxers, over good and bad wires. North: SIPp as upper
platform, directly over UDP, through Kamailio as a strict proxy, and directly over TCP. The PS that arrives is read by
media.py, FFmpeg and GStreamer. All on loopback, below the kernel's ephemeral ports, in a temporary folder.

usage: run.py [--menshen FILE] [--round NAME]... [--keep DIR]      exit status 0 only if everything held
Needs the distribution's sip-tester, kamailio, ffmpeg, gstreamer1.0-tools, -plugins-{base,good,bad,ugly}, -libav,
python3-gi and gir1.2-gst-rtsp-server-1.0.
"""
import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime

import gbdevice
import media
import siplog

HERE = pathlib.Path(__file__).resolve().parent
HOST, DOMAIN = "127.0.0.1", "4113000000"
GATEWAY_ID, SERVER_ID, PASSWORD = "41130000582000000001", "41130000002000000002", "Interop-test-1"
CAMERA_PASSWORD = "Pass-1234"
SECONDS = 6  # of pictures in a call
LATE = 5.2  # s after the others: between two key frames, and later than a cache would keep the first one
FIRST_PICTURE = 1.5  # s after the ACK, from a camera that is pulled already
KEEPALIVE = 5
LIMIT = 300  # seconds for everything: a hang is a failure
UDP_MESSAGE = 1300

# (name, RTSP path, transport, video, audio)
CAMERAS = [
    ("东门枪机", "/h264_pcma", "tcp", "h264", "pcm_alaw"),
    ("大厅半球", "/h265", "tcp", "hevc", None),
    ("信访接待室", "/h264_aac", "tcp", "h264", "aac"),
    ("机房通道", "/h265_pcmu", "udp", "hevc", "pcm_mulaw"),
]
# Cameras that are switched off fill the catalogue: more than one page, and Status OFF must be told.
ABSENT = 26

# Devices of the round "south". (code, PS, media, plane, wire): each shows the pictures of one file.
DEVICE_PASSWORD = "Device-Pass-1"
CLIP_SECONDS, CLIP_RATE, CLIP_GROUP = 6, 25, 25
KIND_WORDS = {"udp": "UDP", "auto": "TCP", "tcp_active": "TCP active"}
LATE_DEVICE = 4.4  # s: between two key frames, and later than a cache would keep the first one
SIPP_DEVICE = "41130000581180000010"
DEVICES = [
    ("41130000581180000021", "packed h264", "udp", "auto", {}),
    ("41130000581180000022", "gstreamer h264", "udp", "auto", {}),
    ("41130000581180000023", "ffmpeg h264", "udp", "auto", {}),
    ("41130000581180000024", "ffmpeg hevc", "udp", "auto", {}),
    ("41130000581180000025", "packed h264", "auto", "auto", {}),
    ("41130000581180000026", "gstreamer h264", "auto", "auto", {}),
    ("41130000581180000027", "ffmpeg h264", "auto", "auto", {}),
    ("41130000581180000028", "ffmpeg hevc", "auto", "auto", {}),
    ("41130000581180000029", "ffmpeg h264", "udp", "auto", {"cut": True}),
    ("41130000581180000030", "packed h264", "tcp_active", "auto", {"own": True}),
    ("41130000581180000031", "packed h264", "udp", "auto", {"drop": 0.01}),
    ("41130000581180000032", "packed h264", "udp", "remux", {"drop": 0.01}),
    ("41130000581180000033", "ffmpeg hevc", "udp", "auto", {"drop": 0.01}),
    ("41130000581180000034", "packed h264", "udp", "auto", {"drop": 0.05}),
    ("41130000581180000035", "ffmpeg h264", "udp", "auto", {"drop": 0.05}),
    ("41130000581180000036", "packed h264", "udp", "auto", {"reorder": 0.05, "duplicate": 0.03, "alien": 50}),
    ("41130000581180000037", "ffmpeg hevc", "udp", "auto", {"reorder": 0.05, "duplicate": 0.03, "alien": 50}),
]
KINDS = {"udp": ("udp", None), "tcp passive": ("listen", "passive"), "tcp active": ("connect", "active")}


def camera_id(number):
    return f"411300005813200{number:05}"


class Failure(Exception):
    """Something did not hold."""


class Results:
    """The table: one line a check; a check that fails does not stop the others."""

    def __init__(self):
        self.rows = []

    def add(self, where, what, problems, detail=""):
        problems = [str(p) for p in problems]
        self.rows.append((where, what, problems))
        print(f"{'ok  ' if not problems else 'FAIL'} {where:<9} {what:<41} {detail}", flush=True)
        for problem in problems:
            print("     " + problem.replace("\n", "\n     "), flush=True)

    @contextlib.contextmanager
    def check(self, where, what):
        """A body that raises has failed; what it puts into the list is told."""
        problems, detail = [], []
        try:
            yield problems, detail
        except Exception as e:  # a broken peer or parser is a failed check, not the end of the run
            problems.append(f"{type(e).__name__}: {e}")
        self.add(where, what, problems, " ".join(detail))

    def failed(self):
        return sum(1 for row in self.rows if row[2])


class Processes:
    """Every process this run started, and nothing else, is ended with it."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, name, *command, cwd=None):
        log = open(self.folder / f"{name}.out", "wb")
        process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   cwd=cwd or self.folder)
        process.log = pathlib.Path(log.name)
        log.close()
        self.running.append(process)
        return process

    def stop(self, process, seconds=5):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop_all(self):
        for process in reversed(self.running):
            self.stop(process)


def wait_for(what, condition, seconds):
    """Polls until `condition` gives something true, and gives it."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {seconds} s")
        time.sleep(0.05)


class Ports:
    """Ports of one block between 20000 and 32000 that are free for UDP and TCP."""

    def __init__(self):
        for base in range(20000, 31500, 500):
            if all(self.is_free(base + n) for n in range(0, 60)):
                self.base, self.next = base, base
                return
        raise Failure("no 60 free ports in a row between 20000 and 32000")

    @staticmethod
    def is_free(port):
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind((HOST, port))
            return True
        except OSError:
            return False

    def take(self, count=1):
        port, self.next = self.next, self.next + count
        if self.next > self.base + 299:
            raise Failure("a block of 300 ports is used up")
        return port

    def take_even(self):
        """An even port and the odd one after it: RTP and RTCP."""
        if self.next % 2:
            self.take()
        return self.take(2)

    def media_range(self):
        return f"{self.base + 300}-{self.base + 499}"


def devices_configured(algorithms):
    text = f"[registrar]\nalgorithms = {json.dumps(algorithms)}\n"
    for code, _, way, plane, _ in [(SIPP_DEVICE, "", "auto", "auto", {})] + DEVICES:
        text += f"""
[[device]]
id = "{code}"
password = "{DEVICE_PASSWORD}"
media = "{way}"
plane = "{plane}"
linger = "0s"
keepalive_interval = "10s"
"""
    return text


def configuration(folder, ports, cameras, gateway, http, platform, transport, south=""):
    text = f"""
[gateway]
id = "{GATEWAY_ID}"
name = "机关集中办公区"
data_dir = "{folder / 'data'}"
[sip]
listen = "{HOST}:{gateway}"
[media]
port_range = "{ports.media_range()}"
[http]
listen = "{HOST}:{http}"
[log]
format = "text"
level = "info"
[[uplink]]
name = "platform"
server_id = "{SERVER_ID}"
server_addr = "{HOST}:{platform}"
password = "{PASSWORD}"
transport = "{transport}"
keepalive_interval = "{KEEPALIVE}s"
"""
    file = folder / "menshen.toml"
    if south:
        file.write_text(text + south)
        file.chmod(0o600)
        return file
    for number, (name, path, over, _, _) in enumerate(CAMERAS, 1):
        text += f"""
[[camera]]
id = "{camera_id(number)}"
name = "{name}"
rtsp = "rtsp://{HOST}:{cameras}{path}"
username = "admin"
password = "{CAMERA_PASSWORD}"
rtsp_transport = "{over}"
"""
    absent = ports.take()
    for number in range(len(CAMERAS) + 1, len(CAMERAS) + ABSENT + 1):
        text += f"""
[[camera]]
id = "{camera_id(number)}"
name = "停用摄像机{number}号"
rtsp = "rtsp://{HOST}:{absent}/off/{number}"
probe_interval = "1h"
"""
    file.write_text(text)
    file.chmod(0o600)
    return file


class Call:
    """One session: SIPp's process, the media receiver, and what must come."""

    def __init__(self, name, process, receiver, ssrc, video=None, audio=None):
        self.name, self.process, self.receiver, self.ssrc, self.title = name, process, receiver, ssrc, name
        self.video, self.audio = video, audio


class Round:
    """The gateway's life at one platform: register, keepalive, catalogue, pictures, goodbye."""

    def __init__(self, name, options, ports, cameras, folder, results, transport="udp", proxy=False, qop="", edition="2.0"):
        self.name, self.results, self.ports = name, results, ports
        self.transport, self.qop, self.edition = transport, qop, edition
        self.folder = folder / name
        self.folder.mkdir()
        self.processes = Processes(self.folder)
        self.gateway, self.http, self.platform = ports.take(), ports.take(), ports.take()
        self.proxy = ports.take() if proxy else None
        self.server = self.proxy or self.platform
        self.calls = 0
        self.config = self.configure(cameras)
        self.menshen = options.menshen

    def configure(self, cameras):
        return configuration(self.folder, self.ports, cameras, self.gateway, self.http, self.server, self.transport)

    # -- the peers --

    def sipp(self, name, scenario, port, *more, seconds=40):
        kind = "u1" if self.transport == "udp" else "t1"
        target = [] if scenario == "registrar" else [f"{HOST}:{self.gateway}", "-m", "1", "-timeout", f"{seconds}s", "-timeout_error"]
        if target and self.proxy:
            target += ["-rsa", f"{HOST}:{self.proxy}"]
        keys = []
        for key, value in {"server_id": SERVER_ID, "gateway_id": GATEWAY_ID, "domain": DOMAIN,
                           "gateway": f"{HOST}:{self.gateway}"}.items():
            keys += ["-key", key, value]
        return self.processes.start(
            name, "sipp", *target, "-sf", HERE / "sipp" / f"{scenario}.xml", "-t", kind, "-i", HOST, "-p", port, "-nostdin",
            "-trace_msg", "-message_file", self.folder / f"{name}.msg", "-trace_err", "-error_file", self.folder / f"{name}.err",
            "-deadcall_wait", "0", *keys, *more)

    def messages(self, name="registrar"):
        return siplog.read(self.folder / f"{name}.msg")

    def from_gateway(self, method):
        return [m for m in self.messages() if m.received and not m.is_response and m.method == method]

    def bodies(self, cmd):
        found = []
        for message in self.from_gateway("MESSAGE"):
            root, charset = siplog.xml(message.body)
            if root.findtext("CmdType") == cmd:
                found.append((message, root, charset))
        return found

    def start_peers(self):
        if self.proxy:
            text = (HERE / "kamailio.cfg").read_text()
            for key, port in (("PROXY", self.proxy), ("GATEWAY", self.gateway), ("PLATFORM", self.platform)):
                text = text.replace(f"@{key}@", str(port))
            file = self.folder / "kamailio.cfg"
            file.write_text(text)
            self.kamailio = self.processes.start("kamailio", shutil.which("kamailio") or "/usr/sbin/kamailio", "-f", file, "-DD", "-E",
                                                 "-m", "32", "-M", "4", "-Y", self.folder, "-P", self.folder / "kamailio.pid")
            wait_for("Kamailio", lambda: not Ports.is_free(self.proxy), 5)
        date = datetime.now().isoformat(timespec="milliseconds")
        self.sipp("registrar", "registrar", self.platform, "-key", "username", GATEWAY_ID, "-key", "password", PASSWORD,
                  "-key", "realm", DOMAIN, "-key", "qop", self.qop, "-key", "gbdate", date, "-key", "edition", self.edition)
        wait_for("SIPp", lambda: not Ports.is_free(self.platform), 5)

    # -- the checks --

    def run(self):
        try:
            self.start_peers()
            self.daemon = self.processes.start("menshen", self.menshen, "run", "-c", self.config)
            self.started = time.time()
            with self.results.check(self.name, "register with challenge") as (problems, detail):
                self.register(problems, detail)
            if self.results.rows[-1][2]:
                return  # nothing else can hold
            with self.results.check(self.name, "catalogue") as (problems, detail):
                self.catalogue(problems, detail)
            with self.results.check(self.name, "device information and status") as (problems, detail):
                self.device_information(problems)
            with self.results.check(self.name, "unknown channel refused") as (problems, detail):
                self.unknown_channel(problems, detail)
            self.play()
            with self.results.check(self.name, "keepalive") as (problems, detail):
                self.keepalive(problems, detail)
            with self.results.check(self.name, "SIGTERM: BYE, unregister, exit") as (problems, detail):
                self.goodbye(problems, detail)
        finally:
            if self.proxy:
                with self.results.check(self.name, "what Kamailio says") as (problems, detail):
                    self.proxy_log(problems, detail)
            self.processes.stop_all()

    def register(self, problems, detail):
        def accepted():
            return [m for m in self.messages() if m.is_response and m.method == "REGISTER" and m.status in (200, 403)]

        answer = wait_for("an answer to REGISTER with credentials", accepted, 10)[0]
        detail.append(f"{answer.time - self.started:.1f} s after start")
        if answer.status != 200:
            problems.append("SIPp's verifyauth refused the digest")
        self.check_digest(0, problems)
        first = self.from_gateway("REGISTER")[0]
        if not self.proxy and self.transport == "udp" and "rport" not in first.header("Via"):
            problems.append(f"no rport in Via: {first.header('Via')}")
        for key, expected in (("From", f"sip:{GATEWAY_ID}@{DOMAIN}"), ("To", f"sip:{GATEWAY_ID}@{DOMAIN}"),
                              ("Contact", f"sip:{GATEWAY_ID}@{HOST}:{self.gateway}"), ("X-GB-Ver", "3.0"), ("Expires", "3600")):
            if expected not in first.header(key):
                problems.append(f"{key}: {first.header(key)}: {expected} expected")
        health = [self.menshen, "health", "--ready", "-c", self.config]
        wait_for("health --ready", lambda: subprocess.run(health, capture_output=True, timeout=10).returncode == 0, 3)

    def check_digest(self, since, problems):
        """Each REGISTER with credentials after a 401, from message number `since` on."""
        challenge, seen = None, 0
        for message in self.messages()[since:]:
            if message.status == 401:
                challenge = message
            elif challenge and message.received and message.method == "REGISTER":
                seen += 1
                wrong = siplog.digest_is_right(challenge.header("WWW-Authenticate"), message.header("Authorization"), "REGISTER",
                                               message.start.split()[1], GATEWAY_ID, PASSWORD)
                if wrong:
                    problems.append(f"digest: {wrong}\n{message}")
                if message.header("Call-ID") != challenge.header("Call-ID"):
                    problems.append("the answer to the challenge has another Call-ID")
                if int(message.header("CSeq").split()[0]) != int(challenge.header("CSeq").split()[0]) + 1:
                    problems.append("the answer to the challenge does not count CSeq up by one")
                challenge = None
        if not seen:
            problems.append("no REGISTER with credentials")

    def query(self, cmd, sn):
        name = f"query_{cmd}_{sn}"
        process = self.sipp(name, "query", self.ports.take(), "-key", "cmd", cmd, "-key", "sn", str(sn))
        code = process.wait(45)
        if code:
            raise Failure(f"SIPp says {code} to the query of {cmd}:\n{self.tail(name)}")

    def tail(self, name):
        """What SIPp noted as an error, and the last messages."""
        error = self.folder / f"{name}.err"
        noted = error.read_text(errors="replace")[-600:] if error.exists() else ""
        last = [m for m in self.messages(name) if m.received][-1:]
        return (noted[:600] + "\n".join(str(m) for m in last))[:1500]

    def catalogue(self, problems, detail):
        # Absent cameras count as off after two failed looks, one second apart.
        wait_for("the absent cameras' fault", lambda: self.bodies("Keepalive"), 8)
        time.sleep(1)
        sn = 1700
        self.query("Catalog", sn)

        def complete():
            pages = self.bodies("Catalog")
            return pages if sum(int(p[1].find("DeviceList").get("Num")) for p in pages) >= int(pages[0][1].findtext("SumNum")) else None

        pages = wait_for("all pages of the catalogue", lambda: self.bodies("Catalog") and complete(), 10)
        items = {}
        for message, root, charset in pages:
            expected = "GB18030" if self.edition == "3.0" else "GB2312"
            if charset.upper() != expected:
                problems.append(f"charset {charset}, not {expected}")
            if root.tag != "Response" or root.findtext("SN") != str(sn) or root.findtext("DeviceID") != GATEWAY_ID:
                problems.append(f"not our query's answer:\n{message}")
            listed = root.find("DeviceList").findall("Item")
            if len(listed) != int(root.find("DeviceList").get("Num")):
                problems.append(f"Num {root.find('DeviceList').get('Num')}, {len(listed)} items")
            for item in listed:
                if item.findtext("DeviceID") in items:
                    problems.append(f"{item.findtext('DeviceID')} twice")
                items[item.findtext("DeviceID")] = item
            if self.transport == "udp" and not self.proxy and message.size > UDP_MESSAGE:
                problems.append(f"a page of {message.size} bytes")
        totals = {root.findtext("SumNum") for _, root, _ in pages}
        if totals != {str(len(items))}:
            problems.append(f"SumNum {totals}, {len(items)} items came")
        if len({m.header("Call-ID") for m, _, _ in pages}) != len(pages):
            problems.append("two pages have the same Call-ID")
        for number in range(1, len(CAMERAS) + ABSENT + 1):
            item = items.get(camera_id(number))
            known = number <= len(CAMERAS)
            name = CAMERAS[number - 1][0] if known else f"停用摄像机{number}号"
            if item is None or item.findtext("Name") != name or item.findtext("ParentID") != GATEWAY_ID:
                problems.append(f"{camera_id(number)} is missing or not as configured")
            elif item.findtext("Status") != ("ON" if known else "OFF"):
                problems.append(f"{name} has Status {item.findtext('Status')}")
        largest = max(m.size for m, _, _ in pages)
        detail.append(f"{len(items)} items, {len(pages)} pages, largest {largest} bytes, {pages[0][2]}")

    def device_information(self, problems):
        for number, cmd in enumerate(("DeviceInfo", "DeviceStatus"), 1800):
            self.query(cmd, number)
            _, root, _ = wait_for(f"the answer to {cmd}", lambda: self.bodies(cmd), 5)[0]
            if root.findtext("SN") != str(number) or root.findtext("Result") != "OK":
                problems.append(f"{cmd}: SN {root.findtext('SN')}, Result {root.findtext('Result')}")
            if cmd == "DeviceInfo" and root.findtext("DeviceName") != "机关集中办公区":
                problems.append(f"DeviceName {root.findtext('DeviceName')}")

    def unknown_channel(self, problems, detail):
        name = "unknown"
        code = self.sipp(name, "unknown_channel", self.ports.take(), "-key", "camera", camera_id(999), "-key", "port",
                         str(self.ports.take_even()), "-key", "y", self.next_y()).wait(45)
        if code:
            problems.append(f"SIPp says {code}:\n{self.tail(name)}")
        detail += [m.start for m in self.messages(name) if m.status == 404][:1]

    def next_y(self):
        self.calls += 1
        return f"0{SERVER_ID[3:8]}{self.calls:04}"

    def call(self, name, scenario, number, kind, setup=None):
        return self.call_channel(name, scenario, camera_id(number), kind, setup, *CAMERAS[number - 1][3:])

    def call_channel(self, name, scenario, channel, kind, setup=None, video=None, audio=None, seconds=SECONDS):
        port = self.ports.take_even()
        y = self.next_y()
        receiver = media.Receiver(kind, port)
        more = ["-key", "setup", setup] if setup else []
        process = self.sipp(name, scenario, self.ports.take(), "-d", str(int(seconds * 1000)), "-key", "camera", channel,
                            "-key", "port", str(port), "-key", "y", y, *more)
        return Call(name, process, receiver, int(y), video, audio)

    def answer(self, name):
        """The 200 of an INVITE, once it is there."""
        return next((m for m in self.messages(name) if m.status == 200 and m.method == "INVITE"), None)

    def wanted(self):
        """(camera, kind, seconds after the first): the late ones join a stream that is running."""
        if self.transport == "tcp":
            return [(1, "udp", 0), (2, "tcp passive", 0)]
        all_kinds = [(number, kind, 0) for number in range(1, len(CAMERAS) + 1) for kind in KINDS]
        return all_kinds + [(1, "udp", LATE), (2, "udp", LATE)]

    def play(self):
        calls, due = {}, self.wanted()
        begin = time.monotonic()
        while due or any(call.process.poll() is None for call in calls.values()):
            now = time.monotonic() - begin
            while due and due[0][2] <= now:
                number, kind, late = due.pop(0)
                receive, setup = KINDS[kind]
                name = f"play_{number}_{kind.replace(' ', '_')}{'_late' if late else ''}"
                calls[name] = self.call(name, "play_tcp" if setup else "play_udp", number, receive, setup)
                calls[name].title = kind + (" late" if late else "")
            for name, call in calls.items():
                if call.receiver.kind == "connect" and not call.receiver.target and (answer := self.answer(name)):
                    port = next(value.split()[1] for letter, value in siplog.sdp(answer.body) if letter == "m")
                    call.receiver.connect((HOST, int(port)))
            if now > LATE + SECONDS + 25:
                break
            time.sleep(0.02)
        # Nothing may come after the BYE was answered: the receivers stay open a little longer.
        time.sleep(0.5)
        for call in calls.values():
            call.receiver.finish()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for row in pool.map(self.judge, calls.values()):
                self.results.add(self.name, *row)

    def judge(self, call):
        what = f"{call.video}{'+' + call.audio if call.audio else ''} by {call.title}"
        try:
            return what, *self.judge_call(call)
        except Exception as e:  # as in Results.check
            return what, [f"{type(e).__name__}: {e}"], ""

    def judge_call(self, call):
        name, receiver, problems = call.name, call.receiver, []
        if call.process.poll() != 0:
            problems.append(f"SIPp says {call.process.poll()}:\n{self.tail(name)}")
        answer = self.answer(name)
        if answer is None:
            return problems + ["no 200 to the INVITE"], ""
        self.check_answer(answer, call, problems)
        messages = self.messages(name)
        acknowledged = next(m.time for m in messages if not m.is_response and m.method == "ACK")
        ended = next((m.time for m in messages if m.status == 200 and m.method == "BYE"), None)
        if receiver.packets and receiver.packets[0][0] < acknowledged - 0.005:
            problems.append("media before the ACK")
        if ended and receiver.packets and receiver.packets[-1][0] > ended + 0.1:
            problems.append(f"media {receiver.packets[-1][0] - ended:.2f} s after the BYE's answer")
        stream = media.Stream(receiver, call.ssrc)
        problems += stream.problems
        if stream.seconds() < 5:
            problems.append(f"{stream.seconds():.1f} s of stream, 5 wanted")
        if stream.video < 25 * 5 * 0.9 or stream.key_frames < 5:
            problems.append(f"{stream.video} pictures, {stream.key_frames} key frames: 25 and 1 a second are made")
        if stream.codec(0xE0) != call.video or (call.audio and (stream.codec(0xC0) != call.audio or not stream.audio)):
            problems.append(f"stream map {stream.types}, {stream.audio} audio frames")
        if not stream.frames:
            return problems, ""
        file = self.folder / f"{name}.ps"
        stream.write(file)
        by_ffmpeg, by_gstreamer, wrong = media.decode(file, stream)
        first = (stream.frames[0].time - acknowledged) * 1000
        if first > FIRST_PICTURE * 1000:
            problems.append(f"the first picture {first:.0f} ms after the ACK")
        detail = (f"{stream.video} pictures ({stream.key_frames} key), {stream.audio} audio, {len(receiver.packets)} packets, "
                  f"{len(receiver.reports)} SR; FFmpeg {by_ffmpeg}, GStreamer {by_gstreamer}; first {first:.0f} ms after ACK")
        return problems + wrong, detail

    def check_answer(self, answer, call, problems):
        lines, ssrc, receiver = siplog.sdp(answer.body), call.ssrc, call.receiver
        values = {letter: value for letter, value in lines if letter != "a"}
        attributes = [value for letter, value in lines if letter == "a"]
        proto = "RTP/AVP" if receiver.kind == "udp" else "TCP/RTP/AVP"
        m = values["m"].split()
        if m[0] != "video" or m[2:] != [proto, "96"] or not 20000 <= int(m[1]) <= 32000:
            problems.append(f"m={values['m']}")
        if values.get("y") != f"{ssrc:010}":
            problems.append(f"y={values.get('y')}, asked for {ssrc:010}")
        if values.get("s") != "Play" or values.get("c") != f"IN IP4 {HOST}" or not values.get("f", "").startswith("v/"):
            problems.append(f"s, c or f: {values}")
        expected = {"sendonly", "rtpmap:96 PS/90000"}
        if receiver.kind != "udp":
            expected |= {"setup:" + ("active" if receiver.kind == "listen" else "passive")}
        if not expected <= set(attributes):
            problems.append(f"attributes {attributes}: {sorted(expected - set(attributes))} missing")
        if [letter for letter, _ in lines][:2] != ["v", "o"] or lines[-1][0] not in "yf":
            problems.append("order of lines: " + " ".join(letter for letter, _ in lines))
        if receiver.sources and {source[1] for source in receiver.sources} != {int(m[1])}:
            problems.append(f"media from {receiver.sources}, the answer says port {m[1]}")

    def keepalive(self, problems, detail):
        def two():
            return [k for k in self.bodies("Keepalive") if k[0].time > self.started + KEEPALIVE + 1][1:]

        wait_for("keepalives", two, 3 * KEEPALIVE)
        beats = self.bodies("Keepalive")
        for message, root, _ in beats:
            if root.tag != "Notify" or root.findtext("DeviceID") != GATEWAY_ID or root.findtext("Status") != "OK":
                problems.append(f"not a keepalive of ours:\n{message}")
        if len({root.findtext("SN") for _, root, _ in beats}) != len(beats):
            problems.append("two keepalives have the same SN")
        gaps = [round(b[0].time - a[0].time, 1) for a, b in zip(beats, beats[1:])]
        if max(gaps) > KEEPALIVE + 1:
            problems.append(f"gaps of {gaps} s")
        detail.append(f"{len(beats)}, gaps of {gaps} s")

    def goodbye(self, problems, detail):
        name = "until_bye"
        call = self.call(name, "play_until_bye", 1, "udp")
        process, receiver = call.process, call.receiver
        wait_for("media", lambda: len(receiver.packets) > 20, 10)
        since = len(self.messages())
        begin = time.monotonic()
        self.daemon.send_signal(signal.SIGTERM)
        try:
            code = self.daemon.wait(10)
            detail.append(f"exit {code} after {time.monotonic() - begin:.1f} s")
            if code:
                problems.append(f"exit status {code}")
        except subprocess.TimeoutExpired:
            problems.append("still running 10 s after SIGTERM")
        try:
            if process.wait(3):
                problems.append(f"SIPp saw no good BYE:\n{self.tail(name)}")
        except subprocess.TimeoutExpired:
            problems.append(f"no BYE:\n{self.tail(name)}")
        receiver.finish()
        time.sleep(0.2)
        after = self.messages()[since:]
        last = [m for m in after if m.received and m.method == "REGISTER"]
        if not last or {m.header("Expires") for m in last} != {"0"}:
            problems.append(f"REGISTER with Expires {[m.header('Expires') for m in last]}, 0 wanted")
        if not any(m.status == 200 and m.method == "REGISTER" for m in after):
            problems.append("the unregistering did not end in a 200")
        self.check_digest(since, problems)

    def proxy_log(self, problems, detail):
        self.processes.stop(self.kamailio)
        text = self.kamailio.log.read_text(errors="replace")
        lines = text.splitlines()
        passed = [line.split("PASSED ")[1] for line in lines if "PASSED " in line]
        # Everything but its own notices is a complaint: its parsers name what they cannot read as ERROR or WARNING.
        for number, line in enumerate(lines):
            if any(word in line for word in ("REFUSED", "BAD ", "ERROR", "CRITICAL", "WARNING", "BUG")):
                problems.append("\n".join(lines[number:number + 16]))
                if len(problems) == 3:
                    break
        counts = {}
        for line in passed:
            kind = line.split(" ")[0] if not line[0].isdigit() else "replies"
            counts[kind] = counts.get(kind, 0) + 1
        for method in ("REGISTER", "MESSAGE", "INVITE", "ACK", "BYE", "replies"):
            if not counts.get(method):
                problems.append(f"no {method} passed")
        detail.append("passed " + ", ".join(f"{count} {method}" for method, count in counts.items()))


def metrics(text):
    """{(name, source): value} of the families that carry a source."""
    found = re.findall(r'^(menshen_\w+)\{[^}]*source="([^"]*)"[^}]*\} ([\d.e+]+)$', text, re.M)
    return {(name, source): float(value) for name, source, value in found}


def is_part(part, whole):
    """Where `part` is in `whole`, in one piece; None when it is not."""
    return next((at for at in range(len(whole) - len(part) + 1) if whole[at:at + len(part)] == part), None) if part else None


class South(Round):
    """GB/T 28181 devices below the gateway: registration, catalogue, pictures over good and bad wires, a kill."""

    def configure(self, _cameras):
        self.clips = self.make_clips()
        return self.configure_devices(["md5"])

    def configure_devices(self, algorithms):
        return configuration(self.folder, self.ports, None, self.gateway, self.http, self.server, self.transport,
                             devices_configured(algorithms))

    def make_clips(self):
        """{"muxer codec": (Clip, MD5 of each picture as its own decoder shows it)}."""
        groups = f"bframes=0:keyint={CLIP_GROUP}:min-keyint={CLIP_GROUP}:scenecut=0"
        encoders = {
            "h264": ["libx264", "-x264-params", groups],
            "hevc": ["libx265", "-x265-params",
                     f"{groups}:open-gop=0:repeat-headers=1:frame-threads=1:pools=none:log-level=error"],
        }
        clips = {}
        for codec, encoder in encoders.items():
            raw = self.folder / f"clip.{codec}"
            # Noise, or pictures would be smaller than a packet and could not be told apart.
            self.tool("ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i",
                      f"testsrc2=size=640x360:rate={CLIP_RATE},noise=alls=12:allf=t", "-t", CLIP_SECONDS, "-pix_fmt", "yuv420p",
                      "-c:v", *encoder, "-preset", "ultrafast", "-threads", 1, "-b:v", "1500k", "-maxrate", "1500k", "-bufsize", "300k",
                      "-f", codec, raw)
            sums = self.sums(raw)
            for muxer in ("ffmpeg", "gstreamer"):
                file = self.folder / f"clip.{muxer}.{codec}.ps"
                if muxer == "ffmpeg":
                    self.tool("ffmpeg", "-nostdin", "-v", "error", "-r", CLIP_RATE, "-i", raw, "-c", "copy", "-f", "vob", file)
                elif codec == "h264":  # GStreamer's does not take H.265
                    # By way of a container, for the times.
                    timed = raw.with_suffix(".mp4")
                    self.tool("ffmpeg", "-nostdin", "-v", "error", "-r", CLIP_RATE, "-i", raw, "-c", "copy", timed)
                    self.tool("gst-launch-1.0", "-q", "filesrc", f"location={timed}", "!", "qtdemux", "!", "h264parse",
                              "config-interval=-1", "!", "mpegpsmux", "!", "filesink", f"location={file}")
                else:
                    continue
                sizes = self.tool("ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "packet=size", "-of", "csv=p=0",
                                  file)
                sizes = [int(line.strip(",")) for line in sizes.split()]
                clips[f"{muxer} {codec}"] = (gbdevice.Clip(file, sizes), sums)
                if muxer == "gstreamer":
                    clips[f"packed {codec}"] = (gbdevice.Clip(file, sizes, CLIP_GROUP), sums)
        return clips

    @staticmethod
    def tool(*command):
        code, text = media.output(*[str(c) for c in command])
        if code:
            raise Failure(f"{command[0]} says {code}: {text[-300:]}")
        return text

    def sums(self, file):
        """The MD5 of each picture FFmpeg decodes, in order."""
        text = self.tool("ffmpeg", "-nostdin", "-v", "fatal", "-i", file, "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framemd5", "-")
        return [line.split(",")[-1].strip() for line in text.splitlines() if line and line[0] != "#" and line.count(",") == 5]

    def http_text(self, path):
        with urllib.request.urlopen(f"http://{HOST}:{self.http}{path}", timeout=5) as answer:
            return answer.read().decode()

    def devices_told(self):
        return {d["id"]: d for d in json.loads(self.http_text("/api/v1/devices"))["items"]}

    # -- the checks --

    def run(self):
        self.devices = {}
        try:
            self.start_peers()
            self.start_gateway("menshen")
            if not self.step("SIPp registers, refreshes", self.sipp_registers):
                return
            self.step("SIPp: wrong password", self.wrong_password)
            self.step("SIPp: keepalive, queries, SUBSCRIBE", self.sipp_answers)
            if not self.step("devices register (MD5)", self.devices_register):
                return
            self.step("catalogue of devices, upwards", self.catalogue_upwards)
            self.play_devices()
            self.step("what devices saw", self.what_devices_saw)
            self.step("kill -9 and restart", self.restart)
            self.step("SHA-256 after the restart", self.sha256)
        finally:
            for device in self.devices.values():
                device.close()
            self.processes.stop_all()

    def step(self, what, body):
        with self.results.check(self.name, what) as (problems, detail):
            body(problems, detail)
        return not self.results.rows[-1][2]

    def start_gateway(self, name):
        self.daemon = self.processes.start(name, self.menshen, "run", "-c", self.config)
        health = [self.menshen, "health", "--ready", "-c", self.config]
        wait_for("health --ready", lambda: subprocess.run(health, capture_output=True, timeout=10).returncode == 0, 15)

    def device_keys(self, password):
        return ["-au", SIPP_DEVICE, "-ap", password, "-key", "device", SIPP_DEVICE, "-key", "home", GATEWAY_ID[:10], "-key", "first",
                f"{SIPP_DEVICE[:10]}1310000101", "-key", "second", f"{SIPP_DEVICE[:10]}1310000102"]

    def sipp_registers(self, problems, detail):
        self.sipp("device", "device", self.ports.take(), "-oocsf", HERE / "sipp" / "device_asked.xml", *self.device_keys(DEVICE_PASSWORD),
                  seconds=90)

        def answers():
            found = [m for m in self.messages("device") if m.received and m.method == "REGISTER"]
            return found if len(found) == 4 else None

        found = wait_for("two registrations of two answers", answers, 8)
        if [m.status for m in found] != [401, 200, 401, 200]:
            problems.append(f"answers {[m.start for m in found]}")
        first, accepted = found[0], found[1]
        _, asked = siplog.credentials(first.header("WWW-Authenticate"))
        if asked.get("realm") != GATEWAY_ID[:10] or not asked.get("nonce") or asked.get("algorithm", "MD5") != "MD5":
            problems.append(f"challenge {first.header('WWW-Authenticate')}")
        if asked.get("nonce") == siplog.credentials(found[2].header("WWW-Authenticate"))[1].get("nonce"):
            problems.append("the refresh was challenged with the old nonce")
        if accepted.header("Expires") != "3600" or not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", accepted.header("Date")):
            problems.append(f"Expires {accepted.header('Expires')!r}, Date {accepted.header('Date')!r}")
        detail.append(f"401 200 401 200, realm {asked.get('realm')}, X-GB-Ver {accepted.header('X-GB-Ver')}")

    def wrong_password(self, problems, detail):
        code = self.sipp("refused", "device_refused", self.ports.take(), *self.device_keys("not it")).wait(45)
        if code:
            problems.append(f"SIPp says {code}:\n{self.tail('refused')}")
        detail += [m.start for m in self.messages("refused") if m.status == 403][:1]
        told = self.devices_told().get(SIPP_DEVICE, {})
        if told.get("state") != "online":
            problems.append(f"the device that is there is {told.get('state')}: somebody else's failure must not end it")

    def sipp_answers(self, problems, detail):
        def told():
            device = self.devices_told().get(SIPP_DEVICE, {})
            return device if device.get("channels") == 2 and device.get("manufacturer") == "SIPp" else None

        told = wait_for("the catalogue and information of SIPp's device", told, 10)
        messages = self.messages("device")
        alive = [m for m in messages if not m.received and b"Keepalive" in m.body]
        taken = [m for m in messages if m.received and m.status == 200 and m.method == "MESSAGE"]
        subscribed = [m for m in messages if m.received and m.start.startswith("SUBSCRIBE")]
        refused = [m for m in messages if m.status == 489]
        if not subscribed or len(refused) < len(subscribed):
            problems.append(f"{len(subscribed)} SUBSCRIBE, {len(refused)} answers 489")
        if told["state"] != "online" or told["model"] != "S1" or told["user_agent"] != "SIPp":
            problems.append(f"told {told}")
        wrong = [m.start for m in messages if m.received and m.is_response and m.status not in (200, 401)]
        if wrong:
            problems.append(f"answers {wrong}")
        detail.append(f"{len(alive)} keepalives, {len(taken)} MESSAGEs taken, {told['channels']} channels in two messages, "
                      f"{len(refused)} SUBSCRIBE refused, {told['catalog_mode']}")

    def channel(self, code):
        return f"{code[:10]}131{code[13:]}"

    @staticmethod
    def wire(clip, seed, faults):
        """A wire that leaves two key frames whole behind its first loss: without any there is nothing to show, rightly."""
        while True:
            trial = gbdevice.Wire(seed, **faults)
            for number in range(clip.count):
                trial.pass_on(number, bytes(12), clip.count - 1)
            behind = [picture for picture in clip.pictures[::CLIP_GROUP] if picture[0] > min(trial.dropped, default=-1)]
            whole = sum(1 for first, last in behind if trial.dropped.isdisjoint(range(first, last + 1)))
            if whole >= 2:
                return gbdevice.Wire(seed, **faults)
            seed += 100

    def devices_register(self, problems, detail):
        for code, made, _, _, faults in DEVICES:
            clip, seed = self.clips[made][0], int(code[-2:])
            channel = self.channel(code)
            self.devices[code] = gbdevice.Device(code, DEVICE_PASSWORD, GATEWAY_ID, (HOST, self.gateway), self.ports.take(),
                                                 {channel: (f"通道{code[-2:]}", clip, self.wire(clip, seed, faults))})
        for code, device in self.devices.items():
            _, answer = device.register()
            if answer is None or answer.status != 200:
                raise Failure(f"{code}: {answer}")
            beat = device.keepalive()
            if beat is None or beat.status != 200:
                problems.append(f"{code}: keepalive answered {beat}")

        def all_there():
            told = self.devices_told()
            return all(told.get(code, {}).get("channels") == 1 for code in self.devices)

        begin = time.monotonic()
        wait_for("the catalogues of all devices", all_there, 15)
        detail.append(f"{len(self.devices)} devices, GB2312, catalogues {time.monotonic() - begin:.1f} s later")

    def upper_catalogue(self, sn):
        """{code: item} as the upper platform is told."""
        self.query("Catalog", sn)

        def whole():
            pages = [root for _, root, _ in self.bodies("Catalog") if root.findtext("SN") == str(sn)]
            items = [item for root in pages for item in root.iter("Item")]
            return items if pages and len(items) >= int(pages[0].findtext("SumNum")) else None

        return {item.findtext("DeviceID"): item for item in wait_for("the catalogue", whole, 10)}

    def wrong_states(self, items, on):
        """Channels whose Status is not ON for devices in `on`, OFF for the others."""
        expected = {f"{SIPP_DEVICE[:10]}13100001{n:02}": SIPP_DEVICE in on for n in (1, 2)}
        expected |= {self.channel(code): code in on for code in self.devices}
        found = {code: items[code].findtext("Status") if code in items else "missing" for code in expected}
        return {code: found[code] for code, is_on in expected.items() if found[code] != ("ON" if is_on else "OFF")}

    def catalogue_upwards(self, problems, detail):
        items = self.upper_catalogue(1701)
        names = {f"{SIPP_DEVICE[:10]}1310000101": "南门枪机", f"{SIPP_DEVICE[:10]}1310000102": "南门球机"}
        names |= {self.channel(code): f"通道{code[-2:]}" for code in self.devices}
        for code, name in names.items():
            if code not in items or items[code].findtext("Name") != name:
                problems.append(f"{code}: {items[code].findtext('Name') if code in items else 'missing'}, {name} expected")
        if wrong := self.wrong_states(items, {SIPP_DEVICE, *self.devices}):
            problems.append(f"Status of {wrong}")
        detail.append(f"{len(items)} items, {len(names)} of them devices' channels")

    def play_devices(self):
        before = metrics(self.http_text("/metrics"))
        calls = []  # (row of DEVICES, call, joined late)
        for number, row in enumerate(DEVICES):
            # Upwards by TCP for half of those whose wire is good.
            calls.append((row, self.call_device(row, "tcp passive" if not row[4] and number % 2 else "udp"), False))
        time.sleep(LATE_DEVICE)
        calls += [(row, self.call_device(row, "udp", "_late"), True) for row in DEVICES if row[2] == "udp" and not row[4]]
        deadline = time.monotonic() + CLIP_SECONDS + 15
        while any(call.process.poll() is None for _, call, _ in calls) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        for _, call, _ in calls:
            call.receiver.finish()
        after = metrics(self.http_text("/metrics"))
        log = re.sub(r"\x1b\[[\d;]*m", "", (self.folder / "menshen.out").read_text(errors="replace"))
        counted = {key: value - before.get(key, 0) for key, value in after.items()}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for what, problems, detail in pool.map(lambda call: self.judge_device(*call, counted, log), calls):
                self.results.add(self.name, what, problems, detail)

    def call_device(self, row, kind, suffix=""):
        code, made, _, _, _ = row
        receive, setup = KINDS[kind]
        seconds = CLIP_SECONDS + 1 - (LATE_DEVICE if suffix else 0)
        return self.call_channel(f"device_{code[-2:]}{suffix}", "play_tcp" if setup else "play_udp", self.channel(code), receive, setup,
                                 made.split()[1], seconds=seconds)

    def judge_device(self, row, call, late, counted, log):
        code, made, way, _, faults = row
        plane = (re.findall(rf"device={code} .*?plane=\"?(\w+)", log) or ["no plane"])[-1]
        spoilt = " ".join(f"{key} {value:.0%}" if isinstance(value, float) else key for key, value in faults.items())
        what = f"{made}, {KIND_WORDS[way]} {'joined late' if late else spoilt}"
        problems, detail = [], []
        try:
            self.judge_pictures(row, call, late, plane, problems, detail)
            if not late:
                self.judge_counts(row, counted, problems, detail)
        except Exception as e:  # as in Results.check
            problems.append(f"{type(e).__name__}: {e}")
        return what, problems, f"{plane}: " + "; ".join(detail)

    def judge_pictures(self, row, call, late, plane, problems, detail):
        code, made, _, _, _ = row
        clip, sums = self.clips[made]
        wire = self.devices[code].channels[self.channel(code)][2]
        if call.process.poll() != 0:
            problems.append(f"SIPp says {call.process.poll()}:\n{self.tail(call.name)}")
        relayed = plane == "relay"
        stream = media.Stream(call.receiver, call.ssrc, relayed, None if late else len(wire.dropped) if relayed else 0)
        problems += stream.problems
        # Two things are found out with the second picture, and cost the first group what is behind its key frame: that markers
        # cut pictures (the key frame was cut, too), and that pictures have no pack of their own and cannot be relayed.
        found_out = not late and (wire.cut or made.startswith("gstreamer"))
        if found_out:
            del stream.frames[:1]
        file = self.folder / f"{call.name}.ps"
        stream.write(file)
        decoded = self.sums(file)
        # What a lost packet spoils is gone until the next key frame, and nothing else is.
        expected, whole = [], False
        for number, (first, last) in enumerate(clip.pictures):
            hurt = any(packet in wire.dropped for packet in range(first, last + 1))
            whole = not hurt and (whole or number % CLIP_GROUP == 0)
            if whole:
                expected.append(sums[number])
        if not wire.dropped:
            # In one piece from a key frame on, and to the end but for the last picture, whose end nothing tells.
            at = is_part(decoded, sums)
            if at is None:
                odd = [n for n, md5 in enumerate(decoded) if md5 not in sums]
                problems.append(f"{len(decoded)} pictures are not the source's in one piece; not among them: {odd[:10]}")
            elif at + len(decoded) < len(sums) - 1 or at % CLIP_GROUP or at > (125 if late else CLIP_GROUP if found_out else 0):
                problems.append(f"pictures from {at} on, {len(decoded)} of {len(sums)}")
        elif decoded != expected and decoded != expected[:-1]:
            missing = [sums.index(md5) for md5 in expected if md5 not in decoded]
            more = [sums.index(md5) if md5 in sums else "broken" for md5 in decoded if md5 not in expected]
            problems.append(f"{len(decoded)} pictures, {len(expected)} could be whole; missing {missing[:12]}, more {more[:12]}")
        by_gstreamer = media.count_by_gstreamer(file, call.video)
        if by_gstreamer != len(decoded):
            problems.append(f"GStreamer decodes {by_gstreamer} pictures, FFmpeg {len(decoded)}")
        detail.append(f"{len(decoded)} of {len(sums)} pictures alike, GStreamer {by_gstreamer}")

    def judge_counts(self, row, counted, problems, detail):
        code, _, way, _, _ = row
        wire = self.devices[code].channels[self.channel(code)][2]
        for name, expected in (("packets_received", wire.sent), ("packets_lost", len(wire.dropped)), ("reordered", wire.late),
                               ("duplicates", wire.twice), ("alien_ssrc", wire.aliens), ("late", 0)):
            value = counted.get((f"menshen_rtp_{name}_total", code))
            if value != expected and not (value is None and not expected):
                problems.append(f"menshen_rtp_{name}_total is {value}, {expected} were made")
        detail.append(f"{wire.sent} packets, lost {len(wire.dropped)}, reordered {wire.late}, twice {wire.twice}, alien {wire.aliens}")

    def what_devices_saw(self, problems, detail):
        counts = {}
        for code, device in self.devices.items():
            problems += [f"{code}: {problem}" for problem in device.problems[:2]]
            for message in device.requests:
                method = message.start.split()[0]
                counts[method] = counts.get(method, 0) + 1
            # Whoever joins later shares the session that is there.
            methods = [m.start.split()[0] for m in device.requests if m.start.split()[0] in ("INVITE", "ACK", "BYE")]
            if methods != ["INVITE", "ACK", "BYE"]:
                problems.append(f"{code}: {methods}")
            problems += [f"{code}: media: {call.problem}" for call in device.calls.values() if call.problem]
        detail.append(", ".join(f"{count} {method}" for method, count in sorted(counts.items())))

    def restart(self, problems, detail):
        registered = len([m for m in self.messages("device") if m.start.startswith("REGISTER")])
        time.sleep(1.2)  # bindings are written at most a second after they change
        self.daemon.kill()
        self.daemon.wait()
        self.config = self.configure_devices(["sha-256", "md5"])
        self.start_gateway("menshen2")
        since = time.time()
        first, second = list(self.devices)[:2]

        def heard():
            return [m for m in self.messages("device") if m.time > since and m.received and m.status == 200 and m.method == "MESSAGE"]

        wait_for("an answer to SIPp's keepalive", heard, 6)
        wrong = self.wrong_states(self.upper_catalogue(1702), {SIPP_DEVICE})
        if wrong:
            problems.append(f"after SIPp's keepalive alone: Status of {wrong}")
        # From another port of the same host first: that says nothing about the device.
        other = gbdevice.Device(second, DEVICE_PASSWORD, GATEWAY_ID, (HOST, self.gateway), self.ports.take())
        try:
            answer = other.keepalive()
        finally:
            other.close()
        if answer is None or answer.status != 403:
            problems.append(f"a keepalive from another port is answered {answer and answer.start}")
        same = self.devices[first].keepalive()
        if same is None or same.status != 200:
            problems.append(f"a keepalive from the same socket is answered {same and same.start}")
        wrong = self.wrong_states(self.upper_catalogue(1703), {SIPP_DEVICE, first})
        if wrong:
            problems.append(f"after {first}'s: Status of {wrong}")
        if len([m for m in self.messages("device") if m.start.startswith("REGISTER")]) != registered:
            problems.append("SIPp had to register anew")
        detail.append(f"same socket {same and same.status}, other port {answer and answer.status}, no REGISTER")

    def sha256(self, problems, detail):
        device = self.devices[list(self.devices)[-1]]
        challenges, answer = device.register(password="not it")
        if answer is None or answer.status != 403:
            problems.append(f"a wrong password is answered {answer and answer.start}")
        challenges, answer = device.register()
        asked = [siplog.credentials(challenge)[1].get("algorithm") for challenge in challenges]
        if asked != ["SHA-256", "MD5"]:
            problems.append(f"challenges {challenges}")
        if answer is None or answer.status != 200:
            problems.append(f"the answer by SHA-256 is answered {answer}")
        detail.append(f"offered {asked}, wrong 403, right {answer and answer.status}")


def start_cameras(processes, port):
    # The distribution's Python has the GStreamer bindings; another one that runs this file may not.
    cameras = processes.start("cameras", "/usr/bin/python3", HERE / "rtspcam.py", "--port", port, "--password", CAMERA_PASSWORD)
    wait_for("the RTSP cameras", lambda: "/h264_aac" in cameras.log.read_text() or cameras.poll() is not None, 20)
    if cameras.poll() is not None:
        raise Failure(f"the cameras ended: {cameras.log.read_text()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--menshen", type=pathlib.Path, default=HERE.parent.parent / "target" / "release" / "menshen")
    parser.add_argument("--round", action="append", choices=["direct", "kamailio", "sip-tcp", "south"], help="only this one")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for logs, messages and streams; default: a temporary one")
    options = parser.parse_args()
    options.menshen = options.menshen.resolve()
    missing = [tool for tool in ("sipp", "ffmpeg", "ffprobe", "gst-launch-1.0") if not shutil.which(tool)]
    if not (shutil.which("kamailio") or pathlib.Path("/usr/sbin/kamailio").exists()):
        missing.append("kamailio")
    if missing or not options.menshen.exists():
        sys.exit(f"missing: {', '.join(missing) or options.menshen}: see the head of {pathlib.Path(__file__).name}")

    def too_long(*_):
        raise SystemExit(f"not done after {LIMIT} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    begin = time.monotonic()
    folder = options.keep or pathlib.Path(tempfile.mkdtemp(prefix="menshen-interop-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results, processes, ports = Results(), Processes(folder), Ports()
    rounds = {
        "direct": {},
        "kamailio": {"proxy": True, "qop": ',algorithm=MD5,qop="auth"', "edition": "3.0"},
        "sip-tcp": {"transport": "tcp"},
        "south": {},
    }
    wanted = options.round or list(rounds)
    try:
        port = ports.take()
        if wanted != ["south"]:
            start_cameras(processes, port)
        for name in wanted:
            kind = South if name == "south" else Round
            kind(name, options, ports, port, folder, results, **rounds[name]).run()
    finally:
        processes.stop_all()
    failed = results.failed()
    print(f"{len(results.rows)} checks, {failed} failed, {time.monotonic() - begin:.0f} s")
    if failed or not results.rows:
        print(f"logs, messages and streams: {folder}")
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
