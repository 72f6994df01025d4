//! The command line.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Menshen 门神: GB/T 28181 video-surveillance gateway.
#[derive(Debug, Parser)]
#[command(name = "menshen", disable_version_flag = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// Configuration file [default: $MENSHEN_CONFIG, then /etc/menshen/menshen.toml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway.
    Run(ConfigFile),
    /// Check a configuration offline and report all its problems.
    CheckConfig {
        /// The file.
        #[command(flatten)]
        file: ConfigFile,
        /// For scripts.
        #[arg(long)]
        json: bool,
    },
    /// Print the effective configuration, secrets masked, and where each value came from.
    PrintConfig(ConfigFile),
    /// The whole chain on loopback: simulated cameras, the gateway, a simulated upper platform.
    Demo {
        /// How long to play each camera.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=86_400))]
        seconds: u64,
    },
    /// One simulator by itself.
    Sim {
        /// Which.
        #[command(subcommand)]
        which: SimCommand,
    },
    /// Ask the running gateway for its health.
    Health {
        /// The file that says where it listens.
        #[command(flatten)]
        file: ConfigFile,
        /// Ask whether every uplink is registered (/readyz) instead of whether the process serves (/healthz).
        #[arg(long)]
        ready: bool,
    },
    /// The audit log.
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        action: AuditCommand,
    },
    /// Version, commit and build features.
    Version {
        /// For scripts.
        #[arg(long)]
        json: bool,
    },
}

/// `menshen audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check the chain and name the first bad record.
    Verify(ConfigFile),
}

/// `menshen sim …`
#[derive(Debug, Subcommand)]
pub enum SimCommand {
    /// An RTSP camera that serves real H.264 (/h264, /h264b) and H.265 (/h265) clips.
    Camera {
        /// Address to listen on.
        #[arg(long, default_value = "127.0.0.1:8554")]
        listen: std::net::SocketAddr,
        /// Ask for this user name (with --password).
        #[arg(long, requires = "password")]
        username: Option<String>,
        /// Ask for this password.
        #[arg(long, requires = "username")]
        password: Option<String>,
    },
    /// An upper platform: registers lower platforms, reads their catalogue, plays every camera and checks what arrives.
    Platform {
        /// Address of SIP (UDP and TCP).
        #[arg(long, default_value = "127.0.0.1:15060")]
        listen: std::net::SocketAddr,
        /// Its 20-digit code.
        #[arg(long, default_value = "41130000002000000002")]
        id: String,
        /// Password it asks of lower platforms.
        #[arg(long, default_value = "12345678")]
        password: String,
        /// Media transports: udp, tcp-passive, tcp-active (the platform's role), a list of them, or all.
        #[arg(long, default_value = "udp")]
        media: String,
        /// Play every camera for so many seconds, print what arrived and exit; 0: only register and show the catalogue.
        #[arg(long, default_value_t = 0)]
        play: u64,
    },
    /// A GB/T 28181 camera or NVR: registers with a platform, answers it and plays real clips, live and recorded.
    Device(SimDeviceArgs),
}

/// `menshen sim device`
#[derive(Debug, Args)]
pub struct SimDeviceArgs {
    /// Address of its own SIP (UDP and TCP).
    #[arg(long, default_value = "0.0.0.0:0")]
    pub listen: std::net::SocketAddr,
    /// Where the platform is.
    #[arg(long, default_value = "127.0.0.1:5060")]
    pub server: std::net::SocketAddr,
    /// The platform's 20-digit code.
    #[arg(long)]
    pub server_id: String,
    /// The device's 20-digit code.
    #[arg(long, default_value = "41130000581180000001")]
    pub id: String,
    /// Password of the registration.
    #[arg(long, default_value = "12345678")]
    pub password: String,
    /// How many cameras it has.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub channels: u32,
    /// Transport of SIP: udp or tcp.
    #[arg(long, default_value = "udp")]
    pub transport: String,
    /// Version it speaks: 2011, 2016 or 2022.
    #[arg(long, default_value = "2022")]
    pub version: String,
    /// Unregister and exit after so many seconds; 0: go on until interrupted.
    #[arg(long, default_value_t = 0)]
    pub seconds: u64,
}
