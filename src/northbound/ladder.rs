//! The uplink ladder: how far the talk with an upper platform has got, with evidence, and what to do where it stopped.
//! In: what the link saw. Out: a value the console shows. The sentences are for duty officers and integrators, in
//! Chinese; everything else is for machines.

use serde::Serialize;

/// The rungs, in the order they are climbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Is there a way to the platform's address?
    Route,
    /// REGISTER was sent.
    Register,
    /// It asked for the password.
    Challenge,
    /// It accepted.
    Registered,
    /// It answers keepalives.
    Keepalive,
    /// It asked for the catalogue and got all of it.
    Catalog,
    /// It sent an INVITE.
    Invite,
    /// It acknowledged our answer.
    Ack,
    /// The first RTP packet left.
    FirstRtp,
}

/// All rungs in order.
pub const RUNGS: [Rung; 9] = [
    Rung::Route,
    Rung::Register,
    Rung::Challenge,
    Rung::Registered,
    Rung::Keepalive,
    Rung::Catalog,
    Rung::Invite,
    Rung::Ack,
    Rung::FirstRtp,
];

/// How a rung stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RungState {
    /// Not reached yet.
    Waiting,
    /// Done, last at `at_ms`.
    Ok,
    /// Failed, last at `at_ms`.
    Failed,
}

/// One rung.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which.
    pub rung: Rung,
    /// How it stands.
    pub state: RungState,
    /// When that was seen, Unix milliseconds; 0 = never.
    pub at_ms: i64,
    /// What was seen.
    pub evidence: String,
    /// What to do, in Chinese; empty where there is nothing to do.
    pub advice: &'static str,
}

/// See the file's head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Ladder {
    steps: Vec<Step>,
}

impl Default for Ladder {
    fn default() -> Self {
        let step =
            |rung| Step { rung, state: RungState::Waiting, at_ms: 0, evidence: String::new(), advice: waiting(rung) };
        Ladder { steps: RUNGS.into_iter().map(step).collect() }
    }
}

impl Ladder {
    fn set(&mut self, rung: Rung, state: RungState, at_ms: i64, evidence: String, advice: &'static str) {
        if let Some(step) = self.steps.iter_mut().find(|s| s.rung == rung) {
            *step = Step { rung, state, at_ms, evidence, advice };
        }
    }

    /// The rung was reached.
    pub fn ok(&mut self, rung: Rung, at_ms: i64, evidence: impl Into<String>) {
        self.set(rung, RungState::Ok, at_ms, evidence.into(), "");
    }

    /// It failed; `status` is the SIP answer if there was one.
    pub fn failed(&mut self, rung: Rung, at_ms: i64, status: Option<u16>, evidence: impl Into<String>) {
        self.set(rung, RungState::Failed, at_ms, evidence.into(), advice(rung, status));
    }

    /// The rung and all above it are to be climbed again (registration lost).
    pub fn reset_from(&mut self, rung: Rung) {
        let from = RUNGS.iter().position(|r| *r == rung).unwrap_or(0);
        for step in &mut self.steps[from..] {
            if step.state != RungState::Failed {
                step.state = RungState::Waiting;
                step.advice = waiting(step.rung);
            }
        }
    }

    /// One rung.
    pub fn step(&self, rung: Rung) -> Option<&Step> {
        self.steps.iter().find(|s| s.rung == rung)
    }
}

fn waiting(rung: Rung) -> &'static str {
    match rung {
        Rung::Route | Rung::Register => "等待开始。",
        Rung::Challenge => "等待上级平台要求鉴权;个别平台不鉴权直接接受,此步可能一直为空。",
        Rung::Registered => "等待上级平台接受注册。",
        Rung::Keepalive => "注册成功后开始心跳。",
        Rung::Catalog => "等待上级平台查询目录;若长时间未查询,请上级平台值班人员手动“同步通道”。",
        Rung::Invite => "等待上级平台点播;请对方任选一路画面试播。",
        Rung::Ack => "等待点播后对方确认(ACK)。",
        Rung::FirstRtp => "等待开始送流。",
    }
}

fn advice(rung: Rung, status: Option<u16>) -> &'static str {
    match (rung, status) {
        (Rung::Route, _) => {
            "本机没有到上级平台地址的路由:请检查 server_addr、网卡与网关设置,以及 bind 指定的地址是否存在。"
        }
        (Rung::Register, Some(400)) => "上级平台认为注册消息有误:请核对 server_id、domain 与对方提供的是否一致。",
        (Rung::Register | Rung::Registered, Some(401 | 407)) => {
            "口令错误:请核对 username 与 password,注意区分平台编码与认证用户名。"
        }
        (Rung::Register | Rung::Registered, Some(403)) => {
            "上级平台拒绝注册:多为口令错误、本级编码未在对方登记或被列入黑名单;请对方核对 local_id 与口令。"
        }
        (Rung::Register | Rung::Registered, Some(404)) => {
            "上级平台不认识本级编码或平台编码写错:请对方登记 local_id,并按对方应答中的编码核对 server_id。"
        }
        (Rung::Register | Rung::Registered, Some(s)) if s >= 500 => {
            "上级平台内部故障或过载:请联系对方值班人员,本级会自动重试。"
        }
        (Rung::Register, None) => {
            "上级平台没有应答:请检查 IP、端口、传输方式(udp/tcp)是否与对方一致,中间防火墙是否放行 SIP 端口的双向通信。"
        }
        (Rung::Register | Rung::Registered, _) => "注册被拒绝:请把证据中的状态码与原因告诉上级平台运维人员。",
        (Rung::Challenge, _) => "收到的鉴权要求无法识别:请把信令跟踪导出交给厂家。",
        (Rung::Keepalive, Some(401 | 403 | 404 | 481)) => "上级平台已不认识本级的注册,正在重新注册。",
        (Rung::Keepalive, _) => "心跳无应答:链路中断或上级平台停机,正在按规则重新注册;请检查网络。",
        (Rung::Catalog, _) => "目录应答没有全部送达:若用 UDP,请减小 catalog_items_per_message 或改用 TCP。",
        (Rung::Invite, Some(404)) => "对方点播的通道不存在或未共享:请检查 share 设置,并请对方重新同步目录。",
        (Rung::Invite, Some(403)) => "没有权限:请检查该上级的 permissions 与 media_networks 设置。",
        (Rung::Invite, Some(486)) => "会话数已满或媒体端口用尽:请检查 max_sessions 与 media.port_range。",
        (Rung::Invite, Some(488 | 415 | 406)) => {
            "对方要求的媒体格式无法满足:请查看日志中的具体原因(PS/90000、H.265、回放等)。"
        }
        (Rung::Invite, Some(503 | 504)) => "摄像机没有送来画面:请检查该摄像机的网络、口令与编码设置。",
        (Rung::Invite, _) => "点播失败:请查看日志中的原因。",
        (Rung::Ack, _) => "对方没有确认(ACK):多为对方收不到本级应答,请检查 advertised_address 与双向防火墙。",
        (Rung::FirstRtp, _) => "画面没有送出:TCP 方式请检查对方媒体端口是否放行;UDP 方式请检查媒体地址与路由。",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_keep_evidence_and_advice() {
        let mut l = Ladder::default();
        l.ok(Rung::Route, 5, "10.0.0.1");
        l.failed(Rung::Register, 6, Some(403), "403 Forbidden");
        let s = l.step(Rung::Register).unwrap();
        assert_eq!((s.state, s.at_ms), (RungState::Failed, 6));
        assert!(s.advice.contains("local_id"));
        l.ok(Rung::Registered, 7, "200");
        assert_eq!(l.step(Rung::Registered).unwrap().advice, "");
        l.reset_from(Rung::Register);
        assert_eq!(l.step(Rung::Registered).unwrap().state, RungState::Waiting);
        assert_eq!(l.step(Rung::Register).unwrap().state, RungState::Failed, "the failure stays visible");
        assert_eq!(l.step(Rung::Route).unwrap().state, RungState::Ok);
    }

    #[test]
    fn every_failure_says_what_to_do() {
        for rung in RUNGS {
            for status in [
                None,
                Some(400),
                Some(401),
                Some(403),
                Some(404),
                Some(480),
                Some(486),
                Some(488),
                Some(500),
                Some(503),
            ] {
                assert!(!advice(rung, status).is_empty());
            }
        }
    }
}
