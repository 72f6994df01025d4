// The console page: reads the API every two seconds and shows it. Whatever comes from there is put in as text only,
// never as markup: names, evidence and SIP messages are written by strangers.
"use strict";

const POLL_MS = 2000;
const PAGE = 100;
const $ = (id) => document.getElementById(id);

const RUNGS = {
  route: "路由", register: "发出注册", challenge: "要求鉴权", registered: "注册成功", keepalive: "心跳",
  catalog: "查询目录", invite: "点播", ack: "确认 ACK", first_rtp: "首包送出",
};
const RUNG_STATES = { ok: "完成", failed: "失败", waiting: "等待" };
const UPLINK_STATES = {
  idle: "未开始", registering: "正在注册", registered: "已注册", waiting: "等待重试", unregistering: "正在注销", stopped: "已停止",
};
const CHANNEL_STATES = { online: "在线", offline: "离线", unknown: "未知" };
const REASONS = {
  ok: "正常", unreachable: "连不上", unauthorised: "口令错误", stalled: "画面中断", no_video: "没有视频", not_probed: "尚未探测",
};
const CALL_STATES = { preparing: "准备中", answered: "已应答", established: "进行中" };
const OUTCOMES = { ok: "成功", deny: "拒绝", error: "失败" };

// ---- building elements

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value);
  }
  for (const child of children.flat()) {
    if (child !== undefined && child !== null) node.append(child);
  }
  return node;
}

// A code in groups of 8-2-3-1-6; a click copies it whole.
function code(id) {
  if (!id) return "";
  const groups = /^\d{20}$/.test(id) ? [id.slice(0, 8), id.slice(8, 10), id.slice(10, 13), id.slice(13, 14), id.slice(14)] : [id];
  return el("button", { type: "button", class: "id", title: "点击复制 " + id, "data-copy": id }, groups.map((g) => el("span", null, g)));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", null);
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await copy(button.dataset.copy);
  button.classList.add("ok");
  setTimeout(() => button.classList.remove("ok"), 800);
});

function two(n) { return String(n).padStart(2, "0"); }

function time(ms) {
  if (!ms) return "—";
  const d = new Date(ms);
  const clock = two(d.getHours()) + ":" + two(d.getMinutes()) + ":" + two(d.getSeconds());
  const day = two(d.getMonth() + 1) + "-" + two(d.getDate());
  return d.toDateString() === new Date().toDateString() ? clock : d.getFullYear() + "-" + day + " " + clock;
}

function timeCell(ms) {
  return el("span", { class: "time", title: ms ? new Date(ms).toISOString() : null }, time(ms));
}

function span(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const days = Math.floor(s / 86400);
  return (days ? days + " 天 " : "") + two(Math.floor(s / 3600) % 24) + ":" + two(Math.floor(s / 60) % 60) + ":" + two(s % 60);
}

function lamp(good, text) {
  return el("span", { class: "lamp " + (good === null ? "wait" : good ? "ok" : "bad") }, text);
}

function table(heads, rows, empty) {
  if (!rows.length) return el("p", { class: "quiet" }, empty);
  return el("div", { class: "scroll", tabindex: "0" }, el("table", null,
    el("thead", null, el("tr", null, heads.map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", null, rows.map((cells) => el("tr", null, cells.map((c) => typeof c === "number" ? el("td", { class: "n" }, String(c)) : el("td", null, c)))))));
}

// Puts new content in place only where something changed, so that selection, focus and scrolling survive the polling.
const shown = new Map();
function show(id, value, make) {
  const key = JSON.stringify(value);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  const place = $(id);
  const scroll = place.querySelector(".scroll");
  const [top, left] = scroll ? [scroll.scrollTop, scroll.scrollLeft] : [0, 0];
  const focus = place.contains(document.activeElement) ? focusKey(document.activeElement) : null;
  place.replaceChildren(...[make(value)].flat());
  const again = place.querySelector(".scroll");
  if (again) { again.scrollTop = top; again.scrollLeft = left; }
  if (focus) [...place.querySelectorAll("button, a, [tabindex]")].find((n) => focusKey(n) === focus)?.focus({ preventScroll: true });
}
function focusKey(node) { return node.tagName + (node.dataset.copy || "") + (node.dataset.key || "") + (node.getAttribute("href") || ""); }

// ---- the parts of the page

function summary(status) {
  const tile = (name, value, note, cls) => el("div", { class: "tile" }, name, el("b", { class: cls }, value), el("span", { class: "quiet" }, note));
  const { uplinks, channels, sip } = status;
  const listens = sip.listeners.map((l) => [l.udp && "UDP", l.tcp && "TCP", l.tls && "TLS"].filter(Boolean).join("/") + " " + l.local);
  return [
    tile("上级平台已注册", uplinks.registered + " / " + uplinks.total, uplinks.total ? "" : "没有配置上级平台", uplinks.registered === uplinks.total ? "ok" : "bad"),
    tile("通道在线", channels.online + " / " + channels.total, "离线 " + channels.offline + ",未知 " + channels.unknown, channels.online === channels.total ? "ok" : "warn"),
    tile("会话", String(status.sessions), "正在送出的画面"),
    tile("SIP 监听", String(sip.listeners.length), listens.join(";") || "没有"),
    tile("时钟修正", status.clock_offset_ms + " ms", "相对操作系统时钟"),
  ];
}

function uplinkCard(u) {
  const path = "/api/v1/uplinks/" + encodeURIComponent(u.name);
  const fact = (name, value) => el("span", null, name + " ", el("b", null, value));
  const good = u.registered ? true : u.state === "idle" || u.state === "registering" ? null : false;
  return el("article", { class: "uplink" },
    el("div", { class: "bar" },
      el("h3", null, u.name), lamp(good, UPLINK_STATES[u.state] || u.state), el("span", { class: "quiet" }, "自 ", timeCell(u.since_ms)),
      u.reason ? el("span", { class: "bad" }, u.reason) : null,
      el("span", { class: "spring" }),
      el("button", { type: "button", "data-key": "catalog " + u.name, onclick: () => openCatalog(u.name) }, "对方所见目录"),
      el("button", { type: "button", "data-key": "trace " + u.name, onclick: () => openTrace(u.name) }, "信令跟踪"),
      el("a", { href: path + "/trace?format=pcap" }, "下载 pcap")),
    el("div", { class: "facts" },
      fact("平台", code(u.server_id)), fact("地址", u.server_addr), fact("本级", code(u.local_id)), fact("对外地址", u.advertised),
      fact("方式", u.transport.toUpperCase() + " · GB/T 28181-" + u.standard + " · " + u.charset),
      fact("会话", String(u.calls.length)), fact("目录订阅", String(u.subscriptions)),
      u.clock_offset_ms === null ? null : fact("对方时钟差", u.clock_offset_ms + " ms")),
    el("ol", { class: "ladder" }, u.ladder.map((s) => el("li", { class: s.state === "failed" ? "bad" : s.state === "ok" ? "ok" : "wait" },
      el("span", { class: "name" }, RUNGS[s.rung] || s.rung), (RUNG_STATES[s.state] || s.state) + (s.at_ms ? " " + time(s.at_ms) : ""),
      s.evidence ? el("span", { class: "advice" }, s.evidence) : null,
      s.advice ? el("span", { class: "advice quiet" }, s.advice) : null))));
}

function sessionRows(uplinks) {
  return uplinks.flatMap((u) => u.calls.map((c) => [
    u.name, code(c.channel), c.stream, CALL_STATES[c.state] || c.state, c.transport, c.remote, el("span", { class: "id" }, c.ssrc), timeCell(c.since_ms),
    el("button", { type: "button", class: "id", title: "点击复制", "data-copy": c.call_id }, c.call_id),
  ]));
}

function streamRows(streams) {
  return streams.map((s) => [
    code(s.channel), s.stream, [s.video, s.audio].filter(Boolean).join(" + ") || "等待画面", s.width ? s.width + "×" + s.height : "—",
    Number(s.fps.toFixed(1)), (s.bitrate_bps / 1e6).toFixed(2) + " Mbit/s", (s.gop_ms / 1000).toFixed(1) + " s", s.sinks, s.lost_packets, s.overruns,
  ]);
}

function channelRows(channels) {
  return channels.map((c) => [
    code(c.id), c.name, c.area || "—", lamp(c.state === "online" ? true : c.state === "offline" ? false : null, CHANNEL_STATES[c.state]),
    REASONS[c.reason] || c.reason, c.evidence || "—", timeCell(c.since_ms), c.kind,
  ]);
}

function auditRows(records) {
  return records.map((r) => [
    r.seq, timeCell(r.at_ms), r.actor, r.source || "—", r.action, el("span", null, r.object_type + " ", code(r.object_id)),
    lamp(r.outcome === "ok", OUTCOMES[r.outcome] || r.outcome), r.reason || "—",
  ]);
}

// ---- the panel

let panelTurn = 0;
async function openPanel(title, path, make) {
  const turn = ++panelTurn;
  $("panel-title").textContent = title;
  $("panel-body").replaceChildren("正在读取…");
  $("panel").showModal();
  let content;
  try {
    content = make(await read(path));
  } catch (error) {
    content = el("p", { class: "alert" }, "读取失败:" + error.message);
  }
  if (turn === panelTurn) $("panel-body").replaceChildren(...[content].flat());
}

function openTrace(name) {
  const path = "/api/v1/uplinks/" + encodeURIComponent(name) + "/trace";
  openPanel("信令跟踪:" + name, path, (trace) => [
    el("p", { class: "quiet" }, "共 " + trace.count + " 条,新的在上;口令与鉴权值已隐去。 ", el("a", { href: path + "?format=pcap" }, "下载 pcap"), " ", el("a", { href: path }, "JSON")),
    ...trace.items.reverse().map((m) => el("details", null,
      el("summary", null, time(m.at_ms) + "  " + (m.direction === "in" ? "← 收" : "→ 发") + "  " + m.transport + "  " + m.peer + "  " + m.summary + "  " + m.cseq),
      el("pre", { tabindex: "0" }, m.text + (m.truncated ? "\n……(全长 " + m.size + " 字节)" : "")))),
  ]);
}

function openCatalog(name) {
  const path = "/api/v1/uplinks/" + encodeURIComponent(name) + "/catalog";
  openPanel("对方所见目录:" + name, path + "?limit=1000", (catalog) => [
    el("p", { class: "quiet" }, "共 " + catalog.count + " 项,其中通道 " + catalog.devices + " 个" + (catalog.count > catalog.items.length ? ",此处列出前 " + catalog.items.length + " 项" : "") + "。 ", el("a", { href: path }, "JSON")),
    table(["编码", "名称", "上级节点", "业务分组", "行政区划", "状态"], catalog.items.map((i) => [
      code(i.device_id), i.name, (i.parent_id || []).map(code), code(i.business_group_id), i.civil_code || "", i.status || "",
    ]), "目录是空的。"),
  ]);
}

$("panel-close").addEventListener("click", () => $("panel").close());
$("other-trace").addEventListener("click", () => openTrace("other"));

// ---- polling

async function read(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(5000) });
  const body = await response.json();
  if (!response.ok) throw new Error(body.message || String(response.status));
  return body;
}

let offset = 0;
function channelQuery() {
  const query = new URLSearchParams({ offset, limit: PAGE });
  if ($("channels-q").value.trim()) query.set("q", $("channels-q").value.trim());
  if ($("channels-state").value) query.set("state", $("channels-state").value);
  return "/api/v1/channels?" + query;
}

let busy = false;
let again = false;
async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const [status, uplinks, streams, channels, audit] = await Promise.all([
      read("/api/v1/status"), read("/api/v1/uplinks"), read("/api/v1/streams"), read(channelQuery()), read("/api/v1/audit?limit=20"),
    ]);
    const { now_ms: now, ...still } = status;
    show("gateway", { ...status.gateway, version: status.version }, (g) => [g.name + " ", code(g.id), el("span", { class: "quiet" }, " 版本 " + g.version)]);
    show("summary", still, summary);
    $("uplinks-count").textContent = uplinks.count + " 个";
    show("uplinks-list", uplinks.items, (items) => items.length ? items.map(uplinkCard) : [el("p", { class: "quiet" }, "没有配置上级平台:在配置文件中加入 [[uplink]]。")]);
    const sessions = sessionRows(uplinks.items);
    $("sessions-count").textContent = sessions.length + " 个";
    show("sessions-list", uplinks.items.map((u) => [u.name, u.calls]), () => table(["上级", "通道", "码流", "状态", "传输(本级)", "送往", "SSRC", "开始", "Call-ID"], sessions, "没有会话。"));
    $("streams-count").textContent = streams.count + " 路";
    show("streams-list", streams.items, (items) => table(["通道", "码流", "编码", "分辨率", "帧率", "码率", "关键帧间隔", "分发", "丢包", "过载丢帧"], streamRows(items), "没有正在取的流。"));
    if (offset > 0 && offset >= channels.count) { offset = 0; again = true; }
    $("channels-count").textContent = channels.count === channels.total ? channels.total + " 个" : channels.count + " 个,全部 " + channels.total + " 个";
    $("channels-page").textContent = channels.count ? (offset + 1) + "–" + (offset + channels.items.length) : "0";
    $("channels-previous").disabled = offset === 0;
    $("channels-next").disabled = offset + channels.items.length >= channels.count;
    show("channels-list", channels.items, (items) => table(["编码", "名称", "区域", "状态", "原因", "证据", "时间", "接入"], channelRows(items), "没有符合条件的通道。"));
    $("audit-count").textContent = "最近 " + audit.count + " 条,共 " + audit.head.seq + " 条";
    show("audit-list", audit.items, (items) => table(["序号", "时间", "谁", "来源", "动作", "对象", "结果", "原因"], auditRows(items), "没有记录。"));
    $("freshness").className = "";
    $("freshness").textContent = "更新于 " + time(now) + ",已运行 " + span(now - status.started_ms);
    $("freshness").dataset.at = time(now);
  } catch (error) {
    $("freshness").className = "bad";
    $("freshness").textContent = "读取失败:" + error.message + "。所示为 " + ($("freshness").dataset.at || "—") + " 的情况";
  } finally {
    busy = false;
    if (again) { again = false; refresh(); }
  }
}

function restart() { offset = 0; refresh(); }
$("channels-form").addEventListener("submit", (event) => { event.preventDefault(); restart(); });
$("channels-q").addEventListener("input", restart);
$("channels-state").addEventListener("change", restart);
$("channels-previous").addEventListener("click", () => { offset = Math.max(0, offset - PAGE); refresh(); });
$("channels-next").addEventListener("click", () => { offset += PAGE; refresh(); });

setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
