//! A dialog as a value: what two parties agreed on when an INVITE or a SUBSCRIBE was accepted.
//!
//! Standard: [RFC3261 12], [RFC6665 4.4.1].
//! In: the request and the 2xx that made it. Out: requests inside it; whether a request belongs to it.
//! Invariants: our CSeq only rises; a peer without tags (RFC 2543) or without Contact still gets a dialog.
//! Not here: what the dialog is for (call, subscription), and sending (`endpoint`).

use super::fields;
use super::message::{Flow, Headers, Request, Response};
use bytes::Bytes;

/// Longest route a dialog keeps; a longer one is an attack, not a network.
const MAX_ROUTES: usize = 16;

/// Why two messages make no dialog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialogError {
    /// Call-ID, From, To or CSeq missing or unreadable.
    #[error("no dialog: header missing or unreadable: {0}: refuse the request with 400")]
    Header(&'static str),
    /// Only a 2xx makes one here.
    #[error("no dialog: status {0}: wait for a 2xx")]
    Status(u16),
    /// More than `MAX_ROUTES` Record-Route entries.
    #[error("no dialog: {0} routes recorded: refuse the request with 400")]
    Routes(usize),
}

/// A request with a lower CSeq than one before: answer 500. [RFC3261 12.2.2]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("request out of order: CSeq {have} after {last}: answer 500")]
pub struct Stale {
    /// The request's number.
    pub have: u32,
    /// The highest seen.
    pub last: u32,
}

/// Whether a request belongs to a dialog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialogMatch {
    /// Call-ID and both tags fit. [RFC3261 12]
    Exact,
    /// The Call-ID fits alone; the caller must still check the source, and count it.
    Lenient,
    /// Another dialog's.
    None,
}

/// One dialog, seen from our side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialog {
    call_id: String,
    local_tag: String,
    remote_tag: String,
    /// From of our requests, without tag.
    local: String,
    /// To of our requests, without tag.
    remote: String,
    remote_target: String,
    /// In the order our requests carry them.
    routes: Vec<String>,
    local_cseq: u32,
    /// The number ACK takes: that of our last INVITE.
    invite_cseq: u32,
    remote_cseq: Option<u32>,
    flow: Flow,
}

impl Dialog {
    /// The dialog of a request we accepted with `response` (which carries our To tag). `flow`: where the request came
    /// from.
    ///
    /// # Errors
    /// See `DialogError`.
    pub fn uas(request: &Request, response: &Response, flow: Flow) -> Result<Self, DialogError> {
        let parts = Parts::read(request, response)?;
        let routes = routes(&request.headers)?;
        let from = fields::uri_of(parts.from);
        let user = fields::user_and_host(from).map_or("", |(user, _)| user);
        let source = if user.is_empty() { format!("sip:{}", flow.peer) } else { format!("sip:{user}@{}", flow.peer) };
        Ok(Self {
            call_id: parts.call_id.to_owned(),
            local_tag: fields::tag_of(parts.to).to_owned(),
            remote_tag: fields::tag_of(parts.from).to_owned(),
            local: fields::without_params(parts.to).to_owned(),
            remote: fields::without_params(parts.from).to_owned(),
            remote_target: contact(&request.headers).unwrap_or(source),
            routes,
            local_cseq: 0,
            invite_cseq: 0,
            remote_cseq: Some(parts.cseq),
            flow,
        })
    }

    /// The dialog of a request of ours that the peer accepted with `response`. `flow`: where the response came from.
    ///
    /// # Errors
    /// See `DialogError`.
    pub fn uac(request: &Request, response: &Response, flow: Flow) -> Result<Self, DialogError> {
        let parts = Parts::read(request, response)?;
        let mut routes = routes(&response.headers)?;
        routes.reverse();
        Ok(Self {
            call_id: parts.call_id.to_owned(),
            local_tag: fields::tag_of(parts.from).to_owned(),
            remote_tag: fields::tag_of(parts.to).to_owned(),
            local: fields::without_params(parts.from).to_owned(),
            remote: fields::without_params(parts.to).to_owned(),
            remote_target: contact(&response.headers).unwrap_or_else(|| request.uri.clone()),
            routes,
            local_cseq: parts.cseq,
            invite_cseq: parts.cseq,
            remote_cseq: None,
            flow,
        })
    }

    /// Call-ID.
    pub fn call_id(&self) -> &str {
        &self.call_id
    }

    /// Our tag.
    pub fn local_tag(&self) -> &str {
        &self.local_tag
    }

    /// The peer's tag; empty for a peer of RFC 2543.
    pub fn remote_tag(&self) -> &str {
        &self.remote_tag
    }

    /// Where its requests go.
    pub fn flow(&self) -> Flow {
        self.flow
    }

    /// The peer is now reached by another flow (its source port changed, its connection is new).
    pub fn set_flow(&mut self, flow: Flow) {
        self.flow = flow;
    }

    /// A request inside the dialog: Request-URI, Route, From, To, Call-ID, CSeq; the rest is the caller's. The number
    /// rises by one, but for ACK, which has that of our last INVITE. [RFC3261 12.2.1.1, 13.2.2.4]
    pub fn request(&mut self, method: &str) -> Request {
        let seq = match method {
            "ACK" => self.invite_cseq,
            _ => {
                self.local_cseq = self.local_cseq.saturating_add(1);
                self.local_cseq
            }
        };
        if method == "INVITE" {
            self.invite_cseq = seq;
        }
        let mut headers = Headers::new();
        let mut uri = self.remote_target.clone();
        match self.routes.split_first() {
            // A strict router wants to be the Request-URI itself, and the target last.
            Some((first, rest)) if fields::uri_param(fields::uri_of(first), "lr").is_none() => {
                uri = fields::uri_of(first).to_owned();
                rest.iter().for_each(|route| headers.push("Route", route.as_str()));
                headers.push("Route", format!("<{}>", self.remote_target));
            }
            _ => self.routes.iter().for_each(|route| headers.push("Route", route.as_str())),
        }
        headers.push("From", tagged(&self.local, &self.local_tag));
        headers.push("To", tagged(&self.remote, &self.remote_tag));
        headers.push("Call-ID", self.call_id.as_str());
        headers.push("CSeq", format!("{seq} {method}"));
        Request { method: method.to_owned(), uri, headers, body: Bytes::new() }
    }

    /// Whether a request from the peer belongs here. `strict`: both tags must fit.
    pub fn matches(&self, request: &Request, strict: bool) -> DialogMatch {
        let headers = &request.headers;
        if fields::call_id(headers) != self.call_id {
            return DialogMatch::None;
        }
        if fields::tag(headers, "From") == self.remote_tag && fields::tag(headers, "To") == self.local_tag {
            return DialogMatch::Exact;
        }
        if strict { DialogMatch::None } else { DialogMatch::Lenient }
    }

    /// Takes note of a request's CSeq. [RFC3261 12.2.2]
    ///
    /// # Errors
    /// `Stale` when it is lower than one before. An equal one passes: its repeats never come here, and devices send
    /// INFO with the INVITE's number. An unreadable one counts as 0.
    pub fn check_cseq(&mut self, request: &Request) -> Result<(), Stale> {
        let have = fields::cseq(&request.headers).map_or(0, |(seq, _)| seq);
        match self.remote_cseq {
            Some(last) if have < last => Err(Stale { have, last }),
            _ => {
                self.remote_cseq = Some(have);
                Ok(())
            }
        }
    }

    /// Takes the Contact of a target refresh (re-INVITE, SUBSCRIBE, NOTIFY, or the 2xx to one). [RFC3261 12.2.1.2,
    /// 12.2.2]
    pub fn refresh_target(&mut self, headers: &Headers) {
        if let Some(target) = contact(headers) {
            self.remote_target = target;
        }
    }
}

/// What both sides read.
struct Parts<'a> {
    call_id: &'a str,
    from: &'a str,
    /// The response's To: it has the tag.
    to: &'a str,
    cseq: u32,
}

impl<'a> Parts<'a> {
    fn read(request: &'a Request, response: &'a Response) -> Result<Self, DialogError> {
        if !(200..300).contains(&response.status) {
            return Err(DialogError::Status(response.status));
        }
        let call_id = fields::call_id(&request.headers);
        if call_id.is_empty() {
            return Err(DialogError::Header("Call-ID"));
        }
        Ok(Self {
            call_id,
            from: request.headers.get("From").ok_or(DialogError::Header("From"))?,
            to: response.headers.get("To").ok_or(DialogError::Header("To"))?,
            cseq: fields::cseq(&request.headers).ok_or(DialogError::Header("CSeq"))?.0,
        })
    }
}

fn routes(headers: &Headers) -> Result<Vec<String>, DialogError> {
    let routes: Vec<String> = headers
        .get_all("Record-Route")
        .flat_map(|value| fields::split_outside(value, b','))
        .map(str::to_owned)
        .collect();
    if routes.len() > MAX_ROUTES { Err(DialogError::Routes(routes.len())) } else { Ok(routes) }
}

/// The URI of the first Contact, if it is a SIP URI.
fn contact(headers: &Headers) -> Option<String> {
    let first = fields::split_outside(headers.get("Contact")?, b',').next()?;
    let uri = fields::uri_of(first);
    fields::user_and_host(uri).map(|_| uri.to_owned())
}

fn tagged(value: &str, tag: &str) -> String {
    if tag.is_empty() { value.to_owned() } else { format!("{value};tag={tag}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sip::message::Transport;

    fn headers(lines: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        lines.iter().for_each(|(name, value)| headers.push(*name, *value));
        headers
    }

    fn flow() -> Flow {
        Flow {
            transport: Transport::Udp,
            local: "192.0.2.1:5060".parse().unwrap(),
            peer: "192.0.2.2:5062".parse().unwrap(),
            conn: None,
        }
    }

    fn pair(extra: &[(&str, &str)]) -> (Request, Response) {
        let mut common = vec![("From", "\"a;b\" <sip:a@x>;tag=f"), ("Call-ID", "c"), ("CSeq", "20 INVITE")];
        common.extend(extra);
        let mut request = headers(&common);
        request.push("To", "<sip:b@y>");
        request.push("Contact", "<sip:a@10.0.0.1:5060;ob>;expires=9");
        let mut response = headers(&common);
        response.push("To", "<sip:b@y>;tag=t");
        response.push("Contact", "<sip:b@10.0.0.2>");
        (
            Request { method: "INVITE".into(), uri: "sip:b@y".into(), headers: request, body: Bytes::new() },
            Response { status: 200, reason: "OK".into(), headers: response, body: Bytes::new() },
        )
    }

    #[test]
    fn both_sides_agree() {
        let (invite, ok) = pair(&[("Record-Route", "<sip:p1;lr>, <sip:p2;lr>"), ("Record-Route", "<sip:p3;lr>")]);
        let mut uas = Dialog::uas(&invite, &ok, flow()).unwrap();
        let mut uac = Dialog::uac(&invite, &ok, flow()).unwrap();

        let ack = uac.request("ACK");
        assert_eq!(ack.headers.get("CSeq"), Some("20 ACK"));
        let bye = uac.request("BYE");
        assert_eq!((bye.uri.as_str(), bye.headers.get("CSeq")), ("sip:b@10.0.0.2", Some("21 BYE")));
        assert_eq!(bye.headers.get("From"), Some("\"a;b\" <sip:a@x>;tag=f"));
        let route = |r: &Request| r.headers.get_all("Route").map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(route(&bye), ["<sip:p3;lr>", "<sip:p2;lr>", "<sip:p1;lr>"]);
        assert_eq!(uas.matches(&bye, true), DialogMatch::Exact);
        assert_eq!(uas.check_cseq(&bye), Ok(()));
        assert_eq!(uas.check_cseq(&ack), Err(Stale { have: 20, last: 21 }));

        let bye = uas.request("BYE");
        assert_eq!((bye.uri.as_str(), bye.headers.get("CSeq")), ("sip:a@10.0.0.1:5060;ob", Some("1 BYE")));
        assert_eq!(route(&bye), ["<sip:p1;lr>", "<sip:p2;lr>", "<sip:p3;lr>"]);
        assert_eq!(uac.matches(&bye, true), DialogMatch::Exact);
        assert_eq!(uac.check_cseq(&bye), Ok(()), "the first number of the peer is as it likes");

        let invite = uac.request("INVITE");
        uac.request("INFO");
        assert_eq!(invite.headers.get("CSeq"), Some("22 INVITE"));
        assert_eq!(uac.request("ACK").headers.get("CSeq"), Some("22 ACK"));
    }

    #[test]
    fn a_strict_router_becomes_the_request_uri() {
        let (invite, ok) = pair(&[("Record-Route", "<sip:p1;x=1>,<sip:p2;lr>")]);
        let bye = Dialog::uas(&invite, &ok, flow()).unwrap().request("BYE");
        assert_eq!(bye.uri, "sip:p1;x=1");
        let routes: Vec<_> = bye.headers.get_all("Route").collect();
        assert_eq!(routes, ["<sip:p2;lr>", "<sip:a@10.0.0.1:5060;ob>"]);
    }

    #[test]
    fn matching_is_strict_or_lenient() {
        let (invite, ok) = pair(&[]);
        let dialog = Dialog::uas(&invite, &ok, flow()).unwrap();
        let mut bye = Dialog::uac(&invite, &ok, flow()).unwrap().request("BYE");
        bye.headers.set("To", "<sip:b@y>");
        assert_eq!(dialog.matches(&bye, true), DialogMatch::None);
        assert_eq!(dialog.matches(&bye, false), DialogMatch::Lenient);
        bye.headers.set("Call-ID", "d");
        assert_eq!(dialog.matches(&bye, false), DialogMatch::None);
    }

    #[test]
    fn poor_peers_and_wrong_messages() {
        let (mut invite, mut ok) = pair(&[]);
        invite.headers.set("From", "<sip:a@x>");
        invite.headers.remove("Contact");
        let mut dialog = Dialog::uas(&invite, &ok, flow()).unwrap();
        let bye = dialog.request("BYE");
        assert_eq!((bye.uri.as_str(), bye.headers.get("To")), ("sip:a@192.0.2.2:5062", Some("<sip:a@x>")));
        dialog.refresh_target(&headers(&[("Contact", "*")]));
        assert_eq!(dialog.request("BYE").uri, "sip:a@192.0.2.2:5062");
        dialog.refresh_target(&headers(&[("Contact", "sip:a@10.0.0.9;tag=1")]));
        assert_eq!(dialog.request("BYE").uri, "sip:a@10.0.0.9");

        ok.status = 183;
        assert_eq!(Dialog::uac(&invite, &ok, flow()), Err(DialogError::Status(183)));
        ok.status = 200;
        ok.headers.remove("To");
        assert_eq!(Dialog::uac(&invite, &ok, flow()), Err(DialogError::Header("To")));
        let many = vec![("Record-Route", "<sip:p;lr>"); 17];
        let (invite, ok) = pair(&many);
        assert_eq!(Dialog::uas(&invite, &ok, flow()), Err(DialogError::Routes(17)));
    }
}
