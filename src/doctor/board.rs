//! Clock, memory, page size: what the board itself brings.

use super::read::{controller_is_on, meminfo};
use super::{Finding, System};
use crate::budget;
use crate::clock;
use crate::config::Config;
use crate::text::bytes_text;
use std::time::UNIX_EPOCH;

const CLOCK: &str = "clock";
const MEMORY: &str = "memory";
/// What systemd's time service leaves, and where.
const TIMESYNC: &str = "/run/systemd/timesync";
/// Kernel parameters of a Raspberry Pi, on new and old systems.
const CMDLINES: [&str; 2] = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"];
/// What switches the memory cgroup on.
const PARAMETERS: &str = "cgroup_enable=memory cgroup_memory=1";

pub(super) fn clock(system: &System) -> Vec<Finding> {
    let unix = system.now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let shown = clock::rfc3339(unix);
    let set = "timedatectl set-ntp true";
    let mut findings = Vec::new();
    if !clock::is_plausible(system.now) {
        let what =
            format!("the clock shows {shown}, so it was never set: no upstream certificate can be verified");
        findings.push(Finding::bad(CLOCK, what, format!("{set}, or by hand: date -s \"YYYY-MM-DD HH:MM\"")));
    } else if system.has(TIMESYNC) && !system.has(&format!("{TIMESYNC}/synchronized")) {
        let what = format!(
            "the clock shows {shown}, and systemd-timesyncd has not set it since the boot: larder does not rely on it"
        );
        findings.push(Finding::warning(
            CLOCK,
            what,
            format!("{set}; timedatectl timesync-status shows what it waits for"),
        ));
    } else {
        findings.push(Finding::ok(CLOCK, format!("the clock is set: {shown}")));
    }
    if !system.has("/sys/class/rtc/rtc0") {
        let what = "the board has no battery-backed clock: after a boot the time is the last saved \
                    one until the network sets it; larder uses counters and does not need it";
        findings.push(Finding::note(CLOCK, what));
    }
    findings
}

pub(super) fn memory(config: &Config, system: &System) -> Vec<Finding> {
    let max = config.memory_max;
    let max_text = bytes_text(max);
    let mut findings = Vec::new();
    let info = system.text("/proc/meminfo").unwrap_or_default();
    let smaller = |bytes: u64| {
        let fits = (bytes / 2).max(budget::MEMORY_MIN) / budget::MIB;
        format!("set memory.max = \"{fits}MiB\" in larder.toml")
    };
    match (meminfo(&info, "MemTotal"), meminfo(&info, "MemAvailable")) {
        (Some(total), Some(available)) => {
            let of = format!(
                "memory.max is {max_text}; {} of {} are available",
                bytes_text(available),
                bytes_text(total)
            );
            findings.push(if max > total {
                Finding::bad(MEMORY, format!("{of}: the board does not have that much"), smaller(total))
            } else if max > available {
                Finding::warning(
                    MEMORY,
                    format!("{of}: other programs would run out of memory"),
                    smaller(available),
                )
            } else {
                Finding::ok(MEMORY, of)
            });
        }
        _ => findings.push(Finding::note(MEMORY, "/proc/meminfo does not say how much memory there is")),
    }
    if let Some((limit, place)) = cgroup_limit(system).filter(|(limit, _)| *limit < max) {
        findings.push(Finding::bad(
            MEMORY,
            format!("{place} limits larder to {}, less than memory.max ({max_text}): the kernel kills it before it refuses requests", bytes_text(limit)),
            format!("systemctl edit larder: [Service] MemoryMax={}M; or {}", (max + max / 2) / budget::MIB, smaller(2 * limit)),
        ));
    }
    findings.extend(memory_cgroup(system));
    findings
}

/// The smallest limit that holds for the server's unit, or for this process.
fn cgroup_limit(system: &System) -> Option<(u64, String)> {
    let own = system.text("/proc/self/cgroup").unwrap_or_default();
    let own =
        own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/').to_owned();
    let places = [
        "/sys/fs/cgroup/system.slice/larder.service/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/system.slice/larder.service/memory.limit_in_bytes".to_owned(),
        format!("/sys/fs/cgroup{own}/memory.max"),
    ];
    places.into_iter().filter_map(|place| Some((system.number(&place)?, place))).min()
}

/// Raspberry Pi OS starts with it off. K3s needs it; larder keeps its budget by itself.
fn memory_cgroup(system: &System) -> Option<Finding> {
    let listed = system.text("/proc/cgroups").and_then(|text| controller_is_on(&text, "memory"));
    let unified = system.text("/sys/fs/cgroup/cgroup.controllers");
    let on = match (listed, &unified) {
        (Some(on), _) => on,
        (None, Some(controllers)) => controllers.split_whitespace().any(|name| name == "memory"),
        // Neither place tells: some containers.
        (None, None) => return None,
    };
    if on {
        return Some(Finding::ok(MEMORY, "the memory cgroup is on"));
    }
    let file = CMDLINES.into_iter().find(|file| system.has(file));
    let written =
        file.and_then(|file| system.text(file)).is_some_and(|text| text.contains("cgroup_enable=memory"));
    let mend = match file {
        Some(file) if written => format!("{file} has {PARAMETERS} already: reboot"),
        Some(file) => format!("sed -i '1s/$/ {PARAMETERS}/' {file} && reboot"),
        None => format!("add {PARAMETERS} to the kernel's command line and reboot"),
    };
    let what = "the memory cgroup is off: MemoryMax has no effect";
    Some(if super::pulls::has_k3s(system) {
        Finding::bad(MEMORY, format!("{what}, and K3s does not start without it"), mend)
    } else {
        Finding::warning(MEMORY, format!("{what}; larder keeps memory.max by itself"), mend)
    })
}

pub(super) fn pages(system: &System) -> Finding {
    let bytes = system.page_bytes;
    let shown = bytes_text(bytes);
    if bytes == 0 || !(budget::INDEX_MAP_BYTES as u64).is_multiple_of(bytes) {
        return Finding::bad(
            MEMORY,
            format!("the kernel's page size is {shown}, which the index cannot use"),
            "boot a kernel with pages of 4, 16 or 64 KiB",
        );
    }
    Finding::ok(MEMORY, format!("the kernel's page size is {bytes} bytes"))
}
