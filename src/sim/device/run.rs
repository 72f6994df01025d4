//! `menshen sim device`: a simulated device for people, told line by line.
//!
//! Standard: none.
//! In: `DeviceArgs`. Out: lines of text; whether it was registered.
//! Invariants: one line an event.
//! Not here: the command line (`app`).

use std::io::Write;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{DeviceError, DeviceHandle, SimDevice, SimDeviceConfig, Snapshot};

/// What `menshen sim device` is to do.
#[derive(Debug, Clone)]
pub struct DeviceArgs {
    /// The device.
    pub config: SimDeviceConfig,
    /// End after so long; `None`: go on until cancelled.
    pub length: Option<Duration>,
}

/// Runs a device until `cancel`, or until its time is up; then it unregisters. True when it was ever registered.
///
/// # Errors
/// [`DeviceError`]: it cannot be started, or `out` cannot be written.
pub async fn run_device(
    args: DeviceArgs,
    out: &mut (impl Write + Send),
    cancel: CancellationToken,
) -> Result<bool, DeviceError> {
    let (id, server_id, server) = (args.config.id, args.config.server_id, args.config.server);
    let (channels, transport) = (args.config.channels.len(), args.config.transport.as_str());
    let device = SimDevice::start(args.config).await?;
    let handle = device.handle();
    let addr = device.addr();
    line(
        out,
        format_args!(
            "device {id} with {channels} channels listens on {addr}, registers with {server_id} at {server} over {transport}"
        ),
    )?;
    let over = async {
        match args.length {
            Some(length) => tokio::time::sleep(length).await,
            None => std::future::pending().await,
        }
    };
    let told = tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(()),
        () = over => Ok(()),
        told = tell(&handle, out) => told,
    };
    let registered = handle.snapshot().registrations > 0;
    let confirmed = device.stop().await;
    told?;
    let s = handle.snapshot();
    let (calls, pictures, alarms) = (s.calls_started, s.pictures, s.alarms_answered);
    line(out, format_args!("{calls} calls, {pictures} pictures sent, {} of {alarms} alarms answered", s.alarms))?;
    line(out, format_args!("{}", if confirmed { "unregistered" } else { "ended without unregistering" }))?;
    Ok(registered)
}

fn line(out: &mut impl Write, text: std::fmt::Arguments<'_>) -> Result<(), DeviceError> {
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| DeviceError::Output(error.kind()))
}

/// Tells what changes, until the device ends.
async fn tell(handle: &DeviceHandle, out: &mut impl Write) -> Result<(), DeviceError> {
    let mut snapshots = handle.watch();
    let mut before = Snapshot::default();
    loop {
        let now = *snapshots.borrow_and_update();
        if now.registered != before.registered {
            line(out, format_args!("{}", if now.registered { "registered" } else { "not registered any more" }))?;
        }
        if now.registration_failures != before.registration_failures {
            line(out, format_args!("registration failed or lost ({} times)", now.registration_failures))?;
        }
        if now.calls != before.calls {
            line(out, format_args!("calls: {}", now.calls))?;
        }
        if now.subscriptions != before.subscriptions {
            line(out, format_args!("subscriptions: {}", now.subscriptions))?;
        }
        let fresh = usize::try_from(now.controls - before.controls).unwrap_or(usize::MAX);
        let seen = handle.controls();
        for control in &seen[seen.len().saturating_sub(fresh)..] {
            line(out, format_args!("{} commanded: {:?}", control.target, control.control))?;
        }
        before = now;
        if snapshots.changed().await.is_err() {
            return Ok(());
        }
    }
}
