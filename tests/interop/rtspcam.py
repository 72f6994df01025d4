#!/usr/bin/python3
"""An RTSP camera that is not ours: GStreamer's RTSP server with live test pictures, for interoperability tests.

Listens on loopback only, asks for digest credentials, serves UDP and TCP. Prints one URL a line once it is ready.
Needs the distribution's Python (python3-gi) and gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-{base,good,bad,ugly}, gstreamer1.0-libav.
"""
import argparse
import signal
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

# I420 is named because x265enc would otherwise choose 4:4:4, which no camera sends.
PICTURES = "videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=640,height=360,framerate=25/1 ! "
H264 = (PICTURES + "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 bitrate=500 ! video/x-h264,profile=main ! "
        "rtph264pay name=pay0 pt=96 config-interval=-1 ")
H265 = (PICTURES + "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=25 bitrate=500 ! "
        "rtph265pay name=pay0 pt=96 config-interval=-1 ")
TICKS = "audiotestsrc is-live=true wave=ticks ! audio/x-raw,rate=8000,channels=1 ! "
TONE = "audiotestsrc is-live=true ! audio/x-raw,rate=16000,channels=1 ! "
MOUNTS = {
    "/h264": H264,
    "/h265": H265,
    "/h264_pcma": H264 + TICKS + "alawenc ! rtppcmapay name=pay1 pt=8 ",
    "/h265_pcmu": H265 + TICKS + "mulawenc ! rtppcmupay name=pay1 pt=0 ",
    "/h264_aac": H264 + TONE + "avenc_aac bitrate=32000 ! rtpmp4gpay name=pay1 pt=97 ",
}


def digest_auth(user, password):
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    auth.add_digest(user, password, token)
    return auth


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=8554, help="TCP port on 127.0.0.1 (8554)")
    parser.add_argument("--user", default="admin")
    parser.add_argument("--password", default="Pass-1234")
    args = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(args.port))
    server.set_auth(digest_auth(args.user, args.password))
    may = "viewer, media.factory.access=(boolean)true, media.factory.construct=(boolean)true"
    for path, launch in MOUNTS.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch("( " + launch + ")")
        factory.set_shared(True)
        factory.add_role_from_structure(Gst.Structure.new_from_string(may))
        server.get_mount_points().add_factory(path, factory)
    if server.attach(None) == 0:
        sys.exit("cannot listen on 127.0.0.1:%d: choose a free port with --port" % args.port)
    for path in MOUNTS:
        print("rtsp://127.0.0.1:%d%s" % (args.port, path), flush=True)
    loop = GLib.MainLoop()
    for stop in (signal.SIGINT, signal.SIGTERM):
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, stop, loop.quit)
    loop.run()


if __name__ == "__main__":
    main()
