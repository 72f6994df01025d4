//! A platform written by hand: requests byte by byte, answers as text. For what a well-behaved simulator never sends.

use crate::support::{LOCAL, SERVER, SOON};
use std::net::SocketAddr;
use tokio::net::UdpSocket;

pub struct RawPeer {
    pub socket: UdpSocket,
    to: SocketAddr,
    count: u32,
}

impl RawPeer {
    /// `to`: the gateway's SIP address.
    pub async fn new(to: SocketAddr) -> RawPeer {
        RawPeer { socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(), to, count: 0 }
    }

    pub async fn receive(&self) -> String {
        let mut buf = vec![0; 65_536];
        let n = tokio::time::timeout(SOON, self.socket.recv(&mut buf)).await.expect("a message in time").unwrap();
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    pub async fn send(&self, text: &str) {
        self.socket.send_to(text.as_bytes(), self.to).await.unwrap();
    }

    /// A request outside any dialog; `headers` are whole lines without their ends. Gives the Call-ID.
    pub async fn request(&mut self, method: &str, user: &str, headers: &[&str], body: &str) -> String {
        self.count += 1;
        let (local, n) = (self.socket.local_addr().unwrap(), self.count);
        let call_id = format!("raw-{n}@{local}");
        let mut text = format!(
            "{method} sip:{user}@{to} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bKraw{n}x{port}\r\n\
             From: <sip:{SERVER}@4113000000>;tag=raw{n}\r\nTo: <sip:{user}@4113000000>\r\nCall-ID: {call_id}\r\n\
             CSeq: 1 {method}\r\nContact: <sip:{SERVER}@{local}>\r\nMax-Forwards: 70\r\n",
            to = self.to,
            port = local.port(),
        );
        for header in headers {
            text.push_str(header);
            text.push_str("\r\n");
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        self.send(&text).await;
        call_id
    }

    /// The same, and its final answer.
    pub async fn ask(&mut self, method: &str, user: &str, headers: &[&str], body: &str) -> String {
        let call_id = self.request(method, user, headers, body).await;
        self.answer(&call_id).await
    }

    /// The final answer in this call; requests of the gateway and provisional answers are passed over.
    pub async fn answer(&self, call_id: &str) -> String {
        loop {
            let text = self.receive().await;
            if text.starts_with("SIP/2.0 ") && !text.starts_with("SIP/2.0 1") && text.contains(call_id) {
                return text;
            }
        }
    }

    /// ACK of a refusal of an INVITE made with `request`: it has the INVITE's branch.
    pub async fn ack(&self, user: &str, answer: &str) {
        let line = |name: &str| answer.lines().find(|l| l.starts_with(name)).unwrap_or_default().to_owned();
        let via = line("Via").split(";received").next().unwrap_or_default().to_owned();
        let (n, port) = (self.count, self.socket.local_addr().unwrap().port());
        let via = match via.contains("branch") {
            true => via,
            false => format!("{via};branch=z9hG4bKraw{n}x{port}"),
        };
        let text = format!(
            "ACK sip:{user}@{} SIP/2.0\r\n{via}\r\n{}\r\n{}\r\n{}\r\nCSeq: 1 ACK\r\nContent-Length: 0\r\n\r\n",
            self.to,
            line("From"),
            line("To"),
            line("Call-ID"),
        );
        self.send(&text).await;
    }
}

/// A platform that answers 200 to everything.
pub struct Yes {
    pub socket: UdpSocket,
}

impl Yes {
    pub async fn new() -> Yes {
        Yes { socket: UdpSocket::bind("127.0.0.1:0").await.unwrap() }
    }

    /// The next request with this method; all requests before it, and it, are answered 200.
    pub async fn next(&self, method: &str) -> String {
        let mut buf = vec![0; 65_536];
        loop {
            let received = tokio::time::timeout(SOON, self.socket.recv_from(&mut buf)).await;
            let (n, from) = received.unwrap_or_else(|_| panic!("no {method} in time")).unwrap();
            let text = String::from_utf8_lossy(&buf[..n]).into_owned();
            if text.starts_with("SIP/2.0") {
                continue;
            }
            let mut answer = "SIP/2.0 200 OK\r\n".to_owned();
            for name in ["Via:", "From:", "To:", "Call-ID:", "CSeq:", "Contact:", "Expires:"] {
                for line in text.lines().filter(|l| l.starts_with(name)) {
                    answer.push_str(line);
                    if name == "To:" && !line.contains("tag=") {
                        answer.push_str(";tag=yes");
                    }
                    answer.push_str("\r\n");
                }
            }
            answer.push_str("Content-Length: 0\r\n\r\n");
            self.socket.send_to(answer.as_bytes(), from).await.unwrap();
            if text.starts_with(method) {
                return text;
            }
        }
    }
}

/// `400 Bad Request` of an answer.
pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// A live offer of UDP media.
pub fn offer(ip: &str, port: u16, ssrc: &str) -> String {
    format!(
        "v=0\r\no={SERVER} 0 0 IN IP4 {ip}\r\ns=Play\r\nc=IN IP4 {ip}\r\nt=0 0\r\nm=video {port} RTP/AVP 96\r\n\
         a=recvonly\r\na=rtpmap:96 PS/90000\r\ny={ssrc}\r\n"
    )
}

/// A MANSCDP body.
pub fn manscdp(root: &str, cmd: &str, device: &str, inner: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><{root}><CmdType>{cmd}</CmdType><SN>7</SN><DeviceID>{device}</DeviceID>{inner}</{root}>"
    )
}

/// Content-Type of a MANSCDP body.
pub const MANSCDP: &str = "Content-Type: Application/MANSCDP+xml";
/// Content-Type of SDP.
pub const SDP: &str = "Content-Type: APPLICATION/SDP";

/// A Subject of ours towards this channel.
pub fn subject(channel: &str, serial: u32) -> String {
    format!("Subject: {channel}:0{serial},{SERVER}:{serial}")
}

/// Everything that is asked of the gateway itself.
pub const US: &str = LOCAL;
