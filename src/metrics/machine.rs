//! What the kernel counts for us, read at each scrape: UDP receive buffer overruns, memory, open files.
//!
//! In: `/proc/net/snmp`, `/proc/net/snmp6`, `/proc/self/status`, `/proc/self/fd`. A file that is not there or not
//! understood leaves its metric out. The UDP counter is the whole network namespace's, not ours alone.

use std::fmt::Error;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};

#[derive(Debug)]
pub(super) struct Machine;

impl Collector for Machine {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        if let Some(errors) = udp_receive_buffer_errors() {
            let help = "Datagrams the kernel dropped because a receive buffer was full, in this network namespace.";
            let counter = ConstCounter::new(errors);
            let name = "menshen_udp_receive_buffer_errors";
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory size in bytes.", resident_memory_bytes()),
            ("process_open_fds", "Number of open file descriptors.", open_fds()),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, ConstGauge::<u64>::TYPE)?)?;
            }
        }
        Ok(())
    }
}

fn udp_receive_buffer_errors() -> Option<u64> {
    let v4 = udp_errors_v4(&fs::read_to_string("/proc/net/snmp").ok()?)?;
    let v6 = fs::read_to_string("/proc/net/snmp6").ok().and_then(|text| udp_errors_v6(&text));
    Some(v4.saturating_add(v6.unwrap_or(0)))
}

fn resident_memory_bytes() -> Option<u64> {
    resident_bytes(&fs::read_to_string("/proc/self/status").ok()?)
}

fn open_fds() -> Option<u64> {
    // less the one that reads the directory
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

/// `/proc/net/snmp`: a line of names and a line of values, both beginning with the protocol.
fn udp_errors_v4(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names.split_whitespace().position(|name| name == "RcvbufErrors")?;
    values.split_whitespace().nth(column)?.parse().ok()
}

/// `/proc/net/snmp6`: a name and a value on each line.
fn udp_errors_v6(snmp6: &str) -> Option<u64> {
    snmp6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")?.trim().parse().ok())
}

/// `/proc/self/status`: `VmRSS:     1234 kB`.
fn resident_bytes(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "Tcp: RtoAlgorithm RtoMin\nTcp: 1 200\n\
        Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\nUdp: 9 8 7 6 42 0\n\
        UdpLite: InDatagrams RcvbufErrors\nUdpLite: 0 99\n";

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(udp_errors_v4(SNMP), Some(42));
        assert_eq!(udp_errors_v6("Udp6InDatagrams   \t3\nUdp6RcvbufErrors                \t17\n"), Some(17));
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t3\n"), Some(1234 * 1024));
    }

    #[test]
    fn other_text_gives_nothing() {
        for text in [
            "",
            "Udp:",
            "Udp: RcvbufErrors",
            "Udp: A\nUdp: 1",
            "Udp: A RcvbufErrors\nUdp: 1",
            "Udp: RcvbufErrors\nUdp: x",
        ] {
            assert_eq!(udp_errors_v4(text), None, "{text}");
        }
        assert_eq!(udp_errors_v6("Udp6RcvbufErrors x"), None);
        for text in
            ["", "VmRSS: 12 MB", "VmRSS: kB", "VmRSS: 99999999999999999999 kB", "VmRSS: 18446744073709551615 kB"]
        {
            assert_eq!(resident_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_has_memory_and_files() {
        assert!(resident_memory_bytes().unwrap() > 1024 * 1024);
        assert!(open_fds().unwrap() >= 3);
    }
}
