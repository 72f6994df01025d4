//! One wrong configuration per check, through the same door as a real one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::super::load::{Loaded, Origin, load_on};
use super::super::*;
use super::Machine;

/// 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600;

const GOOD: &str = r#"
[gateway]
id = "41130000582000000001"
name = "机关"

[[uplink]]
name = "psb"
server_id = "41130000002000000002"
server_addr = "198.51.100.10:5060"
password = { env = "PSB" }

[[area]]
id = "gate"
kind = "entrance"
name = "东门"

[[camera]]
id = "41130000581320000001"
name = "枪机"
area = "gate"
rtsp = "rtsp://192.0.2.1:554/main"
"#;

struct Site {
    folder: tempfile::TempDir,
    env: BTreeMap<String, String>,
    machine: Machine,
    now: i64,
}

impl Site {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            env: BTreeMap::from([("PSB".to_owned(), "not-a-real-secret".to_owned())]),
            machine: Machine { ephemeral_ports: Some(32768..=60999), ..Machine::default() },
            now: NOW,
        }
    }

    fn set(mut self, variable: &str, value: &str) -> Self {
        self.env.insert(variable.to_owned(), value.to_owned());
        self
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn load(&self, text: &str) -> Loaded {
        let path = self.write("menshen.toml", text, 0o600);
        load_on(&path, &self.env, &self.machine, self.now)
    }
}

fn load(text: &str) -> Loaded {
    Site::new().load(text)
}

/// `GOOD` with a part replaced.
fn with(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    GOOD.replacen(old, new, 1)
}

/// `GOOD` with lines added to its table of this header, or a table of its own.
fn plus(header: &str, lines: &str) -> String {
    if GOOD.contains(header) {
        with(header, &format!("{header}\n{lines}"))
    } else {
        format!("{GOOD}\n{header}\n{lines}\n")
    }
}

fn text(loaded: &Loaded) -> String {
    render_problems(&loaded.problems, ProblemFormat::Text)
}

fn find<'a>(loaded: &'a Loaded, severity: Severity, key: &str, part: &str) -> &'a Problem {
    loaded
        .problems
        .iter()
        .find(|p| p.severity == severity && p.key == key && p.to_string().contains(part))
        .unwrap_or_else(|| panic!("no {severity:?} at {key} with {part:?} in:\n{}", text(loaded)))
}

/// Exactly one error, at this key, whose line holds this text.
fn one_error(source: &str, key: &str, part: &str) {
    let loaded = load(source);
    find(&loaded, Severity::Error, key, part);
    let errors = loaded.problems.iter().filter(|p| p.severity == Severity::Error).count();
    assert_eq!(errors, 1, "{}", text(&loaded));
    assert!(loaded.config.is_none());
}

/// No error, and this warning.
fn one_warning(source: &str, key: &str, part: &str) {
    let loaded = load(source);
    find(&loaded, Severity::Warning, key, part);
    assert!(loaded.config.is_some(), "{}", text(&loaded));
}

#[test]
fn a_good_one_loads_without_a_word() {
    let loaded = load(GOOD);
    assert_eq!(text(&loaded), "");
    let config = loaded.config.unwrap();
    assert_eq!(config.gateway.civil_code, "411300");
    assert_eq!(config.uplinks[0].domain, "4113000000");
    assert_eq!(config.uplinks[0].local_id, config.gateway.id);
    assert_eq!(config.uplinks[0].username, "41130000582000000001");
    assert_eq!(config.uplinks[0].password.as_ref().unwrap().expose(), "not-a-real-secret");
    assert_eq!(config.cameras[0].file.civil_code, "411300");
    assert_eq!(loaded.sources["gateway.id"], Origin::File { line: 3 });
    assert_eq!(loaded.sources["uplink[0].domain"], Origin::Derived { from: "uplink[0].server_id".into() });
}

#[test]
fn a_problem_names_file_line_key_value_and_remedy() {
    let loaded = load(&with("41130000002000000002", "123"));
    let line = text(&loaded);
    assert!(
        line.ends_with("menshen.toml:8: uplink[0].server_id: \"123\": must be 20 digits, this has 3 characters: write the code the platform's operator gave you\n"),
        "{line}"
    );
}

#[test]
fn a_hundred_problems_are_all_reported() {
    let mut source = GOOD.to_owned();
    for n in 0..100 {
        _ = write!(source, "\n[[camera]]\nid = \"{n}\"\nname = \"x\"\nrtsp = \"rtsp://192.0.2.9/{n}\"\n");
    }
    let loaded = load(&source);
    assert_eq!(loaded.problems.len(), 100, "{}", text(&loaded));
    let lines: Vec<_> = loaded.problems.iter().map(|p| p.line.unwrap()).collect();
    assert!(lines.is_sorted() && lines[99] == lines[0] + 99 * 5);
}

#[test]
fn a_table_of_nothing_but_mistakes_has_an_end() {
    let streams = "{ rtsp = 1 },".repeat(5000);
    let loaded = load(&with("rtsp = \"rtsp://192.0.2.1:554/main\"", &format!("streams = [{streams}]")));
    find(&loaded, Severity::Error, "camera[0]", "200 mistakes");
    assert_eq!(loaded.problems.len(), 201);
}

#[test]
fn several_mistakes_in_one_table_are_all_reported() {
    let loaded = load(&plus(
        "[[uplink]]",
        "enabled = \"yes\"\ntransport = \"udpp\"\nmax_sessions = -1\nstandard = 2016\nregister_expires = 3600\nservr_id = 1\nbind = 7\nshare = [1]",
    ));
    for (key, part) in [
        ("uplink[0].enabled", "must be true or false: write it without quotes"),
        ("uplink[0].transport", "\"udpp\": must be one of \"udp\", \"tcp\", \"tls\": did you mean \"udp\"?"),
        ("uplink[0].max_sessions", "-1: must be a whole number"),
        ("uplink[0].standard", "2016: must be text in quotes: write \"2016\" with its quotes"),
        ("uplink[0].register_expires", "write it as \"3600s\""),
        ("uplink[0].servr_id", "did you mean server_id?"),
        ("uplink[0].bind", "must be \"auto\" or an IP address"),
        ("uplink[0].share[0]", "1: must be"),
    ] {
        find(&loaded, Severity::Error, key, part);
    }
    assert_eq!(loaded.problems.len(), 8, "{}", text(&loaded));
}

#[test]
fn unknown_keys_and_sections_are_errors_with_the_nearest_known_one() {
    one_error(&plus("[gateway]", "nmae = \"x\""), "gateway.nmae", "did you mean name?");
    one_error(&plus("[[camera]]", "file = { point_typ = 1 }"), "camera[0].file.point_typ", "did you mean point_type?");
    one_error(&plus("[http]", "colour_of_the_door = 1"), "http.colour_of_the_door", "known here: listen");
    one_error(&plus("[cameras]", "x = 1"), "cameras", "did you mean camera?");
    one_error(&plus("[[uplink]]", "realm = \"x\""), "uplink[0].realm", "did you mean domain?");
    one_error(&plus("[[uplink]]", "tls = { cart = \"x\" }"), "uplink[0].tls.cart", "did you mean cert?");
}

#[test]
fn nested_tables_are_read_with_their_lines() {
    let loaded =
        load(&with("[[area]]", "[uplink.tls]\nserver_nam = \"x\"\n[uplink.security]\nmode = \"plain\"\n[[area]]"));
    assert_eq!(find(&loaded, Severity::Error, "uplink[0].tls.server_nam", "server_name").line, Some(13));
    assert_eq!(find(&loaded, Severity::Error, "uplink[0].security.mode", "gb35114").line, Some(15));
}

#[test]
fn the_value_of_a_mistyped_secret_is_never_shown() {
    for source in [
        plus("[[camera]]", "pasword = \"hunter2\""),
        plus("[[camera]]", "username = \"a\"\npassword = [\"hunter2\"]"),
        plus("[[camera]]", "username = \"a\"\npassword = { valt = \"hunter2\" }"),
        plus("[http]", "admin_password = \"hunter2\""),
        with("rtsp://192.0.2.1:554/main", "rtsp://admin:hunter2@192.0.2.1:554/main"),
        with("rtsp://192.0.2.1:554/main", "rtsp//admin:hunter2@192.0.2.1:554/main"),
    ] {
        let loaded = load(&source);
        assert!(loaded.config.is_none() && !text(&loaded).contains("hunter2"), "{}", text(&loaded));
        assert!(!render_problems(&loaded.problems, ProblemFormat::Json).contains("hunter2"));
    }
}

#[test]
fn wrong_kinds_of_table() {
    one_error(&GOOD.replace("[[area]]", "[area]"), "area", "write [[area]]");
    one_error(&GOOD.replace("[gateway]", "[[gateway]]"), "gateway", "write [gateway]");
    one_error(&format!("media = 5\n{GOOD}"), "media", "must be a table");
    one_error(&format!("device = [5]\n{GOOD}"), "device[0]", "must be a table");
}

#[test]
fn broken_toml_names_its_line() {
    let loaded = load("[gateway]\nid = \"x\n");
    assert_eq!((loaded.problems.len(), loaded.problems[0].line), (1, Some(2)), "{}", text(&loaded));
    let loaded = load(&format!("{GOOD}\n[gateway]\nname = \"again\"\n"));
    assert_eq!(loaded.problems.len(), 1);
    assert!(text(&loaded).contains("duplicate") && loaded.problems[0].line == Some(23), "{}", text(&loaded));
    assert!(load("[gateway]\nname = \"a\"\nname = \"b\"\n").config.is_none());
}

#[test]
fn an_unquoted_code_is_explained_and_reading_goes_on() {
    let loaded =
        load(&with("\"41130000002000000002\"", "41130000002000000002").replace("name = \"psb\"", "name = \"p s b\""));
    let problem = find(&loaded, Severity::Error, "uplink[0].server_id", "must be in quotes");
    assert_eq!(problem.line, Some(8));
    find(&loaded, Severity::Error, "uplink[0].name", "letters");
    assert_eq!(loaded.problems.len(), 2, "{}", text(&loaded));
    find(&load(&with("\"41130000581320000001\"", "4113000058132000000")), Severity::Error, "camera[0].id", "in quotes");
    one_error(&with("\"41130000581320000001\"", "411300005813200"), "camera[0].id", "with its quotes");
}

#[test]
fn files_that_are_no_configuration() {
    let site = Site::new();
    let read = |path: &Path| load_on(path, &site.env, &site.machine, NOW);
    assert!(text(&read(&site.folder.path().join("none"))).contains("must be readable"));
    assert!(text(&read(site.folder.path())).contains("must be readable"));
    assert!(text(&read(&site.write("latin", [b'#', 0xe4], 0o600))).contains("not UTF-8"));
    let huge = site.folder.path().join("huge");
    std::fs::File::create(&huge).unwrap().set_len(100 << 20).unwrap();
    assert!(text(&read(&huge)).contains("larger than 16 MiB"));
    assert!(read(&site.write("empty", "", 0o600)).config.is_none());
}

#[test]
fn the_environment_wins_over_the_file_and_is_named() {
    let site = Site::new()
        .set("MENSHEN__HTTP__LISTEN", "127.0.0.1:9000")
        .set("MENSHEN__MEDIA__RTP_PAYLOAD_MAX", "1200")
        .set("MENSHEN__MEDIA__WORKERS", "4")
        .set("MENSHEN__GATEWAY__ID", "41130000582000000007")
        .set("MENSHEN__HTTP__ADMIN_PASSWORD", "12345678")
        .set("MENSHEN_UNRELATED", "x");
    let loaded = site.load(GOOD);
    assert_eq!(text(&loaded), "");
    let config = loaded.config.clone().unwrap();
    assert_eq!(config.http.listen.port(), 9000);
    assert_eq!(config.media.rtp_payload_max, 1200);
    assert_eq!(config.media.workers, Auto::Set(4));
    assert_eq!(config.gateway.id.as_str(), "41130000582000000007");
    assert_eq!(config.http.admin_password.as_ref().unwrap().expose(), "12345678");
    assert_eq!(loaded.sources["http.listen"], Origin::Env { variable: "MENSHEN__HTTP__LISTEN".into() });
    let printed = print_effective(&loaded);
    assert!(printed.contains("# MENSHEN__HTTP__LISTEN") && !printed.contains("12345678"), "{printed}");
}

#[test]
fn a_wrong_variable_is_named_instead_of_a_line() {
    let site = Site::new()
        .set("MENSHEN__HTTP__LISTEN", "nowhere")
        .set("MENSHEN__MEDIA__RTP_PAYLOAD_MAX", "5")
        .set("MENSHEN__MEDIA__SLOT", "2");
    let loaded = site.load(&plus("[http]", "listen = \"127.0.0.1:9000\""));
    for (variable, key) in [
        ("MENSHEN__HTTP__LISTEN", "http.listen"),
        ("MENSHEN__MEDIA__RTP_PAYLOAD_MAX", "media.rtp_payload_max"),
        ("MENSHEN__MEDIA__SLOT", "media.slot"),
    ] {
        let problem = find(&loaded, Severity::Error, key, variable);
        assert_eq!((problem.file.as_str(), problem.line), (variable, None));
    }
}

#[test]
fn unknown_variables_are_problems() {
    for (variable, part) in [
        ("MENSHEN__HTTP__LISTN", "did you mean MENSHEN__HTTP__LISTEN?"),
        ("MENSHEN__UPLINK__0__PASSWORD", "[[uplink]] tables cannot be set"),
        ("MENSHEN__UPLINK[99999999]__PASSWORD", "[[uplink]] tables cannot be set"),
        ("MENSHEN__REGISTRAR__NETWORKS", "a list cannot be set"),
        ("MENSHEN__http__listen", "no key has this name"),
        ("MENSHEN__", "no key has this name"),
    ] {
        let loaded = Site::new().set(variable, "hunter2").load(GOOD);
        assert!(loaded.config.is_none(), "{variable}");
        assert_eq!(loaded.problems[0].file, variable);
        assert!(text(&loaded).contains(part) && !text(&loaded).contains("hunter2"), "{}", text(&loaded));
    }
}

#[test]
fn secrets_come_from_variables_and_files() {
    let site = Site::new();
    site.write("admin", "a long password\n", 0o600);
    let source = plus("[http]", "admin_password = { file = \"admin\" }");
    let loaded = site.load(&source);
    assert_eq!(text(&loaded), "");
    let secret = loaded.config.unwrap().http.admin_password.unwrap();
    assert_eq!(secret.expose(), "a long password");
    assert_eq!(secret.source(), &SecretSource::File(site.folder.path().join("admin")));

    site.write("admin", "a long password", 0o644);
    find(&site.load(&source), Severity::Warning, "http.admin_password", "chmod 600");
    site.write("admin", "\n", 0o600);
    find(&site.load(&source), Severity::Error, "http.admin_password", "must not be empty");
    site.write("admin", "two\nlines here", 0o600);
    find(&site.load(&source), Severity::Error, "http.admin_password", "one line");

    let path = site.folder.path().join("admin").display().to_string();
    site.write("admin", "a long password", 0o600);
    let site = site.set("MENSHEN__HTTP__ADMIN_PASSWORD__FILE", &path);
    assert_eq!(site.load(GOOD).config.unwrap().http.admin_password.unwrap().expose(), "a long password");
    let site = site.set("MENSHEN__HTTP__ADMIN_PASSWORD", "another password");
    assert!(text(&site.load(GOOD)).contains("sets the same secret"));
}

#[test]
fn secrets_that_are_not_there() {
    one_error(&with("{ env = \"PSB\" }", "{ env = \"NOT_SET\" }"), "uplink[0].password", "the variable must be set");
    one_error(&with("{ env = \"PSB\" }", "{ file = \"none\" }"), "uplink[0].password", "the file must be readable");
    one_error(&with("{ env = \"PSB\" }", "\"\""), "uplink[0].password", "must not be empty");
    one_error(&with("{ env = \"PSB\" }", "{ env = \"A\", file = \"b\" }"), "uplink[0].password", "exactly one");
}

#[test]
fn inline_secrets_in_a_file_everybody_may_read() {
    let site = Site::new();
    let path = site.write("open.toml", with("{ env = \"PSB\" }", "\"secret\""), 0o644);
    let loaded = load_on(&path, &site.env, &site.machine, NOW);
    find(&loaded, Severity::Warning, "", "chmod 600");
    assert!(loaded.config.is_some());
}

#[test]
fn gateway_and_its_code() {
    one_error(&with("id = \"41130000582000000001\"\n", ""), "gateway.id", "missing");
    one_error(&with("41130000582000000001", "4113000058200000000"), "gateway.id", "this has 19 characters");
    one_error(&with("41130000582000000001", "41130000581320000009"), "gateway.id", "200 (platform)");
    one_error(&with("41130000582000000001", "41130000582150000001"), "gateway.id", "200 (platform)");
    one_warning(&with("41130000582000000001", "41130000581180000001"), "gateway.id", "usually has 200");
    one_warning(&with("41130000582000000001", "99130000582000000001"), "gateway.id", "no province");
    assert_eq!(text(&load(&with("41130000582000000001", "41130000582090000001"))), "");
    one_error(&with("name = \"机关\"", "name = \" \""), "gateway.name", "write a name");
    one_error(&with("name = \"机关\"", "name = \"a\\nb\""), "gateway.name", "one line");
    one_error(&plus("[gateway]", "civil_code = \"411\""), "gateway.civil_code", "2, 4, 6 or 8");
    one_warning(&plus("[gateway]", "civil_code = \"991300\""), "gateway.civil_code", "no province");
    one_warning(&plus("[gateway]", "data_dir = \"/no/such/folder\""), "gateway.data_dir", "does not exist");
    one_error(&plus("[gateway]", "data_dir = \"menshen.toml\""), "gateway.data_dir", "must be a folder");
    one_warning(&plus("[gateway]", "data_dir = \"../elsewhere\""), "gateway.data_dir", "leads out");
}

#[test]
fn codes_must_differ() {
    let twice =
        format!("{GOOD}\n[[camera]]\nid = \"41130000581320000001\"\nname = \"b\"\nrtsp = \"rtsp://192.0.2.2/\"\n");
    one_error(&twice, "camera[1].id", "camera[0].id has the same code");
    one_error(
        &with("server_id = \"41130000002000000002\"", "server_id = \"41130000582000000001\""),
        "uplink[0].server_id",
        "our own code",
    );
    let local = plus("[[uplink]]", "local_id = \"41130000001180000009\"")
        .replace("id = \"41130000581320000001\"", "id = \"41130000001180000009\"");
    find(&load(&local), Severity::Error, "camera[0].id", "uplink[0].local_id has the same code");
    let areas = format!("{GOOD}\n[[area]]\nid = \"gate\"\nname = \"b\"\n");
    one_error(&areas, "area[1].id", "area[0] has the same id");
}

const SECOND: &str = r#"
[[uplink]]
name = "two"
server_id = "41130000002000000003"
server_addr = "198.51.100.11:5060"
password = "x"
"#;

#[test]
fn uplinks_must_differ() {
    assert_eq!(text(&load(&format!("{GOOD}{SECOND}"))), "");
    one_error(&format!("{GOOD}{}", SECOND.replace("two", "psb")), "uplink[1].name", "uplink[0] has the same name");
    let same = SECOND.replace("41130000002000000003", "41130000002000000002");
    one_error(&format!("{GOOD}{same}"), "uplink[1].local_id", "registers the same code");
    let other_code = format!("{same}local_id = \"41130000582000000009\"\n");
    assert_eq!(text(&load(&format!("{GOOD}{other_code}"))), "");
}

#[test]
fn uplink_values() {
    for (lines, key, part) in [
        ("register_expires = \"59m\"", "register_expires", "must be 1h to 7d"),
        ("register_expires = \"8d\"", "register_expires", "write \"7d\""),
        ("register_retry = \"59s\"", "register_retry", "must be 1m to 1h"),
        ("keepalive_interval = \"4s\"", "keepalive_interval", "must be 5s to 1h"),
        ("keepalive_max_missed = 0", "keepalive_max_missed", "must be 1 to 20"),
        ("catalog_items_per_message = 0", "catalog_items_per_message", "must be 1 to 10000"),
        ("catalog_items_per_message = 10001", "catalog_items_per_message", "must be 1 to 10000"),
        ("max_sessions = 0", "max_sessions", "must be 1 to 10000"),
        ("rtp_payload_max = 599", "rtp_payload_max", "must be 600 to 1400"),
        ("stream = 8", "stream", "must be 0 to 7"),
        ("media_networks = []", "media_networks", "no media"),
        ("media_networks = [\"10.0.0.0/40\"]", "media_networks[0]", "must be \"auto\" or a network"),
        ("permissions = [\"live\", \"fly\"]", "permissions[1]", "must be one of \"live\""),
        ("domain = \"a b\"", "domain", "must be letters"),
        ("username = \"a\\\"b\"", "username", "quotes"),
        ("username = \"a\\r\\nb\"", "username", "one line"),
        ("bind = \"0.0.0.0\"", "bind", "an address of this machine"),
        ("bind = \"fd00::1\"", "bind", "same family"),
        ("advertised_address = \"224.0.0.1\"", "advertised_address", "reaches us at"),
        ("media_advertised_address = \"0.0.0.0\"", "media_advertised_address", "reaches us at"),
        ("share = [\"area:gat\"]", "share[0]", "did you mean gate?"),
        ("share = [\"area:roof\"]", "share[0]", "\"area:roof\": no area has this id"),
        ("share = [\"41130000581320000002\"]", "share[0]", "did you mean 41130000581320000001?"),
        ("share = [\"gate\"]", "share[0]", "area:ID"),
        ("transport = \"tls\"", "transport", "add [uplink.tls]"),
        ("security = { mode = \"gb35114\" }", "security.mode", "not built yet"),
        ("transport = \"tls\"\ntls = {}", "tls.ca", "ca or pin_sha256"),
        ("transport = \"tls\"\ntls = { pin_sha256 = \"12\" }", "tls.pin_sha256", "64 hexadecimal"),
        ("transport = \"tls\"\ntls = { ca = \"none.pem\" }", "tls.ca", "must be readable"),
        ("local_id = \"12\"", "local_id", "20 digits"),
    ] {
        one_error(&plus("[[uplink]]", lines), &format!("uplink[0].{key}"), part);
    }
    for (lines, key, part) in [
        ("keepalive_interval = \"30m\"", "keepalive_interval", "longer than register_expires"),
        ("stream = 1", "stream", "no stream of this number"),
        ("share = []", "share", "sees no channel"),
        ("permissions = [\"live\", \"live\"]", "permissions", "twice"),
        ("tls = { pin_sha256 = \"{}\" }", "tls", "not used with this transport"),
        ("security = { level = \"B\" }", "security", "not used with mode"),
    ] {
        let lines = lines.replace("{}", &"0a".repeat(32));
        one_warning(&plus("[[uplink]]", &lines), &format!("uplink[0].{key}"), part);
    }
    let name = plus(
        "[[uplink]]",
        &format!("transport = \"tls\"\ntls = {{ pin_sha256 = \"{}\", server_name = \"a b\" }}", "0a".repeat(32)),
    );
    one_error(&name, "uplink[0].tls.server_name", "host name");
    one_error(&with("name = \"psb\"\n", ""), "uplink[0].name", "missing");
    one_error(&with("name = \"psb\"", "name = \"公安\""), "uplink[0].name", "plain short name");
    one_error(&with("server_addr = \"198.51.100.10:5060\"\n", ""), "uplink[0].server_addr", "missing");
    one_error(&with("198.51.100.10:5060", "psb.example:5060"), "uplink[0].server_addr", "names are not resolved");
    one_error(&with("198.51.100.10:5060", "198.51.100.10:0"), "uplink[0].server_addr", "one machine's address");
    one_error(&with("198.51.100.10:5060", "127.0.0.1:5060"), "uplink[0].server_addr", "our own SIP address");
    one_warning(&with("password = { env = \"PSB\" }", ""), "uplink[0].password", "usually asks");
    one_warning(&with("41130000002000000002", "41130000001320000002"), "uplink[0].server_id", "usually has 200");
    one_warning(
        &format!("{}\n[sip]\nlisten = \"203.0.113.1:5060\"\n", plus("[[uplink]]", "bind = \"198.51.100.20\"")),
        "uplink[0].bind",
        "sip.listen receives on",
    );
}

#[test]
fn time_and_media_and_log() {
    one_error(&plus("[time]", "source = \"uplink:county\""), "time.source", "no uplink has this name");
    one_error(&plus("[time]", "source = \"ntp\""), "time.source", "must be \"system\" or");
    one_error(
        &format!("{}\n[time]\nsource = \"uplink:psb\"\n", plus("[[uplink]]", "enabled = false")),
        "time.source",
        "not enabled",
    );
    assert_eq!(text(&load(&plus("[time]", "source = \"uplink:psb\""))), "");
    one_error(&plus("[time]", "max_step = \"1s\""), "time.max_step", "must be 2s to 1d");
    for (line, key, part) in [
        ("rtp_payload_max = 1401", "rtp_payload_max", "600 to 1400"),
        ("slot = \"6ms\"", "slot", "1ms to 5ms"),
        ("slot = \"2\"", "slot", "a duration"),
        ("pacing_max = \"1ms\"", "pacing_max", "2ms to 100ms"),
        ("gop_cache = \"65MiB\"", "gop_cache", "at most 64MiB"),
        ("gop_cache = 4", "gop_cache", "a size with its unit"),
        ("gop_cache_max_age = \"2m\"", "gop_cache_max_age", "0s to 1m"),
        ("workers = 0", "workers", "1 to 64"),
        ("port_range = \"20000-20000\"", "port_range", "at least 2 ports"),
        ("port_range = \"27999-20000\"", "port_range", "the smaller first"),
        ("port_range = \"1000-9999\"", "port_range", "1024"),
        ("advertised_address = \"0.0.0.0\"", "advertised_address", "reach us at"),
    ] {
        let loaded = load(&plus("[media]", line));
        find(&loaded, Severity::Error, &format!("media.{key}"), part);
    }
    assert_eq!(load(&plus("[media]", "gop_cache = 0")).config.unwrap().media.gop_cache, ByteSize(0));
    one_error(&plus("[log]", "filter = \"menshen=loud\""), "log.filter", "module=level");
    one_error(&plus("[log]", "level = \"loud\""), "log.level", "must be one of \"error\"");
    assert_eq!(text(&load(&plus("[log]", "filter = \"menshen::media=trace\""))), "");
}

#[test]
fn ports_that_clash() {
    one_error(&plus("[http]", "listen = \"127.0.0.1:5060\""), "http.listen", "sip.listen has the same port");
    one_error(&plus("[http]", "listen = \"[::1]:20010\""), "http.listen", "media.port_range");
    one_error(&plus("[sip]", "listen = \"0.0.0.0:20010\""), "sip.listen", "media.port_range");
    one_error(&plus("[sip]", "listen = \"239.0.0.1:5060\""), "sip.listen", "an address of this machine");
    one_warning(&plus("[sip]", "listen = \"0.0.0.0:0\""), "sip.listen", "another port at every start");
    let apart = format!("{GOOD}\n[sip]\nlisten = \"192.0.2.1:5060\"\n[http]\nlisten = \"127.0.0.1:5060\"\n");
    assert_eq!(text(&load(&apart)), "");
    assert!(super::network::overlap("[::]:1".parse().unwrap(), "127.0.0.1:1".parse().unwrap()));
    assert!(!super::network::overlap("0.0.0.0:1".parse().unwrap(), "[::1]:1".parse().unwrap()));
}

#[test]
fn ephemeral_ports() {
    one_warning(&plus("[media]", "port_range = \"40000-40999\""), "media.port_range", "ephemeral ports 32768-60999");
    one_warning(&plus("[http]", "listen = \"127.0.0.1:50000\""), "http.listen", "ephemeral");
    let mut site = Site::new();
    site.machine.reserved_ports = vec![40000..=40999];
    assert_eq!(text(&site.load(&plus("[media]", "port_range = \"40000-40999\""))), "");
    let machine = Machine::parse("32768\t60999\n", "40000-40999,50000\n");
    assert_eq!(machine.ephemeral_ports, Some(32768..=60999));
    assert_eq!(machine.reserved_ports, [40000..=40999, 50000..=50000]);
    let machine = Machine::parse("", "\n");
    assert!(machine.ephemeral_ports.is_none() && machine.reserved_ports.is_empty());
    one_warning(&plus("[media]", "port_range = \"20000-20009\""), "media.port_range", "holds 5 sessions");
}

#[test]
fn http_beyond_loopback_demands_tls_an_administrator_and_a_token() {
    let loaded = load(&plus("[http]", "listen = \"0.0.0.0:28181\""));
    for key in ["http.tls_cert", "http.admin_password", "http.metrics_token"] {
        find(&loaded, Severity::Error, key, "is not loopback");
    }
    assert_eq!(loaded.problems.len(), 3);
    one_error(&plus("[http]", "admin_password = \"short\""), "http.admin_password", "at least 8");
    one_error(&plus("[http]", "metrics_token = \"short\""), "http.metrics_token", "at least 16");
}

#[test]
fn area_and_camera_values() {
    one_error(&with("id = \"gate\"\nkind", "kind").replace("area = \"gate\"\n", ""), "area[0].id", "missing");
    one_error(&with("name = \"东门\"", ""), "area[0].name", "missing");
    one_error(&with("kind = \"entrance\"", "kind = \"entrence\""), "area[0].kind", "did you mean \"entrance\"?");
    one_error(&with("area = \"gate\"", "area = \"gaet\""), "camera[0].area", "did you mean gate?");
    one_error(&with("id = \"41130000581320000001\"", "id = \"41130000582000000009\""), "camera[0].id", "131 or 132");
    one_warning(&with("41130000581320000001", "41130000581180000001"), "camera[0].id", "usually has 131");
    one_error(&with("name = \"枪机\"\n", ""), "camera[0].name", "missing");
    one_error(&with("rtsp = \"rtsp://192.0.2.1:554/main\"", ""), "camera[0].rtsp", "rtsp or streams");
    for (url, part) in [
        ("http://192.0.2.1/", "begins with rtsp://"),
        ("rtsps://192.0.2.1/", "over TLS"),
        ("192.0.2.1/main", "begins with rtsp://"),
        ("rtsp://", "must name the camera's host"),
        ("", "missing"),
        ("rtsp://a:b@192.0.2.1/", "move them to the keys username and password"),
    ] {
        let loaded = load(&with("rtsp://192.0.2.1:554/main", url));
        find(&loaded, Severity::Error, "camera[0].rtsp", part);
    }
    for (lines, key, part) in [
        ("streams = [{ rtsp = \"rtsp://192.0.2.1/sub\" }]", "streams", "rtsp is written too"),
        ("password = \"x\"", "username", "needed with a password"),
        ("onvif = \"ftp://192.0.2.1/\"", "onvif", "http://"),
        ("linger = \"2h\"", "linger", "0s to 1h"),
        ("probe_interval = \"0s\"", "probe_interval", "1s to 1h"),
        ("connect_timeout = \"2m\"", "connect_timeout", "1s to 1m"),
        ("stall_timeout = \"0s\"", "stall_timeout", "1s to 1m"),
        ("pull = \"always\"", "pull", "must be one of \"on_demand\""),
        ("audio = false", "audio", "text in quotes"),
    ] {
        one_error(&plus("[[camera]]", lines), &format!("camera[0].{key}"), part);
    }
    one_warning(&plus("[[camera]]", "onvif = \"http://192.0.2.1/onvif\""), "camera[0].onvif", "not used yet");
    let stream = "{ rtsp = \"rtsp://192.0.2.1/s\" },".repeat(9);
    one_error(
        &with("rtsp = \"rtsp://192.0.2.1:554/main\"", &format!("streams = [{stream}]")),
        "camera[0].streams",
        "at most 8",
    );
    let again = format!(
        "{GOOD}\n[[camera]]\nid = \"41130000581320000002\"\nname = \"b\"\nrtsp = \"rtsp://192.0.2.1:554/main\"\n"
    );
    one_warning(&again, "camera[1]", "camera[0] has the same address");
    one_warning(&GOOD[..GOOD.find("[[camera]]").unwrap()], "", "no [[camera]]");
    let gateway_only = &GOOD[..GOOD.find("[[uplink]]").unwrap()];
    one_warning(gateway_only, "", "no [[uplink]]");
}

#[test]
fn catalogue_file_values() {
    for (line, key, part) in [
        ("civil_code = \"x\"", "civil_code", "2, 4, 6 or 8"),
        ("safety_way = 1", "safety_way", "0, 2, 3, 4"),
        ("register_way = 0", "register_way", "1, 2, 3, 4"),
        ("certifiable = 2", "certifiable", "0, 1"),
        ("secrecy = 2", "secrecy", "0, 1"),
        ("secrecy = 300", "secrecy", "0-255"),
        ("ptz_type = 8", "ptz_type", "1, 2, 3, 4, 5, 6, 7"),
        ("position_type = 11", "position_type", "9, 10"),
        ("room_type = 3", "room_type", "1, 2"),
        ("use_type = 4", "use_type", "1, 2, 3"),
        ("supply_light_type = 5", "supply_light_type", "4, 9"),
        ("direction_type = 9", "direction_type", "7, 8"),
        ("svc_space_support_mode = 4", "svc_space_support_mode", "0, 1, 2, 3"),
        ("svc_time_support_mode = 4", "svc_time_support_mode", "0, 1, 2, 3"),
        ("mobile_device_type = 6", "mobile_device_type", "5, 9"),
        ("point_type = 4", "point_type", "1, 2, 3, 9"),
        ("photoelectric_imaging_type = [6]", "photoelectric_imaging_type[0]", "5, 9"),
        ("function_type = [\"06\"]", "function_type[0]", "05, 99"),
        ("longitude = 181.0\nlatitude = 0", "longitude", "-180 to 180"),
        ("longitude = 0\nlatitude = -90.5", "latitude", "-90 to 90"),
        ("longitude = nan\nlatitude = 0", "longitude", "must be a number"),
        ("latitude = 1.0", "longitude", "go together"),
        ("horizontal_field_angle = 0.0", "horizontal_field_angle", "above 0, at most 360"),
        ("vertical_field_angle = 361.0", "vertical_field_angle", "above 0, at most 360"),
        ("max_view_distance = -1.0", "max_view_distance", "above 0"),
        ("capture_position_type = \"0330100\"", "capture_position_type", "0110100"),
        ("grassroots_code = \"12345\"", "grassroots_code", "6 digits"),
        ("mac = \"00:11:22:33:44:55\"", "mac", "hyphens"),
        ("install_time = \"31.1.2026\"", "install_time", "date and time"),
        ("end_time = \"2026-01-31T08:00:00Z\"", "end_time", "without zone"),
        ("resolution = \"1,2\"", "resolution", "joined by '/'"),
        ("download_speed = \"fast\"", "download_speed", "joined by '/'"),
        ("ssvc_ratio_support_list = \"4:3/\"", "ssvc_ratio_support_list", "joined by '/'"),
        ("encode_type = \"h264\"", "encode_type", "joined by '/'"),
        ("security_level_code = \"D\"", "security_level_code", "\"A\", \"B\", \"C\""),
        ("ip_address = \"x\"", "ip_address", "IP address"),
        ("address = \"a\\u0007\"", "address", "one line"),
    ] {
        one_error(&format!("{GOOD}[camera.file]\n{line}\n"), &format!("camera[0].file.{key}"), part);
    }
    for key in ["install_time", "contact_info", "record_save_days", "longitude"] {
        one_warning(&format!("{GOOD}[camera.file]\npoint_type = 1\n"), &format!("camera[0].file.{key}"), "class 1");
    }
    let date = format!("{GOOD}[camera.file]\ninstall_time = 2026-01-31T08:00:00\n");
    assert_eq!(load(&date).config.unwrap().cameras[0].file.install_time.as_deref(), Some("2026-01-31T08:00:00"));
}

#[test]
fn devices_are_read_and_checked() {
    let device = |lines: &str| format!("{GOOD}\n[[device]]\n{lines}\n");
    assert!(load(&plus("[registrar]", "networks = [\"10.0.0.0/8\"]")).config.is_some());
    let one = |line: &str| device(&format!("id = \"41130000581180000001\"\npassword = \"x\"\n{line}"));
    assert!(load(&one("media = \"udp\"\nnetworks = [\"10.0.0.0/8\"]\nstandard = \"2011\"")).config.is_some());
    one_error(&one("media = \"tcp\""), "device[0].media", "tcp_passive");
    one_error(&one("keepalive_interval = \"1s\""), "device[0].keepalive_interval", "must be 5s to 1h");
    one_error(&one("max_streams = 0"), "device[0].max_streams", "1 to 1000");
    one_error(&one("catalog_interval = \"2d\""), "device[0].catalog_interval", "must be 1m to 1d");
    one_error(&plus("[registrar]", "lockout_failures = 1"), "registrar.lockout_failures", "3 to 100");
    assert!(load(&device("id = \"4113000058118*\"\nmax = 4\npassword = \"x\"")).config.is_some());
    one_error(&plus("[registrar]", "networks = [\"lan\"]"), "registrar.networks[0]", "a network");
    one_error(&plus("[registrar]", "pending = \"add\""), "registrar.pending", "\"list\", \"refuse\"");
    one_error(&device("password = \"x\""), "device[0].id", "missing");
    one_error(&device("id = \"123\"\npassword = \"x\""), "device[0].id", "20 digits, or a prefix");
    one_error(&device("id = \"*\"\nmax = 1\npassword = \"x\""), "device[0].id", "20 digits, or a prefix");
    one_error(&device("id = \"41*\"\npassword = \"x\""), "device[0].max", "needed with a prefix");
    one_error(&device("id = \"41*\"\nmax = 0\npassword = \"x\""), "device[0].max", "1 to 10000");
    one_error(
        &device("id = \"41130000581180000001\"\nmax = 2\npassword = \"x\""),
        "device[0].max",
        "only fits a prefix",
    );
    one_error(&device("id = \"41130000581180000001\""), "device[0].password", "no device comes in without");
    one_error(&device("id = \"41130000581180000001\"\npassword = \"x\"\narea = \"x\""), "device[0].area", "no area");
    let twice = "id = \"41130000581180000001\"\npassword = \"x\"";
    one_error(&device(&format!("{twice}\n[[device]]\n{twice}")), "device[1].id", "device[0] has the same id");
    one_error(
        &device("id = \"41130000581320000001\"\npassword = \"x\""),
        "device[0].id",
        "camera[0].id has the same code",
    );
}

fn certificate(from: i32, until: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["gate.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn certificates_and_their_keys() {
    let source = plus("[http]", "tls_cert = \"cert.pem\"\ntls_key = \"key.pem\"");
    let site = Site::new();
    let (cert, key) = certificate(2025, 2030);
    site.write("cert.pem", &cert, 0o644);
    site.write("key.pem", &key, 0o600);
    assert_eq!(text(&site.load(&source)), "");

    site.write("key.pem", &key, 0o644);
    find(&site.load(&source), Severity::Warning, "http.tls_key", "every user may read");
    site.write("key.pem", certificate(2025, 2030).1, 0o600);
    find(&site.load(&source), Severity::Error, "http.tls_key", "must belong to http.tls_cert");
    site.write("key.pem", &cert, 0o600);
    find(&site.load(&source), Severity::Error, "http.tls_key", "private key in PEM");
    std::fs::remove_file(site.folder.path().join("key.pem")).unwrap();
    find(&site.load(&source), Severity::Error, "http.tls_key", "must be readable");

    site.write("key.pem", &key, 0o600);
    site.write("cert.pem", "no certificate", 0o644);
    find(&site.load(&source), Severity::Error, "http.tls_cert", "must hold a certificate");
    site.write("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o644);
    find(&site.load(&source), Severity::Error, "http.tls_cert", "X.509");
    find(&load(&plus("[http]", "tls_cert = \"menshen.toml\"")), Severity::Error, "http.tls_key", "is needed with");
}

#[test]
fn certificates_are_valid_today_or_reported() {
    let source = plus("[http]", "tls_cert = \"cert.pem\"\ntls_key = \"key.pem\"");
    let mut site = Site::new();
    let (cert, key) = certificate(2025, 2026);
    site.write("cert.pem", cert, 0o644);
    site.write("key.pem", key, 0o600);
    site.now = NOW - 3600;
    find(&site.load(&source), Severity::Warning, "http.tls_cert", "expires on 2026-01-01");
    site.now = NOW + 3600;
    find(&site.load(&source), Severity::Error, "http.tls_cert", "expired on 2026-01-01");
    site.now = NOW - 400 * 86_400;
    find(&site.load(&source), Severity::Error, "http.tls_cert", "not valid before 2025-01-01");
}

#[test]
fn tls_tables() {
    let site = Site::new();
    let (cert, key) = certificate(2025, 2030);
    site.write("cert.pem", &cert, 0o644);
    site.write("key.pem", &key, 0o600);
    let sip = plus("[sip.tls]", "cert = \"cert.pem\"\nkey = \"key.pem\"\nclient_ca = \"ca.pem\"");
    site.write("ca.pem", &cert, 0o644);
    assert_eq!(text(&site.load(&sip)), "");
    site.write("ca.pem", certificate(2001, 2002).0, 0o644);
    find(&site.load(&sip), Severity::Error, "sip.tls.client_ca", "no certificate that is valid today");
    site.write("ca.pem", certificate(2001, 2002).0 + &cert, 0o644);
    find(&site.load(&sip), Severity::Warning, "sip.tls.client_ca", "1 certificates that are not valid");
    let loaded = site.load(&plus("[sip.tls]", "listen = \"0.0.0.0:5060\""));
    find(&loaded, Severity::Error, "sip.tls.cert", "is needed in [sip.tls]");
    find(&loaded, Severity::Error, "sip.tls.key", "is needed in [sip.tls]");
    find(&loaded, Severity::Error, "sip.tls.listen", "sip.listen has the same port");

    let uplink = |tls: &str| plus("[[uplink]]", &format!("transport = \"tls\"\ntls = {{ ca = \"cert.pem\", {tls} }}"));
    let loaded = site.load(&uplink("cert = \"cert.pem\", key = \"key.pem\", server_name = \"sip.example\""));
    assert_eq!(text(&loaded), "");
    assert_eq!(loaded.config.unwrap().uplinks[0].tls.as_ref().unwrap().ca, Some(site.folder.path().join("cert.pem")));
    find(&site.load(&uplink("cert = \"cert.pem\"")), Severity::Error, "uplink[0].tls.key", "is needed with");
    find(&site.load(&uplink("key = \"key.pem\"")), Severity::Error, "uplink[0].tls.cert", "is needed with");
}

#[test]
fn a_configuration_that_cannot_be_used_prints_no_values() {
    let loaded = load("[http]\nadmin_password = \"hunter2\"\n");
    assert!(print_effective(&loaded).contains("cannot be used") && !print_effective(&loaded).contains("hunter2"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn no_text_panics(noise in "[\\[\\]a-z\"'=#0-9{}.,\n ]{0,60}", at in 0..400usize) {
        let at = (0..=at.min(GOOD.len())).rev().find(|at| GOOD.is_char_boundary(*at)).unwrap();
        load(&format!("{}{noise}{}", &GOOD[..at], &GOOD[at..]));
    }
}
