//! The command line: exit codes and what is said.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

fn menshen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_menshen"))
        .args(args)
        .env_remove("MENSHEN_CONFIG")
        .output()
        .expect("the binary runs")
}

fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("menshen.toml");
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const GOOD: &str = r#"
[gateway]
id = "41130000582000000001"
name = "大院"
[[uplink]]
name = "psb"
server_id = "41130000002000000002"
server_addr = "127.0.0.1:15060"
password = "secret-password"
"#;

#[test]
fn check_config_reports_all_problems_with_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        &dir,
        "[gateway]\nid = \"4113\"\nname = \"x\"\n[sip]\nlisten = \"0.0.0.0:5060\"\nlisen = 5\n[[uplink]]\nname = \"a\"\n\
         server_id = \"41130000002000000002\"\nserver_addr = \"127.0.0.1:15060\"\nregister_retry = \"5s\"\n",
    );
    let out = menshen(&["check-config", "-c", path.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(78));
    let said = text(&out.stdout);
    for wanted in [":2:", ":6:", ":11:", "gateway.id", "lisen", "listen", "register_retry"] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let out = menshen(&["check-config", "--json", "-c", path.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(json["errors"].as_u64().unwrap() >= 3, "{json}");
    // The daemon refuses it the same way.
    assert_eq!(menshen(&["run", "-c", path.to_str().unwrap()]).status.code(), Some(78));
}

#[test]
fn a_good_file_is_ok_and_secrets_stay_masked() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, GOOD);
    assert_eq!(menshen(&["check-config", "-c", path.to_str().unwrap()]).status.code(), Some(0));
    let out = menshen(&["print-config", "-c", path.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(0));
    let said = text(&out.stdout);
    assert!(said.contains("server_addr") && !said.contains("secret-password"), "{said}");
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    assert_eq!(menshen(&["walk"]).status.code(), Some(64));
    assert_eq!(menshen(&["demo", "--seconds", "1"]).status.code(), Some(64));
    assert_eq!(menshen(&["--help"]).status.code(), Some(0));
}

#[test]
fn version_speaks_both_ways() {
    let out = menshen(&["version", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(text(&menshen(&["version"]).stdout).starts_with("menshen "));
}

#[test]
fn a_taken_port_is_69_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let config = GOOD.replace(
        "[[uplink]]",
        &format!(
            "data_dir = \"{}\"\n[sip]\nlisten = \"{addr}\"\n[http]\nlisten = \"127.0.0.1:0\"\n[[uplink]]",
            dir.path().join("data").display()
        ),
    );
    let path = file(&dir, &config);
    let out = menshen(&["run", "-c", path.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(69), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains(&addr.to_string()));
}

#[test]
fn health_of_nobody_is_1() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = file(&dir, &format!("{GOOD}[http]\nlisten = \"{port}\"\n"));
    assert_eq!(menshen(&["health", "-c", path.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn audit_verify_without_a_log_is_1() {
    let dir = tempfile::tempdir().unwrap();
    let config = GOOD.replace("[[uplink]]", &format!("data_dir = \"{}\"\n[[uplink]]", dir.path().display()));
    let path = file(&dir, &config);
    assert_eq!(menshen(&["audit", "verify", "-c", path.to_str().unwrap()]).status.code(), Some(1));
}
