"""An upper platform's media side, and what must hold for the PS it receives.

`Receiver` takes RTP over UDP, or over TCP as listener or as connector (RFC 4571). `Stream` holds what came.
Nothing here is shared with the gateway: RTP and PS are read anew from the standards' own layout.
"""
import socket
import struct
import subprocess
import threading
import time

PACK, SYSTEM, MAP, VIDEO, AUDIO = (b"\0\0\1" + bytes([code]) for code in (0xBA, 0xBB, 0xBC, 0xE0, 0xC0))
STREAM_TYPES = {0x1B: "h264", 0x24: "hevc", 0x90: "pcm_alaw", 0x91: "pcm_mulaw", 0x0F: "aac"}
GSTREAMER = {"h264": "h264", "hevc": "h265"}  # its names of codecs
HOST = "127.0.0.1"


class Receiver(threading.Thread):
    """Takes one stream until `finish`. kind: udp, listen (TCP, the gateway connects), connect (TCP, we do)."""

    def __init__(self, kind, port):
        super().__init__(daemon=True)
        self.kind, self.port = kind, port
        self.packets, self.reports, self.sources, self.wrong = [], [], set(), []
        self.done, self.target = threading.Event(), None
        self.rtcp = None
        if kind == "udp":
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self.socket.bind((HOST, port))
            self.rtcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.rtcp.bind((HOST, port + 1))
            self.rtcp.setblocking(False)
        elif kind == "listen":
            self.socket = socket.create_server((HOST, port))
        else:
            self.socket = None
        if self.socket:
            self.socket.settimeout(0.2)
        self.start()

    def connect(self, address):
        """For kind connect: where the SDP answer says to go."""
        self.target = address

    def finish(self):
        self.done.set()
        self.join(5)

    def run(self):
        try:
            if self.kind == "udp":
                self.take_datagrams()
            else:
                self.take_connection()
        except OSError as e:
            self.wrong.append(f"media socket: {e}")

    def take_datagrams(self):
        while not self.done.is_set():
            try:
                packet, source = self.socket.recvfrom(65536)
            except TimeoutError:
                packet = None
            if packet is not None:
                self.packets.append((time.time(), packet))
                self.sources.add(source)
            try:
                self.reports.append(self.rtcp.recv(2048))
            except BlockingIOError:
                pass
        self.socket.close()
        self.rtcp.close()

    def take_connection(self):
        connection = None
        while connection is None and not self.done.is_set():
            try:
                if self.kind == "listen":
                    connection, source = self.socket.accept()
                    self.sources.add(source)
                elif self.target:
                    connection = socket.create_connection(self.target, 2)
                else:
                    time.sleep(0.01)
            except TimeoutError:
                pass
        if connection is None:
            return
        connection.settimeout(0.2)
        pending = b""
        while not self.done.is_set():
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                continue
            if not piece:
                break
            pending += piece
            now = time.time()
            while len(pending) >= 2 and len(pending) >= 2 + (size := int.from_bytes(pending[:2])):
                self.packets.append((now, pending[2:2 + size]))
                pending = pending[2 + size:]
        connection.close()
        if self.socket:
            self.socket.close()


def pack_clock(data):
    """SCR base of a pack header, 90 kHz [ISO/IEC 13818-1 2.5.3.3]."""
    bits = int.from_bytes(data[4:10])
    return (bits >> 43 & 7) << 30 | (bits >> 27 & 0x7FFF) << 15 | bits >> 11 & 0x7FFF


class Frame:
    """All RTP packets of one timestamp: the bytes of one PS pack."""

    def __init__(self, time, timestamp):
        self.time, self.timestamp, self.data, self.ends_with_marker = time, timestamp, bytearray(), False


class Stream:
    """What a receiver got, checked: `problems` is empty when all that must hold does.

    relayed: the packs are another maker's and are not looked at; as many packets are missing as `missing` says (None: any), and frames
    that a gap spoils are left out, with those behind them up to the next stream map.
    """

    def __init__(self, receiver, ssrc, relayed=False, missing=0):
        self.relayed, self.missing, self.gaps, self.spoilt = relayed, missing, 0, set()
        self.problems = list(receiver.wrong)
        self.frames, self.video, self.audio, self.types = [], 0, 0, {}
        self.key_frames, self.clock = 0, -1
        self.read_packets(receiver.packets, ssrc)
        for report in receiver.reports:
            self.read_report(report, ssrc)
        # A cut in the middle of a frame is the receiver's doing, not the sender's.
        if self.frames and not self.frames[-1].ends_with_marker:
            self.frames.pop()
        if relayed:
            self.leave_out_spoilt()
        else:
            for number, frame in enumerate(self.frames):
                self.read_pack(number, frame)
        if missing is not None and self.gaps != missing:
            self.problems.append(f"{self.gaps} packets are missing by their numbers, {missing} were lost before")
        self.problems = self.problems[:5]

    def seconds(self):
        """By the timestamps."""
        if not self.frames:
            return 0.0
        return ((self.frames[-1].timestamp - self.frames[0].timestamp) & 0xFFFFFFFF) / 90000

    def codec(self, stream):
        return STREAM_TYPES.get(self.types.get(stream), str(self.types.get(stream)))

    def read_packets(self, packets, ssrc):
        expected = None
        for number, (when, packet) in enumerate(packets):
            if len(packet) < 13:
                self.problems.append(f"packet {number} has {len(packet)} bytes")
                continue
            first, second, sequence, timestamp, source = struct.unpack(">BBHII", packet[:12])
            marker, kind = second >> 7, second & 0x7F
            if first != 0x80:
                self.problems.append(f"packet {number}: first byte {first:#04x}: neither version 2 nor plain")
            if kind != 96:
                self.problems.append(f"packet {number}: payload type {kind}, not 96")
            if source != ssrc:
                self.problems.append(f"packet {number}: SSRC {source:010}, not {ssrc:010}")
            if len(packet) - 12 > 1400:
                self.problems.append(f"packet {number}: payload of {len(packet) - 12} bytes")
            gap = (sequence - expected) & 0xFFFF if expected is not None else 0
            if gap and self.missing == 0:
                self.problems.append(f"packet {number}: sequence {sequence}, not {expected}")
            if gap:
                # Of this frame or the one before: without its marker that one is cut, without its pack header this one.
                self.gaps += gap
                if self.frames and not self.frames[-1].ends_with_marker:
                    self.spoilt.add(len(self.frames) - 1)
                if self.frames and self.frames[-1].timestamp != timestamp and not packet[12:].startswith(PACK):
                    self.spoilt.add(len(self.frames))
            expected = (sequence + 1) & 0xFFFF
            payload = packet[12:]
            if not self.frames or self.frames[-1].timestamp != timestamp:
                if self.frames and not self.frames[-1].ends_with_marker and not gap:
                    self.problems.append(f"packet {number}: a new timestamp, but the one before had no marker")
                if not payload.startswith(PACK) and not gap:
                    self.problems.append(f"packet {number}: a new timestamp without a new pack")
                if self.frames and (timestamp - self.frames[-1].timestamp) & 0x80000000:
                    self.problems.append(f"packet {number}: the timestamp goes back")
                self.frames.append(Frame(when, timestamp))
            elif self.frames[-1].ends_with_marker:
                self.problems.append(f"packet {number}: the timestamp of the frame before")
            frame = self.frames[-1]
            frame.data += payload
            frame.ends_with_marker = bool(marker)

    def leave_out_spoilt(self):
        whole, kept = False, []
        for number, frame in enumerate(self.frames):
            # GStreamer's muxer writes a map before each key frame.
            whole = number not in self.spoilt and (whole or MAP in bytes(frame.data[:256]))
            if whole:
                kept.append(frame)
        self.frames = kept

    def read_report(self, report, ssrc):
        kind, source = report[1], int.from_bytes(report[4:8])
        if kind != 200 or source != ssrc:
            self.problems.append(f"RTCP type {kind} of SSRC {source:010}, not a sender report of {ssrc:010}")

    def read_pack(self, number, frame):
        data = bytes(frame.data)
        if not data.startswith(PACK) or data[4] >> 6 != 1:
            return self.problems.append(f"frame {number} does not begin with a pack header")
        clock = pack_clock(data)
        if clock < self.clock:
            self.problems.append(f"frame {number}: the SCR goes back from {self.clock} to {clock}")
        self.clock = clock
        at, seen = 14 + (data[13] & 7), []
        while at < len(data):
            code, size = data[at:at + 4], int.from_bytes(data[at + 4:at + 6])
            if code[:3] != b"\0\0\1" or size == 0 or at + 6 + size > len(data):
                return self.problems.append(f"frame {number}: at byte {at} is no PS packet: {data[at:at + 8].hex(' ')}")
            body = data[at + 6:at + 6 + size]
            if code == MAP:
                self.read_map(body)
            if code in (VIDEO, AUDIO) and body[1] >> 6:
                seen.append(code)
                if code == VIDEO:
                    self.video += 1
                    self.read_picture(number, body[3 + body[2]:])
                else:
                    self.audio += 1
            elif code in (SYSTEM, MAP):
                seen.append(code)
            at += 6 + size
        if MAP in seen:
            self.key_frames += 1
            if seen[:3] != [SYSTEM, MAP, VIDEO]:
                self.problems.append(f"frame {number}: pack header, system header, map, video expected")
        elif SYSTEM in seen:
            self.problems.append(f"frame {number}: a system header without a map")
        if number == 0 and MAP not in seen:
            self.problems.append("the stream does not begin with a key frame")

    def read_picture(self, number, data):
        """The access unit delimiter, if there is one, stands first [H.264 7.4.1.2.3, H.265 7.4.2.4.4]."""
        hevc = self.codec(0xE0) == "hevc"
        kinds = [nal[0] >> 1 & 63 if hevc else nal[0] & 31 for nal in data.split(b"\0\0\1")[1:9] if nal]
        delimiter = 35 if hevc else 9
        if delimiter in kinds[1:]:
            self.problems.append(f"frame {number}: NAL units {kinds}: the delimiter is not the first")

    def read_map(self, body):
        at = 6 + int.from_bytes(body[2:4])
        end = at + int.from_bytes(body[at - 2:at])
        while at + 4 <= end:
            self.types[body[at + 1]] = body[at]
            at += 4 + int.from_bytes(body[at + 2:at + 4])

    def write(self, path):
        """The PS, and beside it the same with the 40-byte head that makes FFmpeg read G.711 by the stream map."""
        data = b"".join(bytes(frame.data) for frame in self.frames)
        path.write_bytes(data)
        path.with_suffix(".imkh.ps").write_bytes(b"IMKH" + bytes(36) + data)


def output(*command, seconds=60):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    return done.returncode, done.stdout.decode(errors="replace")


def decode(path, stream):
    """What FFmpeg and GStreamer say of a written stream: (frames by FFmpeg, by GStreamer, problems)."""
    problems, video, audio = [], stream.codec(0xE0), stream.codec(0xC0)
    path_of_both = path.with_suffix(".imkh.ps")
    code, text = output("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=codec_name,nb_read_frames",
                        "-of", "csv=p=0", str(path_of_both))
    found = dict(line.split(",")[:2] for line in text.split() if "," in line)
    by_ffmpeg = int(found[video]) if found.get(video, "").isdigit() else 0
    if code or by_ffmpeg != stream.video:
        problems.append(f"ffprobe reads {text.split()}, {stream.video} pictures of {video} were sent")
    if 0xC0 in stream.types and (not found.get(audio, "").isdigit() or int(found[audio]) < stream.audio * 0.9):
        problems.append(f"ffprobe reads {text.split()}, {stream.audio} frames of {audio} were sent")
    code, text = output("ffmpeg", "-nostdin", "-v", "error", "-i", str(path_of_both), "-f", "null", "-")
    if code or text.strip():
        problems.append(f"ffmpeg: {text.strip()[:200]}")
    if video not in GSTREAMER:
        return by_ffmpeg, 0, problems + [f"video codec {video}"]
    by_gstreamer = count_by_gstreamer(path, video)
    if by_gstreamer != stream.video:
        problems.append(f"GStreamer decodes {by_gstreamer} of {stream.video} pictures")
    return by_ffmpeg, by_gstreamer, problems


def count_by_gstreamer(path, video):
    """Pictures GStreamer decodes of a PS file; a minus when it gave up."""
    short = GSTREAMER[video]
    # The queue makes the demuxer take what comes: with a file at hand it looks for the first PTS and misses it in a pack
    # that begins with system header and map.
    code, text = output("gst-launch-1.0", "-v", "filesrc", f"location={path}", "!", "queue", "!", "mpegpsdemux", "name=demux", "demux.", "!",
                        f"video/x-{short}", "!", "queue", "!", f"{short}parse", "!", f"avdec_{short}", "max-threads=1", "!",
                        "fakesink", "silent=false", "sync=false")
    count = text.count("last-message = chain")
    return -count if code else count
